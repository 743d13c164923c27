// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/heap/differential/scripted_os.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cerrno>
#include <fstream>

#include "interposer/base/bits.h"
#include "interposer/base/sys.h"

namespace heapledger::heap::differential {

namespace {

namespace sys = base::sys;

// Where an unrandomised driver without PIE has its heap, and where the kernel maps for it. The
// latter ends below the stack's gap, the former below where the tester itself begins.
struct Range {
  uintptr_t begin;
  uintptr_t end;
};
constexpr Range kHeap = {0x400000, 0x2000'0000'0000};
constexpr Range kMappings = {0x7000'0000'0000, 0x7fff'f7ff'f000};

void map_at(uintptr_t address, size_t length, int protection, int fixed = MAP_FIXED_NOREPLACE) {
  const long result = sys::mmap(base::pointer_to(address), length, protection,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed);
  if (result != static_cast<long>(address)) {
    throw Mismatch(fmt::format("the tester cannot map {:#x}+{:#x}: {}", address, length, result));
  }
}

void check(long result, const char* what) {
  if (sys::failed(result)) throw Mismatch(fmt::format("the tester's {}: {}", what, result));
}

}  // namespace

std::string driver_addresses_taken() {
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) {
    const uintptr_t begin = std::stoull(line, nullptr, 16);
    const uintptr_t end = std::stoull(line.substr(line.find('-') + 1), nullptr, 16);
    for (const Range& range : {kHeap, kMappings}) {
      if (begin < range.end && range.begin < end) return line;
    }
  }
  return "";
}

Script::~Script() {
  for (const Range& range : {kHeap, kMappings}) {
    sys::munmap(base::pointer_to(range.begin), range.end - range.begin);
  }
  for (const auto& [memory, length] : registries_) sys::munmap(memory, length);
}

// The call the model is about to make, as text, beside the recorded one.
const SystemCall& Script::expect(long number, std::initializer_list<uint64_t> args) {
  SystemCall made;
  made.number = number;
  size_t count = 0;
  for (const uint64_t argument : args) made.args[count++] = argument;
  const std::string ours = to_text(made);
  const std::string made_text = ours.substr(0, ours.find(" ="));
  if (next_ >= calls_.size() || calls_[next_].op != op_) {
    throw Mismatch(fmt::format("the model calls {}, glibc makes no (further) call", made_text));
  }
  const SystemCall& recorded = calls_[next_++];
  bool same = recorded.number == number;
  for (size_t i = 0; i < count; ++i) same = same && recorded.args[i] == made.args[i];
  if (!same) {
    throw Mismatch(fmt::format("the model calls {}, glibc calls {}", made_text, to_text(recorded)));
  }
  return recorded;
}

void Script::end_op() {
  if (next_ < calls_.size() && calls_[next_].op == op_) {
    throw Mismatch(fmt::format("glibc also calls {}", to_text(calls_[next_])));
  }
}

uintptr_t Script::skip_foreign_op() {
  uintptr_t answer = 0;
  for (; next_ < calls_.size() && calls_[next_].op == op_; ++next_) {
    if (calls_[next_].number != SYS_brk) continue;
    follow_break(calls_[next_]);
    answer = break_;
  }
  return answer;
}

// Keeps memory mapped from where the break was first seen to where it is.
void Script::follow_break(const SystemCall& call) {
  const auto now = static_cast<uintptr_t>(call.result);
  if (break_begin_ == 0) break_begin_ = break_ = now;
  const uintptr_t old_end = base::align_up(break_, base::kPageBytes);
  const uintptr_t new_end = base::align_up(now, base::kPageBytes);
  if (new_end > old_end) map_at(old_end, new_end - old_end, PROT_READ | PROT_WRITE);
  if (new_end < old_end) {
    check(sys::munmap(base::pointer_to(new_end), old_end - new_end), "brk");
  }
  break_ = now;
}

uintptr_t Script::brk(uintptr_t address) {
  const SystemCall& call = expect(SYS_brk, {address});
  follow_break(call);
  return break_;
}

void* Script::mmap(void* hint, size_t length, int protection, int flags) {
  const SystemCall& call =
      expect(SYS_mmap, {base::address_of(hint), length, static_cast<uint64_t>(protection),
                        static_cast<uint64_t>(flags)});
  if (call.failed()) return nullptr;
  const auto address = static_cast<uintptr_t>(call.result);
  map_at(address, length, protection, (flags & MAP_FIXED) != 0 ? MAP_FIXED : MAP_FIXED_NOREPLACE);
  return base::pointer_to(address);
}

bool Script::munmap(void* address, size_t length) {
  const SystemCall& call = expect(SYS_munmap, {base::address_of(address), length});
  if (call.failed()) return false;
  check(sys::munmap(address, length), "munmap");
  return true;
}

void* Script::mremap(void* address, size_t old_length, size_t new_length, int flags) {
  const uintptr_t old = base::address_of(address);
  const SystemCall& call =
      expect(SYS_mremap, {old, old_length, new_length, static_cast<uint64_t>(flags)});
  if (call.failed()) return nullptr;
  const auto now = static_cast<uintptr_t>(call.result);
  if (now == old) {
    check(sys::mremap(address, old_length, new_length, 0), "mremap");
  } else {
    check(sys::mremap(address, old_length, new_length, MREMAP_MAYMOVE | MREMAP_FIXED,
                      base::pointer_to(now)),
          "mremap");
  }
  return base::pointer_to(now);
}

bool Script::madvise(void* address, size_t length, int advice) {
  const SystemCall& call =
      expect(SYS_madvise, {base::address_of(address), length, static_cast<uint64_t>(advice)});
  if (call.failed()) return false;
  check(sys::madvise(address, length, advice), "madvise");
  return true;
}

bool Script::mprotect(void* address, size_t length, int protection) {
  const SystemCall& call =
      expect(SYS_mprotect, {base::address_of(address), length, static_cast<uint64_t>(protection)});
  if (call.failed()) return false;
  check(sys::mprotect(address, length, protection), "mprotect");
  return true;
}

void* Script::map_registry(size_t length) {
  const long result = sys::mmap(nullptr, length, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  check(result, "mmap");
  registries_.emplace_back(base::pointer_to(static_cast<uintptr_t>(result)), length);
  return registries_.back().first;
}

}  // namespace heapledger::heap::differential
