// SPDX-License-Identifier: Apache-2.0
// What the program asked of its allocator, in order: one process's recorded calls as operations for
// a model.
//
// Ids become small numbers (`block`), reused after the block's end, so that a model keeps its
// blocks in an array. Besides calls there are the rare things that decide what an allocator does:
// ends of threads, moves of the break by the program, mallopt, malloc_trim; and, with a TouchPlan,
// the program's touches of its blocks. A forked child begins with its ancestors' operations up to
// the fork, then kFork, then its own.
//
// One reader can feed many models: operations come in chunks, and a chunk is the same for all.
// Thread safety: a reader belongs to one thread, and reads its Database. Memory: one chunk, the
// live ids, some batches. Cost: about 60 ns per operation.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "analyzer/replay/id_table.h"
#include "analyzer/trace_info.h"
#include "analyzer/whatif/op.h"
#include "analyzer/whatif/side_ops.h"
#include "analyzer/whatif/touch_plan.h"
#include "schema/event_reader.h"

namespace heapledger::analyzer {

class RecordedOps {
 public:
  // Damage is left out where a sink is given, else thrown. With a plan, which must outlive this,
  // there are kTouch operations for wide blocks.
  RecordedOps(schema::Database& db, const TraceInfo& info, int64_t process,
              schema::DamageSink damage = nullptr, const TouchPlan* plan = nullptr);
  // A forked child, its parent's reading being at the fork. Begins with kFork, not with ancestors.
  RecordedOps(const RecordedOps& parent_at_fork, int64_t process);
  ~RecordedOps();

  // For who reorders a chunk: numbers of blocks that end in one begin anew only in the next.
  void set_fresh_numbers() { keeps_ended_ = true; }

  // Chunks end at this moment: later operations are read only after it was moved on.
  void set_time_limit(int64_t time_ns) { time_limit_ns_ = time_ns; }

  // The next operations, some ten thousand; false at the end or the time limit.
  bool next_chunk(std::vector<Op>& ops);

  // Ends of blocks that never began, as far as read: not zero means that a model may be wrong.
  uint64_t unmatched_ends() const { return unmatched_; }

 private:
  struct Part;  // One process of the line of ancestors, up to a moment.

  bool open_next_part(std::vector<Op>& ops);
  void add_fork(std::vector<Op>& ops);
  void add_calls(std::vector<Op>& ops);
  void add_call(const schema::CallBatch& batch, size_t row, std::vector<Op>& ops);
  void add_touches(int64_t time_ns, std::vector<Op>& ops);
  void add_assumed_touch(const Op& op, uint64_t id, uint32_t stack, std::vector<Op>& ops);
  uint32_t begin_block(uint64_t id);
  uint32_t end_block(uint64_t id);

  schema::Database& db_;
  schema::DamageSink damage_;
  const TouchPlan* plan_ = nullptr;
  size_t next_touch_ = 0;
  std::vector<std::pair<int64_t, int64_t>> line_;  // Process and end; oldest ancestor last.
  std::unique_ptr<Part> part_;
  IdTable blocks_;  // Id -> block.
  std::vector<uint32_t> free_blocks_;
  std::vector<uint32_t> ended_blocks_;  // With set_fresh_numbers(): free from the next chunk on.
  bool keeps_ended_ = false;
  uint32_t blocks_made_ = 0;
  ThreadNumbers threads_;
  int64_t time_limit_ns_ = INT64_MAX;
  bool forks_ = false;  // The next part begins with a fork.
  uint64_t unmatched_ = 0;
};

}  // namespace heapledger::analyzer
