// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/heap/simulated_os.h"

namespace heapledger::heap {

SimulatedSpace::SimulatedSpace(size_t break_bytes, size_t map_bytes)
    : space_({break_bytes, map_bytes, Contents::kKept, false}) {
  space_.set_sink([this](const SimulatedCall& call) { calls_.push_back(call); });
  space_.set_refusal([this](const SimulatedCall& call) { return is_refused(call); });
}

bool SimulatedSpace::is_refused(const SimulatedCall& call) const {
  switch (call.name) {
    case CallName::kBrk:
      return wall_ && call.bytes > 0;
    case CallName::kMmap:
      return map_fails_;
    case CallName::kMremap:
      return remap_fails_;
    default:
      return false;
  }
}

uintptr_t SimulatedSpace::brk(uintptr_t address, Cause cause) {
  if (interruption_ && address != 0) interruption_();
  const std::lock_guard guard(mutex_);
  return space_.brk(address, cause);
}

void* SimulatedSpace::mmap(void* hint, size_t length, int protection, int flags, Cause cause) {
  const std::lock_guard guard(mutex_);
  if (cause != Cause::kRegistry) return space_.mmap(hint, length, protection, flags, cause);
  // No call to the space, but to a test.
  void* memory = map_fails_ ? nullptr : space_.mmap(hint, length, protection, flags, cause);
  calls_.push_back({CallName::kMmap, cause, base::address_of(memory), static_cast<int64_t>(length),
                    0, memory != nullptr});
  return memory;
}

bool SimulatedSpace::munmap(void* address, size_t length, Cause cause) {
  const std::lock_guard guard(mutex_);
  return space_.munmap(address, length, cause);
}

void* SimulatedSpace::mremap(void* address, size_t old_length, size_t new_length, int flags,
                             Cause cause) {
  const std::lock_guard guard(mutex_);
  return space_.mremap(address, old_length, new_length, flags, cause);
}

bool SimulatedSpace::madvise(void* address, size_t length, int advice, Cause cause) {
  const std::lock_guard guard(mutex_);
  return space_.madvise(address, length, advice, cause);
}

bool SimulatedSpace::mprotect(void* address, size_t length, int protection, Cause cause) {
  const std::lock_guard guard(mutex_);
  return space_.mprotect(address, length, protection, cause);
}

void SimulatedSpace::note_policy(const PolicyEvent& event) {
  const std::lock_guard guard(mutex_);
  policy.push_back(event);
}

uintptr_t SimulatedSpace::foreign_sbrk(int64_t bytes) {
  const std::lock_guard guard(mutex_);
  return space_.move_break_foreign(bytes);
}

size_t SimulatedSpace::mapping_count() {
  const std::lock_guard guard(mutex_);
  return space_.mapping_count();
}

std::vector<SimulatedCall> SimulatedSpace::take_calls() {
  const std::lock_guard guard(mutex_);
  std::vector<SimulatedCall> calls;
  calls.swap(calls_);
  return calls;
}

std::string SimulatedSpace::take_text() {
  std::string text;
  for (const SimulatedCall& call : take_calls()) {
    if (!text.empty()) text += "; ";
    text += call_name(call.name);
    if (call.name == CallName::kMremap) text += " " + std::to_string(call.old_bytes);
    if (call.name != CallName::kBrk) {
      text += " " + std::to_string(call.bytes);
    } else if (call.address == 0) {
      text += " ?";
    } else {
      text += (call.bytes >= 0 ? " +" : " ") + std::to_string(call.bytes);
    }
    if (!call.ok) text += " refused";
  }
  return text;
}

}  // namespace heapledger::heap
