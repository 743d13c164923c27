// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/touching_frames.h"

#include <algorithm>
#include <iterator>

namespace heapledger::analyzer {

namespace {
constexpr int64_t kFirstFreeId = 2;  // 1 is "[incomplete]".
}

TouchingFrames::TouchingFrames(schema::Database& db) : db_(db) {
  schema::Statement modules =
      db.prepare("SELECT process, start_address, id, base, end_address FROM module");
  while (modules.step()) {
    modules_[{modules.column_int(0), modules.column_uint(1)}] = {
        modules.column_int(2), modules.column_uint(3), modules.column_uint(4)};
  }
  schema::Statement frames =
      db.prepare("SELECT module, offset, id FROM frame WHERE module IS NOT NULL");
  while (frames.step()) {
    frames_[{frames.column_int(0), frames.column_uint(1)}] = frames.column_int(2);
  }
  schema::Statement forks = db.prepare(
      "SELECT id, parent FROM process WHERE forked AND parent IS NOT NULL AND parent < id"
      " ORDER BY id");
  while (forks.step()) {
    // The nearest ancestor with modules: lines of forks are long, and few of them load any.
    int64_t ancestor = forks.column_int(1);
    const auto older = parents_.find(ancestor);
    if (older != parents_.end() && !has_modules(ancestor)) ancestor = older->second;
    parents_[forks.column_int(0)] = ancestor;
  }
  next_id_ = std::max(kFirstFreeId, db.query_int("SELECT max(id) + 1 FROM frame").value_or(0));
}

bool TouchingFrames::has_modules(int64_t process) const {
  const auto it = modules_.lower_bound({process, 0});
  return it != modules_.end() && it->first.first == process;
}

std::optional<int64_t> TouchingFrames::frame_of(int64_t process, uint64_t ip) {
  auto it = modules_.upper_bound({process, ip});
  if (it == modules_.begin() || std::prev(it)->first.first != process ||
      ip >= std::prev(it)->second.end) {
    const auto parent = parents_.find(process);
    return parent == parents_.end() ? std::nullopt : frame_of(parent->second, ip);
  }
  const Module& module = std::prev(it)->second;
  const uint64_t offset = ip + 1 - module.base;
  const auto [frame, fresh] = frames_.try_emplace({module.id, offset}, next_id_);
  if (fresh) {
    db_.prepare("INSERT INTO frame VALUES (?, ?, ?)").run_with(next_id_++, module.id, offset);
  }
  return frame->second;
}

}  // namespace heapledger::analyzer
