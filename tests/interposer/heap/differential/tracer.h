// SPDX-License-Identifier: Apache-2.0
//
// Runs glibc_driver on a sequence and writes down every memory system call it makes: number,
// arguments, result, and the call of the sequence it belongs to.
//
// The driver runs without address randomisation, so that a sequence has one outcome, and is stopped
// by a seccomp filter at memory calls only: two stops per call. One driver at a time per Tracer.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/interposer/heap/differential/protocol.h"
#include "tests/interposer/heap/differential/sequence.h"

namespace heapledger::heap::differential {

struct SystemCall {
  int64_t op = 0;  // Index in the sequence.
  long number = 0;
  uint64_t args[6] = {};
  int64_t result = 0;

  bool failed() const { return static_cast<uint64_t>(result) > uint64_t(-4096); }
};

std::string to_text(const SystemCall& call);

struct Recording {
  std::string failure;  // Why there is none; empty: it is complete.
  size_t ops_done = 0;  // Fewer than in the sequence: the next one made glibc itself abort.
  std::vector<SystemCall> calls;
  std::vector<OpResult> results;
  std::vector<std::vector<uint64_t>> infos;  // Snapshots by number.
};

class Tracer {
 public:
  // Throws std::runtime_error where shared memory cannot be had.
  explicit Tracer(std::string driver);
  ~Tracer();
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  Recording run(const Sequence& sequence);

 private:
  pid_t start(const Sequence& sequence);
  void follow(pid_t driver, Recording* recording);
  void record_call(pid_t thread, Recording* recording);

  std::string driver_;
  int fd_ = -1;
  Shared* shared_ = nullptr;
};

}  // namespace heapledger::heap::differential
