// SPDX-License-Identifier: Apache-2.0
// Whether the collector is still there: asked by whoever waits for something that only it can give,
// room in a ring, a slot, a snapshot.
//
// The sign of life is the heartbeat in the control page. A collector that has been stopped
// (SIGSTOP, a debugger) beats no more although it exists; /proc says so at once, the silence only
// in the end.
//
// Thread safety: a watch belongs to the thread that made it. No allocation; errno kept.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "schema/shared_region.h"

namespace heapledger::trace {

// How long one that waits believes in a collector that shows no sign of life.
struct Patience {
  uint64_t silent_ns = 10'000'000'000;  // Its heartbeat has not moved for so long: it is dead.
  uint64_t gone_ns = 2'000'000'000;     // The same, where kill(2) says that no such process exists.
};

// Watches the collector's heartbeat from the moment it is made.
class CollectorWatch {
 public:
  CollectorWatch(const schema::ControlPage& control, const Patience& patience) noexcept;

  // It has ended, or must be taken for dead.
  bool gone() noexcept;

 private:
  const schema::ControlPage& control_;
  const Patience patience_;
  uint32_t beat_;
  uint64_t since_ns_;
};

// The kernel says that this process is stopped, or a zombie; false where it says nothing. A few
// system calls, none in a sandbox.
bool is_halted(pid_t pid) noexcept;

}  // namespace heapledger::trace
