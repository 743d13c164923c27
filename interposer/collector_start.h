// SPDX-License-Identifier: Apache-2.0
// Starts the collector for a program that was run under a bare LD_PRELOAD.
//
// The collector must be nobody's child, hold no descriptor of the program and die with nobody: it
// is forked twice through vfork-like clones without an exit signal (the program's SIGCHLD and
// wait() never see them) into a session of its own. Runs at the first call of the program, alone.
// No allocation; errno kept.
#pragma once

#include <cstddef>

namespace heapledger {

// Null on success, with the session's name in `session`; else why not (may point into `session`).
const char* start_collector(char* session, size_t size) noexcept;

}  // namespace heapledger
