// SPDX-License-Identifier: Apache-2.0
// The program's way into a seccomp sandbox, where a system call of the recorder's could kill it.
//
// prctl and syscall are passed on as they are; those that set a filter or the strict mode first
// tell the recorder, which from then on makes none (ring_producer.h, g_sandboxed). A filter that is
// set by an instruction of the program's own is not seen. syscall() jumps on with all registers as
// they came, since a caller may mean its child to return from it on another stack.
#include <errno.h>
#include <linux/seccomp.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "interposer/lifecycle.h"
#include "interposer/trace/recorder.h"

#define HL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

void before_sandbox(const void* caller) {
  if (!heapledger::traced()) return;
  const heapledger::trace::CallScope scope(caller);  // Claims this thread's ring while it may.
  heapledger::trace::learn_tid_place();
  heapledger::trace::g_sandboxed.store(true, std::memory_order_relaxed);
}

}  // namespace

HL_EXPORT int prctl(int option, ...) noexcept {
  va_list list;
  va_start(list, option);
  unsigned long arguments[4];  // Unused ones are read as whatever is there, as libc does.
  for (unsigned long& argument : arguments) argument = va_arg(list, unsigned long);
  va_end(list);
  if (option == PR_SET_SECCOMP) before_sandbox(__builtin_return_address(0));
  return heapledger::real().prctl(option, arguments[0], arguments[1], arguments[2], arguments[3]);
}

// Called by syscall() below for SYS_seccomp and SYS_prctl, with its arguments kept aside.
extern "C" __attribute__((used, visibility("hidden"))) void heapledger_before_syscall(
    long number, long first, long) noexcept {
  const bool filters = number == SYS_seccomp &&
                       (first == SECCOMP_SET_MODE_STRICT || first == SECCOMP_SET_MODE_FILTER);
  if (!filters && (number != SYS_prctl || first != PR_SET_SECCOMP)) return;
  before_sandbox(__builtin_return_address(0));
}
extern "C" __attribute__((used, visibility("hidden"))) long heapledger_syscall_failed(
    long result) noexcept {
  errno = static_cast<int>(-result);
  return -1;
}

// The kernel takes its arguments one register further, and the fourth in r10.
static_assert(SYS_prctl == 157 && SYS_seccomp == 317);
asm(R"(
  .text
  .globl syscall
  .type syscall, @function
syscall:
  .cfi_startproc
  cmpq $157, %rdi
  je 2f
  cmpq $317, %rdi
  je 2f
1:
  movq %rdi, %rax
  movq %rsi, %rdi
  movq %rdx, %rsi
  movq %rcx, %rdx
  movq %r8, %r10
  movq %r9, %r8
  movq 8(%rsp), %r9
  syscall
  cmpq $-4095, %rax
  jae 3f
  ret
2:
  pushq %rdi
  .cfi_adjust_cfa_offset 8
  pushq %rsi
  .cfi_adjust_cfa_offset 8
  pushq %rdx
  .cfi_adjust_cfa_offset 8
  pushq %rcx
  .cfi_adjust_cfa_offset 8
  pushq %r8
  .cfi_adjust_cfa_offset 8
  pushq %r9
  .cfi_adjust_cfa_offset 8
  subq $8, %rsp
  .cfi_adjust_cfa_offset 8
  call heapledger_before_syscall
  addq $8, %rsp
  .cfi_adjust_cfa_offset -8
  popq %r9
  .cfi_adjust_cfa_offset -8
  popq %r8
  .cfi_adjust_cfa_offset -8
  popq %rcx
  .cfi_adjust_cfa_offset -8
  popq %rdx
  .cfi_adjust_cfa_offset -8
  popq %rsi
  .cfi_adjust_cfa_offset -8
  popq %rdi
  .cfi_adjust_cfa_offset -8
  jmp 1b
3:
  movq %rax, %rdi
  jmp heapledger_syscall_failed
  .cfi_endproc
  .size syscall, .-syscall
)");
