// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/recorded_ops.h"

#include <algorithm>
#include <limits>

#include "interposer/base/bits.h"

namespace heapledger::analyzer {

namespace {

using schema::EventKind;

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr size_t kChunkOps = 32768;
constexpr uint32_t kColumns = schema::kColumnTime | schema::kColumnThread | schema::kColumnKind |
                              schema::kColumnId | schema::kColumnSize | schema::kColumnAlignment |
                              schema::kColumnEndedId;

struct SideOp {
  Op op;
  uint32_t thread_row;
};

void load_breaks(schema::Database& db, int64_t process, int64_t end_ns, std::vector<SideOp>& ops) {
  constexpr const char* kWhere =
      " FROM syscall WHERE process = ? AND name = 'brk' AND time_ns <= ?";
  schema::Statement any =
      db.prepare(std::string("SELECT count(*)") + kWhere + " AND origin = 'program'");
  any.bind_all(process, end_ns);
  if (!any.step() || any.column_int(0) == 0) return;
  any.reset();
  schema::Statement select = db.prepare(
      std::string("SELECT time_ns, thread, result, origin = 'program'") + kWhere + " ORDER BY 1");
  select.bind_all(process, end_ns);
  int64_t before = 0;  // Where the break was; 0: nobody has asked yet.
  while (select.step()) {
    const int64_t now = select.column_int(2);
    if (select.column_int(3) != 0) {
      Op op;
      op.kind = OpKind::kForeignBreak;
      op.time_ns = select.column_int(0);
      op.size = static_cast<uint64_t>(before == 0 ? 0 : now - before);
      ops.push_back({op, static_cast<uint32_t>(select.column_int(1))});
    }
    if (now > 0) before = now;
  }
}

void load_thread_ends(schema::Database& db, int64_t process, int64_t end_ns,
                      std::vector<SideOp>& ops) {
  // A thread that ends with its process gives nothing back, the first one never does.
  schema::Statement select = db.prepare(
      "SELECT thread.end_ns, thread.id FROM thread JOIN process ON process.id = thread.process"
      " WHERE thread.process = ? AND thread.end_ns <= ? AND thread.tid != process.pid"
      " AND (process.end_ns IS NULL OR thread.end_ns < process.end_ns)");
  select.bind_all(process, end_ns);
  while (select.step()) {
    Op op;
    op.kind = OpKind::kThreadEnd;
    op.time_ns = select.column_int(0);
    ops.push_back({op, static_cast<uint32_t>(select.column_int(1))});
  }
}

void load_admin(schema::Database& db, int64_t process, int64_t end_ns, std::vector<SideOp>& ops) {
  schema::Statement select = db.prepare(
      "SELECT time_ns, thread, kind, old_value, new_value FROM policy_event WHERE process = ?"
      " AND time_ns <= ? AND kind IN ('setting changed', 'trim called')");
  select.bind_all(process, end_ns);
  while (select.step()) {
    Op op;
    op.time_ns = select.column_int(0);
    if (select.column_text(2) == "trim called") {
      op.kind = OpKind::kTrim;
      op.size = select.column_uint(3);
    } else {
      op.kind = OpKind::kSetOption;
      op.block = static_cast<uint32_t>(select.column_int(3));
      op.size = select.column_uint(4);
    }
    ops.push_back({op, static_cast<uint32_t>(select.column_int(1))});
  }
}

}  // namespace

struct RecordedOps::Part {
  Part(schema::Database& db, int64_t process, int64_t end_ns, uint32_t columns,
       const schema::DamageSink& damage)
      : calls(db, process, {columns, std::numeric_limits<int64_t>::min(), end_ns, damage, true}) {
    load_breaks(db, process, end_ns, side);
    load_thread_ends(db, process, end_ns, side);
    load_admin(db, process, end_ns, side);
    std::stable_sort(side.begin(), side.end(),
                     [](const SideOp& a, const SideOp& b) { return a.op.time_ns < b.op.time_ns; });
  }
  int64_t side_time() const {
    return next_side < side.size() ? side[next_side].op.time_ns : kNever;
  }

  // Makes `run` have a row, if there is one.
  bool fill() { return run.begin < run.end || calls.next_run(run); }

