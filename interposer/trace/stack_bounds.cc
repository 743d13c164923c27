// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/stack_bounds.h"

#include <errno.h>

#include "interposer/base/bits.h"
#include "interposer/base/sys.h"
#include "interposer/trace/process.h"
#include "interposer/trace/ring_producer.h"

// Where the process' first thread began. Weak: glibc's loader alone has it.
extern "C" __attribute__((weak)) void* __libc_stack_end;

namespace heapledger::trace {

constinit std::atomic<uint32_t> g_unmappings{0};

namespace {

using base::kPageBytes;

// The kernel keeps at least 128 MiB below the first thread's stack free of mappings
// (mm/util.c, mmap_base).
constexpr uintptr_t kFirstStackBytes = uintptr_t{127} << 20;
constexpr uintptr_t kFrameBytesMax = uintptr_t{1} << 20;
// glibc's struct pthread is 2.3 KiB in 2.36; the stack's address and size lie well within.
constexpr size_t kControlWords = 224;
constexpr uintptr_t kControlBytesMax = uintptr_t{1} << 20;  // The block ends so near to it.
constexpr uintptr_t kLowestAddress = uintptr_t{1} << 16;    // No mapping lies below.
constexpr uintptr_t kStackBytesMax = uintptr_t{1} << 38;    // A pointer is no size.

// Asks the kernel to read a signal mask from there for a request that it refuses: EINVAL if it
// could be read.
bool is_readable(uintptr_t page) noexcept {
  constexpr int kNoRequest = -1;
  return base::sys::sigprocmask(kNoRequest, static_cast<const uint64_t*>(base::pointer_to(page)),
                                nullptr) == -EINVAL;
}

}  // namespace

// A thread's control block lies at the top of the block of memory that is its stack, and two
// neighbouring words in it are that block's address and size (allocatestack.c). Found by their
// values, since their place differs between versions: no other pair can span both the stack
// pointer and the control block and end just behind it.
StackRange StackBounds::find_own(uintptr_t sp) noexcept {
  if (&__libc_stack_end != nullptr) {
    const uintptr_t start = base::address_of(__libc_stack_end);
    const uintptr_t high = base::align_down(start, kPageBytes) + kPageBytes;
    const StackRange first = {high - kFirstStackBytes, high};
    if (first.covers(sp)) return first;
  }
  const auto* control = static_cast<const uintptr_t*>(__builtin_thread_pointer());
  const uintptr_t here = base::address_of(control);
  if (sp >= here) return {};
  for (size_t i = 0; i + 1 < kControlWords; ++i) {
    const uintptr_t low = control[i];
    const uintptr_t bytes = control[i + 1];
    if (low < kLowestAddress || bytes > kStackBytesMax) continue;
    const uintptr_t high = low + bytes;
    if (low <= sp && high > here && high - here <= kControlBytesMax) {
      return {low, here};
    }
  }
  return {};
}

StackRange StackBounds::around_slow(uintptr_t sp) noexcept {
  if (own_.high == 0) {
    const StackRange own = find_own(sp);
    if (own.high != 0) {
      own_.low = own.low;  // First: the range is empty until `high` is set.
      base::compiler_barrier();
      own_.high = own.high;
      return own;
    }
  }
  const uint32_t now = unmappings();
  // The word below is known to be there: the return address of the call that brought the thread
  // here (or, after a signal, it is not read). The one at `sp` may lie beyond the stack's end.
  const uintptr_t below = sp - sizeof(uintptr_t);
  if (foreign_unmappings_ == now && foreign_.covers(below)) return foreign_;
  if (is_sandboxed()) return {};
  foreign_.high = 0;
  base::compiler_barrier();
  const uintptr_t page = base::align_down(below, kPageBytes);
  foreign_unmappings_ = now;
  foreign_.low = page;
  base::compiler_barrier();
  foreign_.high = page + kPageBytes;
  return {page, page + kPageBytes};
}

bool StackBounds::extend(StackRange* range, uintptr_t end) noexcept {
  if (range->high == 0 || range->high == own_.high || is_sandboxed()) return false;
  if (end - range->high > kFrameBytesMax) return false;
  uint64_t calls = 0;
  while (range->high < end) {
    ++calls;
    if (!is_readable(range->high)) break;
    range->high += kPageBytes;
  }
  count_recorder_syscalls(calls);
  if (foreign_.low == range->low) foreign_.high = range->high;
  return range->high >= end;
}

}  // namespace heapledger::trace
