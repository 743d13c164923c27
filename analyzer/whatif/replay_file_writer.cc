// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/replay_file_writer.h"

#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "analyzer/whatif/recorded_ops.h"
#include "analyzer/whatif/touch_plan.h"
#include "schema/error.h"
#include "schema/replay_file.h"

namespace heapledger::analyzer {

namespace {

using schema::ReplayKind;
using schema::ReplayOp;

class Script {
 public:
  void add(const Op& op) {
    if (op.failed || op.kind == OpKind::kFork || op.kind == OpKind::kThreadEnd) return;
    begin_thread(op.thread);
    ReplayOp out;
    out.size = op.size;
    if (!translate(op, out)) return;
    threads_[op.thread].push_back(out);
  }

  void write(const std::string& path) const {
    const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "wbe"), &std::fclose);
    const auto put = [&](const void* data, size_t bytes) {
      if (file == nullptr || std::fwrite(data, 1, bytes, file.get()) != bytes) {
        throw schema::Error(path, std::strerror(errno));
      }
    };
    schema::ReplayHeader header;
    header.threads = static_cast<uint32_t>(threads_.size());
    header.slots = static_cast<uint32_t>(turns_.size());
    put(&header, sizeof header);
    uint64_t offset = sizeof header + threads_.size() * sizeof(schema::ReplayThread);
    for (const auto& ops : threads_) {
      const schema::ReplayThread part{offset, ops.size()};
      put(&part, sizeof part);
      offset += ops.size() * sizeof(ReplayOp);
    }
    for (const auto& ops : threads_) {
      if (!ops.empty()) put(ops.data(), ops.size() * sizeof(ReplayOp));
    }
    if (std::fflush(file.get()) != 0) throw schema::Error(path, std::strerror(errno));
  }

  size_t threads() const { return threads_.size(); }

 private:
  void begin_thread(uint32_t thread) {
    if (thread < threads_.size()) {
      last_ = thread;
      return;
    }
    // Numbers are in order of appearance.
    threads_.resize(thread + 1);
    if (thread != 0) {
      ReplayOp start;
      start.kind = ReplayKind::kStartThread;
      start.slot = thread;
      threads_[last_].push_back(start);
    }
    last_ = thread;
  }

  uint32_t next_turn(uint32_t slot) {
    if (slot >= turns_.size()) turns_.resize(slot + 1, 0);
    return turns_[slot]++;
  }

  // False: there is nothing to make again.
  bool translate(const Op& op, ReplayOp& out) {
    switch (op.kind) {
      case OpKind::kAllocate:
        out.kind = ReplayKind::kAllocate;
        break;
      case OpKind::kZeroed:
        out.kind = ReplayKind::kZeroed;
        break;
      case OpKind::kAligned:
        out.kind = ReplayKind::kAligned;
        out.shift = static_cast<uint8_t>(std::bit_width(op.alignment | 1) - 1);
        break;
      case OpKind::kRelease:
        out.kind = ReplayKind::kRelease;
        break;
      case OpKind::kResize:
        out.kind = ReplayKind::kResize;
        out.old_slot = op.old_block;
        out.old_turn = next_turn(op.old_block);
        break;
      case OpKind::kTouch:
        out.kind = ReplayKind::kTouch;
        out.old_slot = static_cast<uint32_t>(op.alignment / kPageBytes);
        break;
      case OpKind::kForeignBreak:
        out.kind = ReplayKind::kBreak;
        return true;
      case OpKind::kSetOption:
        out.kind = ReplayKind::kSetOption;
        out.slot = op.block;
        return true;
      case OpKind::kTrim:
        out.kind = ReplayKind::kTrim;
        return true;
      default:
        return false;
    }
    if (op.block == Op::kNoBlock) return false;
    out.slot = op.block;
    out.turn = next_turn(op.block);
    const bool begins = op.kind != OpKind::kRelease && op.kind != OpKind::kTouch;
    // Wide blocks have touches of their own.
    out.fills = begins && op.size < kWideBytes;
    return true;
  }

  std::vector<std::vector<ReplayOp>> threads_;
  std::vector<uint32_t> turns_;  // Per slot: operations so far.
  uint32_t last_ = 0;            // Thread of the operation before.
};

}  // namespace

ReplayFileFacts write_replay_file(schema::Database& db, const TraceInfo& info, int64_t process,
                                  const std::string& path) {
  const TouchPlan plan = TouchPlan::of(db, info, process);
  RecordedOps reader(
      db, info, process, [](const schema::Damage&) {}, &plan);
  Script script;
  ReplayFileFacts facts;
  std::vector<Op> ops;
  while (reader.next_chunk(ops)) {
    for (const Op& op : ops) {
      script.add(op);
      if (op.kind != OpKind::kTouch) ++facts.operations;
    }
  }
  if (facts.operations == 0) throw schema::Error(db.path(), "it has no recorded calls to replay");
  script.write(path);
  facts.threads = static_cast<uint32_t>(script.threads());
  facts.unmatched_ends = reader.unmatched_ends();
  facts.touches_known = plan.is_known();
  return facts;
}

}  // namespace heapledger::analyzer
