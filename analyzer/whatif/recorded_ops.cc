// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/recorded_ops.h"

#include <algorithm>
#include <limits>

namespace heapledger::analyzer {

namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr size_t kChunkOps = 32768;
constexpr uint32_t kColumns = schema::kColumnTime | schema::kColumnThread | schema::kColumnKind |
                              schema::kColumnId | schema::kColumnSize | schema::kColumnAlignment |
                              schema::kColumnEndedId;

}  // namespace

struct RecordedOps::Part {
  Part(schema::Database& db, int64_t process, int64_t end_ns, uint32_t columns,
       const schema::DamageSink& damage)
      : calls(db, process, {columns, std::numeric_limits<int64_t>::min(), end_ns, damage, true}),
        side(db, process, end_ns) {}

  // Makes `run` have a row, if there is one.
  bool fill() { return run.begin < run.end || calls.next_run(run); }

  schema::CallReader calls;
  schema::CallRun run;
  SideOps side;
};

RecordedOps::RecordedOps(schema::Database& db, const TraceInfo& info, int64_t process,
                         schema::DamageSink damage, const TouchPlan* plan)
    : db_(db), damage_(std::move(damage)), plan_(plan) {
  int64_t end_ns = kNever;
  for (const ProcessInfo* at = &info.process(process);;) {
    line_.emplace_back(at->id, end_ns);
    // Only a damaged trace has a parent that came later.
    if (!at->forked || !at->parent || !at->start_ns || *at->parent >= at->id) break;
    end_ns = std::min(end_ns, *at->start_ns);
    at = &info.process(*at->parent);
  }
}

RecordedOps::RecordedOps(const RecordedOps& parent_at_fork, int64_t process)
    : db_(parent_at_fork.db_),
      damage_(parent_at_fork.damage_),
      line_({{process, kNever}}),
      blocks_(parent_at_fork.blocks_),
      free_blocks_(parent_at_fork.free_blocks_),
      blocks_made_(parent_at_fork.blocks_made_),
      threads_(parent_at_fork.threads_.of_child()),
      forks_(true) {}

RecordedOps::~RecordedOps() = default;

void RecordedOps::add_fork(std::vector<Op>& ops) {
  Op op;
  op.kind = OpKind::kFork;
  op.time_ns = ops.empty() ? 0 : ops.back().time_ns;
  op.thread = threads_.last();
  ops.push_back(op);
  threads_.adopt_last();
}

bool RecordedOps::open_next_part(std::vector<Op>& ops) {
  if (part_ != nullptr) part_->side.take_until(kNever, threads_, ops);
  if (line_.empty()) return false;
  const auto [process, end_ns] = line_.back();
  line_.pop_back();
  if (forks_) add_fork(ops);
  forks_ = true;
  const uint32_t columns = plan_ != nullptr ? kColumns | schema::kColumnStack : kColumns;
  part_ = std::make_unique<Part>(db_, process, end_ns, columns, damage_);
  return true;
}

bool RecordedOps::next_chunk(std::vector<Op>& ops) {
  ops.clear();
  ops.reserve(kChunkOps);
  free_blocks_.insert(free_blocks_.end(), ended_blocks_.begin(), ended_blocks_.end());
  ended_blocks_.clear();
  while (ops.size() < kChunkOps) {
    if (part_ == nullptr || !part_->fill()) {
      // What follows the last call waits for its time, too.
      if (part_ != nullptr && time_limit_ns_ != kNever) {
        part_->side.take_until(time_limit_ns_, threads_, ops);
        break;
      }
      if (!open_next_part(ops)) {
        part_.reset();
        break;
      }
    } else if (part_->run.batch->time_ns[part_->run.begin] > time_limit_ns_) {
      part_->side.take_until(time_limit_ns_, threads_, ops);
      break;
    } else {
      add_calls(ops);
    }
  }
  return !ops.empty();
}

void RecordedOps::add_calls(std::vector<Op>& ops) {
  schema::CallRun& run = part_->run;
  const schema::CallBatch& batch = *run.batch;
  // Runs can be long: a chunk ends inside one.
  const size_t end = std::min(run.end, run.begin + kChunkOps);
  while (run.begin < end && batch.time_ns[run.begin] <= time_limit_ns_) {
    const size_t row = run.begin++;
    if (part_->side.next_time() <= batch.time_ns[row])
      part_->side.take_until(batch.time_ns[row], threads_, ops);
    // The plan is of the process's own part, which is the last one.
    if (plan_ != nullptr && line_.empty()) add_touches(batch.time_ns[row], ops);
    add_call(batch, row, ops);
  }
}

void RecordedOps::add_touches(int64_t time_ns, std::vector<Op>& ops) {
  const std::vector<TouchPlan::Touch>& touches = plan_->touches();
  for (; next_touch_ < touches.size() && touches[next_touch_].time_ns <= time_ns; ++next_touch_) {
    const TouchPlan::Touch& touch = touches[next_touch_];
    Op op;
    op.kind = OpKind::kTouch;
    op.time_ns = touch.time_ns;
    op.block = blocks_.find(touch.id);
    if (op.block == IdTable::kNone) continue;
    op.alignment = touch.offset;
    op.size = 1;
    op.thread = threads_.last();
    ops.push_back(op);
  }
}

void RecordedOps::add_assumed_touch(const Op& op, uint64_t id, uint32_t stack,
                                    std::vector<Op>& ops) {
  if (op.failed || op.block == Op::kNoBlock || op.size < kWideBytes) return;
  Op touch;
  touch.kind = OpKind::kTouch;
  touch.time_ns = op.time_ns;
  touch.block = op.block;
  touch.size = plan_->assumed_bytes(id, op.size, stack);
  touch.thread = op.thread;
  if (touch.size != 0) ops.push_back(touch);
}

void RecordedOps::add_call(const schema::CallBatch& batch, size_t row, std::vector<Op>& ops) {
  const uint32_t thread = threads_.number_of(batch.thread[row]);
  const uint64_t id = batch.id[row];
  const uint64_t ended_id = batch.ended_id[row];
  // First, so that its number is free for the new one: a model ends before it begins, too.
  const uint32_t ended = ended_id != 0 ? end_block(ended_id) : Op::kNoBlock;
  const uint32_t begun = id != 0 ? begin_block(id) : Op::kNoBlock;
  Op op;
  if (!make_call_op(batch, row, ended, begun, thread, op)) return;
  ops.push_back(op);
  if (plan_ != nullptr && op.kind != OpKind::kRelease) {
    add_assumed_touch(ops.back(), id, batch.stack[row], ops);
  }
}

uint32_t RecordedOps::begin_block(uint64_t id) {
  uint32_t block = blocks_made_;
  if (free_blocks_.empty()) {
    ++blocks_made_;
  } else {
    block = free_blocks_.back();
    free_blocks_.pop_back();
  }
  blocks_.put(id, block);
  return block;
}

uint32_t RecordedOps::end_block(uint64_t id) {
  const uint32_t block = blocks_.take(id);
  if (block == IdTable::kNone) {
    ++unmatched_;
    return Op::kNoBlock;
  }
  (keeps_ended_ ? ended_blocks_ : free_blocks_).push_back(block);
  return block;
}

}  // namespace heapledger::analyzer
