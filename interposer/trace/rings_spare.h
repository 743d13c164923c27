// SPDX-License-Identifier: Apache-2.0
// The part of the mapped region and of the private memory beside it that no thread has used yet.
//
// Rings are claimed lowest first, so the spare ones lie at the end. Both operations keep other
// threads from claiming meanwhile. Thread safety: any thread. No allocation; errno kept.
#pragma once

namespace heapledger::trace {

// Unmaps the spare rings, but for a few: a limit of the address space is about to come.
void give_up_spare_rings() noexcept;

// While it exists the spare rings are inaccessible: mlockall cannot bring them in. Afterwards
// nothing of ours is locked.
class SpareRingsHidden {
 public:
  SpareRingsHidden() noexcept;
  ~SpareRingsHidden();
  SpareRingsHidden(const SpareRingsHidden&) = delete;
  SpareRingsHidden& operator=(const SpareRingsHidden&) = delete;

 private:
  bool hidden_;
  unsigned first_;  // The first spare ring.
};

}  // namespace heapledger::trace
