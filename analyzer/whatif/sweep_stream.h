// SPDX-License-Identifier: Apache-2.0
// What a sweep's models run over: a process's operations in one order, chunk by chunk, with what
// changes beside them.
// Thread safety: none while a chunk is filled; then it may be read by any number of threads.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "analyzer/whatif/interleaving.h"
#include "analyzer/whatif/op.h"
#include "analyzer/whatif/recorder_share.h"

namespace heapledger::analyzer {

// Operations, with the requested bytes that live after each.
struct Chunk {
  struct OtherStep {
    size_t op;       // The first one from then on.
    uint64_t bytes;  // RSS that is not heap.
  };
  std::vector<Op> ops;
  std::vector<uint64_t> live_bytes;
  std::vector<OtherStep> other_steps;
};

// Requested bytes that live.
class LiveBytes {
 public:
  void fill(Chunk& chunk);

 private:
  void apply(const Op& op);
  void begin(uint32_t block, uint64_t bytes);
  void end(uint32_t block);

  std::vector<uint64_t> sizes_;  // By block.
  uint64_t live_ = 0;
};

// Puts steps of what is not heap between the operations.
class OtherSteps {
 public:
  explicit OtherSteps(const std::vector<OtherRss::Step>& steps) : steps_(steps) {}

  void fill(Chunk& chunk);

 private:
  const std::vector<OtherRss::Step>& steps_;
  size_t next_ = 0;
};

// The operations in one order, with what goes beside them; a chunk is filled while another is run.
class SweepStream {
 public:
  // `seed`: 0, or that of another order than the recorded one.
  SweepStream(uint32_t seed, const std::vector<OtherRss::Step>& other_steps)
      : seed_(seed), interleaving_(seed), others_(other_steps) {}

  Chunk& chunk(size_t number) { return chunks_[number]; }

  // The chunk's operations are set, or come from these.
  void fill(size_t number, std::span<const Op> recorded);

 private:
  const uint32_t seed_;
  Interleaving interleaving_;
  LiveBytes live_;
  OtherSteps others_;
  std::array<Chunk, 2> chunks_;
};

}  // namespace heapledger::analyzer
