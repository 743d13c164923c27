// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/side_ops.h"

#include <algorithm>
#include <string>

namespace heapledger::analyzer {

SideOps::SideOps(schema::Database& db, int64_t process, int64_t end_ns) {
  load_breaks(db, process, end_ns);
  load_thread_ends(db, process, end_ns);
  load_admin(db, process, end_ns);
  std::stable_sort(ops_.begin(), ops_.end(),
                   [](const SideOp& a, const SideOp& b) { return a.op.time_ns < b.op.time_ns; });
  find_next_time();
}

void SideOps::find_next_time() {
  next_time_ = next_ < ops_.size() ? ops_[next_].op.time_ns : INT64_MAX;
}

void SideOps::load_breaks(schema::Database& db, int64_t process, int64_t end_ns) {
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
      ops_.push_back({op, static_cast<uint32_t>(select.column_int(1))});
    }
    if (now > 0) before = now;
  }
}

void SideOps::load_thread_ends(schema::Database& db, int64_t process, int64_t end_ns) {
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
    ops_.push_back({op, static_cast<uint32_t>(select.column_int(1))});
  }
}

void SideOps::load_admin(schema::Database& db, int64_t process, int64_t end_ns) {
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
    ops_.push_back({op, static_cast<uint32_t>(select.column_int(1))});
  }
}

void SideOps::take_until(int64_t time_ns, ThreadNumbers& threads, std::vector<Op>& ops) {
  for (; next_ < ops_.size() && ops_[next_].op.time_ns <= time_ns; ++next_) {
    const SideOp& side = ops_[next_];
    // A thread that made no call has nothing to give back.
    if (side.op.kind == OpKind::kThreadEnd && !threads.has(side.thread_row)) continue;
    ops.push_back(side.op);
    ops.back().thread = threads.number_of(side.thread_row);
  }
  find_next_time();
}

}  // namespace heapledger::analyzer
