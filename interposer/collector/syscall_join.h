// SPDX-License-Identifier: Apache-2.0
// Makes one row of what two sides say about a system call: the kernel (when it was entered and
// left) and the program's wrapper (who made it, why, with which stack).
//
// They are told apart by thread: there, the kernel's calls follow one another, and each lies inside
// the interval of the wrapper that made it. A pair has the same thread, call, arguments and result,
// and the kernel's interval inside the wrapper's but for the inaccuracy of the clocks.
//
// Neither side comes first. The kernel's records are known up to a time (settle); a wrapper's event
// that has found no call 0.2 s of records later has none: it is written as it is, and counted. A
// call of the kernel's waits until its thread is known to have told of everything up to then: an
// event of a later call has been read (Thread::events_until_ns), and after it a whole round of all
// rings, or the thread has ended. Calls made by the recorder's own code wait for their thread's
// or process's end: what it does at the start it may tell much later.
//
// Thread safety: none (writer thread). Cost: some 100 ns per call.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "interposer/collector/process.h"
#include "interposer/collector/trace_writer.h"

namespace heapledger::collector {

// A call as the kernel saw it; times are trace nanoseconds.
struct KernelCall {
  int64_t entered_ns = 0;
  int64_t left_ns = 0;
  uint64_t ip = 0;
  uint64_t top = 0;  // The word at the top of the stack: perhaps where it returns to.
  schema::SyscallName name{};
  uint64_t args[6] = {};  // As normal_arguments() leaves them.
  int64_t result = 0;
};

// What the registers hold beyond the call's own arguments is nobody's business: sign-extends what
// is an int, and clears what the call does not read.
void normalize_arguments(schema::SyscallName name, uint64_t (&args)[6]);

class SyscallJoin {
 public:
  struct Sink {
    // A row is complete.
    std::function<void(const SyscallRow&)> row;
    // A call without a wrapper's event. False: its process has no row yet; asked again later.
    std::function<bool(Process&, const Thread&, const KernelCall&)> kernel_only;
    // Was it made by the recorder's own code?
    std::function<bool(Process&, const KernelCall&)> by_recorder;
  };
  explicit SyscallJoin(Sink sink) : sink_(std::move(sink)) {}

  // Events of wrappers before this have no call of the kernel's: it was not watched yet.
  void set_since(int64_t since_ns) { since_ns_ = since_ns; }

  void wrapped(Process& process, Thread& thread, const SyscallRow& row);
  void called(Process& process, Thread& thread, const KernelCall& call);

  // All calls that the kernel saw left before `known_ns` have been added. `whole`: nothing that was
  // there when the window began is left in any ring.
  void settle(int64_t known_ns, bool whole);
  // All that the process did has been added.
  void close(Process& process);
  // The recording is over.
  void finish();

  uint64_t unmatched() const { return unmatched_; }  // Wrappers' events without a call.

 private:
  enum class Owner : uint8_t { kUnasked, kProgram, kRecorder };
  struct Call {
    KernelCall call;
    Owner owner = Owner::kUnasked;
    bool done = false;
  };
  struct Waiting {
    Process* process = nullptr;
    Thread* thread = nullptr;
    std::vector<Call> calls;         // By time of entry.
    std::vector<SyscallRow> rows;    // By time of entry.
    int64_t told_ns = INT64_MIN;     // What the thread had told of at the last whole window,
    int64_t decided_ns = INT64_MIN;  // and at the one before.
    int64_t asked_ns = INT64_MIN;    // decided_ns when the calls were last gone through.
  };

  Waiting& waiting_of(Process& process, Thread& thread);
  void match(Waiting& waiting);
  bool match_row(Waiting& waiting, const SyscallRow& row, int64_t slack_ns);
  void match_children(Waiting& waiting, int64_t known_ns);
  void write_alone(Waiting& waiting, int64_t known_ns);
  void write_decided(Waiting& waiting, bool all);

  Sink sink_;
  std::unordered_map<const Thread*, Waiting> waiting_;
  int64_t since_ns_ = INT64_MIN;
  int64_t known_ns_ = 0;  // Of the last settle().
  uint64_t unmatched_ = 0;
};

}  // namespace heapledger::collector