  schema::CallReader calls;
  schema::CallRun run;
  std::vector<SideOp> side;
  size_t next_side = 0;
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
      threads_made_(parent_at_fork.threads_made_),
      last_thread_(parent_at_fork.last_thread_),
      forks_(true) {}

RecordedOps::~RecordedOps() = default;

void RecordedOps::add_fork(std::vector<Op>& ops) {
  Op op;
  op.kind = OpKind::kFork;
  op.time_ns = ops.empty() ? 0 : ops.back().time_ns;
  op.thread = last_thread_;
  ops.push_back(op);
  adopts_thread_ = true;
}

bool RecordedOps::open_next_part(std::vector<Op>& ops) {
  if (part_ != nullptr) add_side_ops(kNever, ops);
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
  while (ops.size() < kChunkOps) {
    if (part_ == nullptr || !part_->fill()) {
      // What follows the last call waits for its time, too.
      if (part_ != nullptr && time_limit_ns_ != kNever) {
        add_side_ops(time_limit_ns_, ops);
        break;
      }
      if (!open_next_part(ops)) {
        part_.reset();
        break;
      }
    } else if (part_->run.batch->time_ns[part_->run.begin] > time_limit_ns_) {
      add_side_ops(time_limit_ns_, ops);
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
    if (part_->side_time() <= batch.time_ns[row]) add_side_ops(batch.time_ns[row], ops);
    // The plan is of the process's own part, which is the last one.
    if (plan_ != nullptr && line_.empty()) add_touches(batch.time_ns[row], ops);
    add_call(batch, row, ops);
  }
}

void RecordedOps::add_side_ops(int64_t time_ns, std::vector<Op>& ops) {
  while (part_->side_time() <= time_ns && part_->next_side < part_->side.size()) {
    const SideOp& side = part_->side[part_->next_side++];
    // A thread that made no call has nothing to give back.
    if (side.op.kind == OpKind::kThreadEnd &&
        (side.thread_row >= threads_.size() || threads_[side.thread_row] == 0)) {
      continue;
    }
    ops.push_back(side.op);
    ops.back().thread = thread_of(side.thread_row);
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
    op.thread = last_thread_;
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
  Op op;
  op.time_ns = batch.time_ns[row];
  op.event = batch.kind[row];
  op.failed = (batch.flags[row] & schema::kFailed) != 0;
  op.thread = thread_of(batch.thread[row]);
  op.size = batch.size[row];
  op.alignment = batch.alignment[row];
  const uint64_t id = batch.id[row];
  const uint64_t ended_id = batch.ended_id[row];
  // First, so that its number is free for the new one: a model ends before it begins, too.
  if (ended_id != 0) op.old_block = end_block(ended_id);
  if (id != 0) op.block = begin_block(id);
  switch (op.event) {
    case EventKind::kCalloc:
      op.kind = OpKind::kZeroed;
      break;
    case EventKind::kRealloc:
    case EventKind::kReallocarray:
      op.kind = op.old_block != Op::kNoBlock ? OpKind::kResize : OpKind::kAllocate;
      break;
    case EventKind::kPvalloc:
      op.size = op.size == 0 ? kPageBytes : base::align_up(op.size, kPageBytes);
      op.kind = OpKind::kAligned;
      break;
    default:
      op.kind = op.alignment != 0 ? OpKind::kAligned : OpKind::kAllocate;
      break;
  }
  if (id == 0 && !op.failed) {
    if (op.old_block == Op::kNoBlock) return;  // Of a block that began before the recording.
    op.kind = OpKind::kRelease;
    op.block = op.old_block;
    op.old_block = Op::kNoBlock;
  }
  ops.push_back(op);
  if (plan_ != nullptr && op.kind != OpKind::kRelease) {
    add_assumed_touch(ops.back(), id, batch.stack[row], ops);
  }
}

uint32_t RecordedOps::thread_of(uint32_t row) {
  if (row >= threads_.size()) threads_.resize(row + 1, 0);
  if (threads_[row] == 0) {
    threads_[row] = (adopts_thread_ ? last_thread_ : threads_made_++) + 1;
    adopts_thread_ = false;
  }
  return last_thread_ = threads_[row] - 1;
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
  free_blocks_.push_back(block);
  return block;
}

}  // namespace heapledger::analyzer
