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
#include "analyzer/whatif/touch_plan.h"
#include "schema/event_reader.h"

namespace heapledger::analyzer {

enum class OpKind : uint8_t {
  kAllocate,      // malloc, new
  kZeroed,        // calloc
  kAligned,       // memalign and its kin
  kRelease,       // free, delete, realloc(p, 0)
  kResize,        // realloc of a block
  kThreadEnd,     // Its cache goes back.
  kForeignBreak,  // The program moved the break by `size` (signed), or asked where it is (0).
  kSetOption,     // mallopt(`block`, `size`), both as ints.
  kTrim,          // malloc_trim(`size`)
  kFork,          // From here on: the child's own. `thread` is the one that goes on.
  kTouch,         // The program touched `size` bytes of `block`, from `alignment` on.
};

struct Op {
  static constexpr uint32_t kNoBlock = UINT32_MAX;

  int64_t time_ns = 0;
  uint64_t size = 0;  // Requested bytes, or as the kind says.
  uint64_t alignment = 0;
  uint32_t block = kNoBlock;      // That begins; of kRelease: that ends.
  uint32_t old_block = kNoBlock;  // kResize only: that ends.
  uint32_t thread = 0;            // Small numbers, in order of appearance.
  OpKind kind = OpKind::kAllocate;
  schema::EventKind event = schema::EventKind::kPad;  // The function called; kPad: none.
  bool failed = false;                                // It got nothing: the system refused.
};
static_assert(sizeof(Op) == 40);

class RecordedOps {
 public:
  // Damage is left out where a sink is given, else thrown. With a plan, which must outlive this,
  // there are kTouch operations for wide blocks.
  RecordedOps(schema::Database& db, const TraceInfo& info, int64_t process,
              schema::DamageSink damage = nullptr, const TouchPlan* plan = nullptr);
  // A forked child, its parent's reading being at the fork. Begins with kFork, not with ancestors.
  RecordedOps(const RecordedOps& parent_at_fork, int64_t process);
  ~RecordedOps();

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
  void add_side_ops(int64_t time_ns, std::vector<Op>& ops);
  void add_touches(int64_t time_ns, std::vector<Op>& ops);
  void add_assumed_touch(const Op& op, uint64_t id, uint32_t stack, std::vector<Op>& ops);
  uint32_t thread_of(uint32_t row);
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
  uint32_t blocks_made_ = 0;
  std::vector<uint32_t> threads_;  // Row of `thread` -> number + 1; 0: none yet.
  uint32_t threads_made_ = 0;
  uint32_t last_thread_ = 0;
  int64_t time_limit_ns_ = INT64_MAX;
  bool forks_ = false;          // The next part begins with a fork.
  bool adopts_thread_ = false;  // The next new thread goes on as the one that forked.
  uint64_t unmatched_ = 0;
};

}  // namespace heapledger::analyzer
