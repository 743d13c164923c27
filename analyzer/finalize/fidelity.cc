// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/fidelity.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>

namespace heapledger::analyzer {

namespace {

// All processes, each fork's child in the middle of its parent: the model is put back afterwards.
class Family {
 public:
  Family(schema::Database& db, const TraceInfo& info)
      : db_(db), info_(info), cpus_(static_cast<size_t>(schema::meta_int(db, "cpus").value_or(1))) {
    for (const ProcessInfo& process : info.processes) {
      if (is_forked(process)) children_[*process.parent].push_back(&process);
    }
    for (auto& [parent, children] : children_) {
      std::stable_sort(children.begin(), children.end(),
                       [](const auto* a, const auto* b) { return *a->start_ns < *b->start_ns; });
    }
  }

  std::vector<Fidelity> run() {
    for (const ProcessInfo& process : info_.processes) {
      if (process.recorded && !is_forked(process)) afresh_.push_back(&process);
    }
    for (size_t i = 0; i < afresh_.size(); ++i) play_afresh(*afresh_[i]);  // It grows meanwhile.
    std::sort(results_.begin(), results_.end(),
              [](const Fidelity& a, const Fidelity& b) { return a.process < b.process; });
    return std::move(results_);
  }

 private:
  // What lies deeper is played from its beginning: an image per generation takes memory.
  static constexpr int kDepthMax = 32;

  bool is_forked(const ProcessInfo& process) const {
    // Only a damaged trace has a parent that came later.
    return process.recorded && process.forked && process.parent && process.start_ns &&
           *process.parent < process.id && info_.process(*process.parent).recorded;
  }

  void play_afresh(const ProcessInfo& process) {
    ModelOptions options;
    options.layout = LayoutKind::kGlibc;
    options.settings = recorded_settings(db_, info_, process.id);
    options.cpus = cpus_;
    // One at a time: room for whatever a program may have reserved.
    options.space.break_bytes = size_t{1} << 40;
    options.space.map_bytes = size_t{1} << 43;
    const std::unique_ptr<Model> model = make_model(options);
    // What is damaged is noted where the process is replayed.
    RecordedOps reader(db_, info_, process.id, [](const schema::Damage&) {});
    play(process, reader, *model, 0);
  }

  // A process and its descendants. Before its last child the process itself is played to its end:
  // nothing of it has to be kept then, however long the line of only children is.
  void play(const ProcessInfo& first, RecordedOps& first_reader, Model& model, int depth) {
    const ProcessInfo* process = &first;
    RecordedOps* reader = &first_reader;
    std::unique_ptr<RecordedOps> last_reader;
    for (auto found = children_.find(process->id); found != children_.end();
         found = children_.find(process->id)) {
      const std::vector<const ProcessInfo*>& children = found->second;
      for (size_t i = 0; i + 1 < children.size(); ++i) {
        play_child(*children[i], *reader, model, depth);
      }
      const ProcessInfo* last = children.back();
      advance(*reader, model, *last->start_ns);
      const std::unique_ptr<ModelImage> image = model.save();
      auto child_reader = std::make_unique<RecordedOps>(*reader, last->id);
      play_rest(*process, *reader, model);
      model.restore(*image);
      last_reader = std::move(child_reader);
      reader = last_reader.get();
      process = last;
    }
    play_rest(*process, *reader, model);
  }

  void play_child(const ProcessInfo& child, RecordedOps& reader, Model& model, int depth) {
    if (depth >= kDepthMax) {
      afresh_.push_back(&child);
      return;
    }
    advance(reader, model, *child.start_ns);
    const std::unique_ptr<ModelImage> image = model.save();
    RecordedOps child_reader(reader, child.id);
    play(child, child_reader, model, depth + 1);
    model.restore(*image);
  }

  void play_rest(const ProcessInfo& process, RecordedOps& reader, Model& model) {
    advance(reader, model, std::numeric_limits<int64_t>::max());
    results_.push_back({process.id, model.counts()});
  }

  void advance(RecordedOps& reader, Model& model, int64_t time_ns) {
    reader.set_time_limit(time_ns);
    std::vector<Op> ops;
    while (reader.next_chunk(ops)) model.run(ops);
  }

  schema::Database& db_;
  const TraceInfo& info_;
  size_t cpus_;
  std::map<int64_t, std::vector<const ProcessInfo*>> children_;
  std::vector<const ProcessInfo*> afresh_;  // Still to be played: a model takes address space.
  std::vector<Fidelity> results_;
};

}  // namespace

std::vector<Fidelity> compute_fidelity(schema::Database& db, const TraceInfo& info) {
  return Family(db, info).run();
}

FidelityPass::FidelityPass(schema::Database& db, const TraceInfo& info) : db_(db), info_(info) {
  std::error_code error;
  if (!std::filesystem::exists(db.path(), error)) return;
  // Opened here: the thread must not meet the pass's transaction half-way.
  schema::Database own = schema::open_trace(db.path(), schema::OpenMode::kReadOnly);
  thread_ = std::thread([this, own = std::move(own)]() mutable {
    try {
      results_ = compute_fidelity(own, info_);
    } catch (...) {
      error_ = std::current_exception();
    }
  });
}

FidelityPass::~FidelityPass() {
  if (thread_.joinable()) thread_.join();
}

void FidelityPass::finish() {
  if (thread_.joinable()) {
    thread_.join();
  } else {
    results_ = compute_fidelity(db_, info_);
  }
  if (error_) std::rethrow_exception(error_);
  schema::Statement insert = db_.prepare("INSERT INTO fidelity VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
  for (const Fidelity& row : results_) {
    const auto& calls = row.counts.calls;
    insert.run_with(row.process, row.counts.held_bytes_peak, calls[0], calls[1], calls[2], calls[3],
                    calls[4], calls[5]);
  }
}

}  // namespace heapledger::analyzer
