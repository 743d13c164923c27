// SPDX-License-Identifier: Apache-2.0
#include "interposer/unwinder_io.h"

#include <elf.h>
#include <errno.h>
#include <sys/mman.h>

#include <cstdarg>
#include <cstring>

#include "interposer/base/bits.h"
#include "interposer/base/sys.h"
#include "interposer/trace/own_calls.h"

namespace heapledger {
namespace {

namespace sys = base::sys;

constexpr int kNoDescriptor = -1;  // Both ends of the pipe that was never made.

// What libc's wrappers do.
long with_errno(long result) {
  if (!sys::failed(result)) return result;
  errno = static_cast<int>(-result);
  return -1;
}

// The kernel reads the eight bytes of a signal set before it looks at `how`: EINVAL says that it
// could, EFAULT that not. Aligned, so that they lie in the byte's own page.
bool is_readable(const void* address) {
  constexpr int kNoSuchHow = -1;
  constexpr uintptr_t kSetBytes = 8;
  const uintptr_t word = reinterpret_cast<uintptr_t>(address) & ~(kSetBytes - 1);
  return sys::sigprocmask(kNoSuchHow, reinterpret_cast<const uint64_t*>(word), nullptr) != -EFAULT;
}

int pipe_of_nothing(int* ends, int) {
  ends[0] = ends[1] = kNoDescriptor;
  return 0;
}

// An empty pipe, not a closed one: libunwind would make it anew.
ssize_t read_for_unwinder(int fd, void* buffer, size_t size) {
  if (fd == kNoDescriptor) return with_errno(-EAGAIN);
  return with_errno(sys::call(SYS_read, fd, sys::word(buffer), sys::word(size)));
}

ssize_t write_for_unwinder(int fd, const void* buffer, size_t size) {
  if (fd != kNoDescriptor) {
    return with_errno(sys::call(SYS_write, fd, sys::word(buffer), sys::word(size)));
  }
  errno = 0;  // Its loop asks for EINTR by errno alone.
  if (is_readable(buffer)) return static_cast<ssize_t>(size);
  return with_errno(-EFAULT);
}

long syscall_for_unwinder(long number, ...) {
  long words[6];
  va_list list;
  va_start(list, number);
  for (long& word : words) word = va_arg(list, long);
  va_end(list);
  if (number == SYS_write) {
    return write_for_unwinder(static_cast<int>(words[0]), reinterpret_cast<const void*>(words[1]),
                              static_cast<size_t>(words[2]));
  }
  return with_errno(sys::call(number, words[0], words[1], words[2], words[3], words[4], words[5]));
}

struct Replacement {
  const char* name;
  uintptr_t function;
};

// The library's tables, by its dynamic section. glibc has made the addresses absolute.
struct Tables {
  const Elf64_Rela* calls = nullptr;
  size_t call_count = 0;
  const Elf64_Sym* symbols = nullptr;
  const char* names = nullptr;
};

Tables tables_of(const link_map* library) {
  Tables tables;
  for (const Elf64_Dyn* entry = library->l_ld; entry->d_tag != DT_NULL; ++entry) {
    switch (entry->d_tag) {
      case DT_JMPREL:
        tables.calls = reinterpret_cast<const Elf64_Rela*>(entry->d_un.d_ptr);
        break;
      case DT_PLTRELSZ:
        tables.call_count = entry->d_un.d_val / sizeof(Elf64_Rela);
        break;
      case DT_SYMTAB:
        tables.symbols = reinterpret_cast<const Elf64_Sym*>(entry->d_un.d_ptr);
        break;
      case DT_STRTAB:
        tables.names = reinterpret_cast<const char*>(entry->d_un.d_ptr);
        break;
      default:
        break;
    }
  }
  return tables;
}

// Where the library was linked with -z now the table is read-only since it was loaded; it stays
// writable after this, which only costs a mapping.
bool set_slot(trace::CallScope& scope, uintptr_t slot, uintptr_t function) {
  const uintptr_t page = slot & ~(base::kPageBytes - 1);
  if (sys::failed(trace::own_call(scope, schema::SyscallName::kMprotect, SYS_mprotect,
                                  reinterpret_cast<void*>(page), base::kPageBytes,
                                  PROT_READ | PROT_WRITE))) {
    return false;
  }
  std::memcpy(reinterpret_cast<void*>(slot), &function, sizeof function);
  return true;
}

}  // namespace

bool replace_unwinder_io(const link_map* library, trace::CallScope& scope) noexcept {
  const Replacement replacements[] = {
      {"pipe2", reinterpret_cast<uintptr_t>(&pipe_of_nothing)},
      {"read", reinterpret_cast<uintptr_t>(&read_for_unwinder)},
      {"write", reinterpret_cast<uintptr_t>(&write_for_unwinder)},
      {"syscall", reinterpret_cast<uintptr_t>(&syscall_for_unwinder)},
  };
  const Tables tables = tables_of(library);
  if (tables.calls == nullptr || tables.symbols == nullptr || tables.names == nullptr) return false;
  bool pipe_found = false;
  for (size_t i = 0; i < tables.call_count; ++i) {
    const Elf64_Rela& call = tables.calls[i];
    const char* name = tables.names + tables.symbols[ELF64_R_SYM(call.r_info)].st_name;
    for (const Replacement& replacement : replacements) {
      if (std::strcmp(name, replacement.name) != 0) continue;
      if (!set_slot(scope, library->l_addr + call.r_offset, replacement.function)) return false;
      pipe_found |= &replacement == replacements;
    }
  }
  return pipe_found;
}

}  // namespace heapledger
