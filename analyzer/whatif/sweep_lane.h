// SPDX-License-Identifier: Apache-2.0
// One setting's model in a sweep, run over a stream of operations, and the books on it.
// Thread safety: a lane belongs to one thread at a time. It refers to itself: it may not move.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "analyzer/whatif/model.h"
#include "analyzer/whatif/sweep.h"
#include "analyzer/whatif/sweep_stream.h"

namespace heapledger::analyzer {

class SweepLane {
 public:
  struct Plan {
    SettingChoice choice;
    uint32_t jitter = 0;  // 0, or the seed of changed sizes.
    size_t order = 0;     // Number of the order that the operations come in.
  };

  SweepLane(const Plan& plan, size_t cpus, const CallCost& cost);

  size_t order() const { return order_; }
  void run(const Chunk& chunk);
  // `other_bytes_end`: RSS that is not heap, at the end.
  SweepRow finish(int64_t ns_per_fault, uint64_t second_faults, uint64_t other_bytes_end);

 private:
  std::span<const Op> changed(std::span<const Op> ops);
  void run_part(std::span<const Op> ops, size_t end);
  void note_peak();
  void begin_own_part(int64_t time_ns);
  void sample(int64_t time_ns);
  void on_call(const heap::SimulatedCall& call);

  const CallCost& cost_;
  const size_t order_;
  const uint32_t jitter_;
  std::minstd_rand random_;
  std::vector<Op> changed_;
  SweepRow row_;
  std::unique_ptr<Model> model_;
  const Chunk* chunk_ = nullptr;
  size_t first_ = 0;  // Of the part of the chunk that the model runs.
  bool has_begun_ = false;
  int64_t start_ns_ = 0, last_ns_ = 0;
  double held_ = 0, resident_ = 0, held_peak_ = 0;
  double held_integral_ = 0, resident_integral_ = 0;
  uint64_t inherited_faults_ = 0;
  uint64_t other_bytes_ = 0;  // RSS that is not heap.
};

}  // namespace heapledger::analyzer
