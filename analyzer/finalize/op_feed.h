// SPDX-License-Identifier: Apache-2.0
// The calls of a process, handed from the replay to the models on their thread: decoded once, and
// with the replay's places of blocks (LiveSet) as their numbers, so that nobody looks them up
// again.
//
// Operations go in parts through a queue of some parts: whoever is ahead waits until half is gone.
// What the models give is the same as from a RecordedOps reader. Thread safety: a feed belongs to
// the replay's thread; the queue to both. Memory: some more than kPartsMax parts of kPartOps
// operations, 6 MB.
// Cost: a part is so large because whoever has waited for it is woken, which takes the kernel some
// microseconds.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "analyzer/replay/replay.h"
#include "analyzer/whatif/op.h"
#include "analyzer/whatif/side_ops.h"

namespace heapledger::analyzer {

struct OpPart {
  int64_t process = 0;
  std::vector<Op> ops;
  std::optional<int64_t> moment_ns;  // Somebody wants to know what the models are like after it.
  bool is_last = false;              // Of the process.
};

class OpQueue {
 public:
  static constexpr size_t kPartsMax = 16;

  // Waits for room. Does nothing once the queue is closed.
  void push(OpPart part);
  // Waits for a part; false once the queue is closed. A part's memory may be given back, to be
  // used again.
  bool pop(OpPart& part);
  // One side will do no more.
  void close();
  // An empty vector.
  std::vector<Op> take_spare();
  void give_spare(std::vector<Op> ops);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<OpPart> parts_;
  std::vector<std::vector<Op>> spare_;
  bool is_closed_ = false;
};

class OpFeed final : public PlayedCalls {
 public:
  static constexpr size_t kPartOps = 8192;

  // `moments`: times of the process, ascending.
  OpFeed(schema::Database& db, int64_t process, std::vector<int64_t> moments, OpQueue& queue);

  void on_played(const schema::CallBatch& batch, size_t row, uint32_t ended,
                 uint32_t begun) override;
  // After the last call.
  void finish();

 private:
  void pass_moments(int64_t until_ns);
  void find_next_stop();
  void send(std::optional<int64_t> moment_ns, bool is_last);

  int64_t process_;
  std::vector<int64_t> moments_;
  size_t next_moment_ = 0;
  SideOps side_;
  ThreadNumbers threads_;
  OpQueue& queue_;
  int64_t next_stop_ns_ = 0;  // Of the next moment or side operation.
  std::vector<Op> ops_;
};

// Asked for with every call, so it is to be inlined.
inline void OpFeed::on_played(const schema::CallBatch& batch, size_t row, uint32_t ended,
                              uint32_t begun) {
  if (next_stop_ns_ <= batch.time_ns[row]) [[unlikely]]
    pass_moments(batch.time_ns[row]);
  const uint32_t thread = threads_.number_of(batch.thread[row]);
  // In its place: a copy of what was just written field by field would wait for the writes.
  if (!make_call_op(batch, row, ended, begun, thread, ops_.emplace_back())) ops_.pop_back();
  if (ops_.size() >= kPartOps) [[unlikely]]
    send(std::nullopt, false);
}

}  // namespace heapledger::analyzer
