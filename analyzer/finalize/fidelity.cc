// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/fidelity.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <stdexcept>

#include "analyzer/replay/map_notes.h"

namespace heapledger::analyzer {

namespace {

// Of a model's memory that is not packed: small heaps, and what a large one uses often.
constexpr size_t kHotBytes = size_t{4} << 20;
constexpr size_t kAllHotTimes = 4;  // So much larger is what counts as small.

ModelOptions model_options(schema::Database& db, const TraceInfo& info, int64_t process,
                           LayoutKind layout, size_t hot_bytes) {
  ModelOptions options;
  options.layout = layout;
  options.settings = recorded_settings(db, info, process);
  options.cpus = static_cast<size_t>(schema::meta_int(db, "cpus").value_or(1));
  // One process at a time: room for whatever a program may have reserved.
  options.space.break_bytes = size_t{1} << 40;
  options.space.map_bytes = size_t{1} << 43;
  options.space.hot_bytes = hot_bytes;
  options.space.all_hot_bytes = kAllHotTimes * hot_bytes;
  return options;
}

// Both layouts over the same calls. The one of the recording is run only where somebody will ask
// for its free chunks, and up to then.
class ModelPair {
 public:
  // `hot_bytes`: see SpaceOptions.
  ModelPair(schema::Database& db, const TraceInfo& info, int64_t process, bool with_recorded,
            size_t hot_bytes = 0)
      : glibc_(make_model(model_options(db, info, process, LayoutKind::kGlibc, hot_bytes))) {
    if (!with_recorded) return;
    recorded_ = make_model(model_options(db, info, process, LayoutKind::kHeader16, hot_bytes));
    recorded_->set_sink([this](const heap::SimulatedCall& call, uint64_t) {
      if (call.name == heap::CallName::kMprotect && call.cause == heap::Cause::kNewHeap &&
          call.ok) {
        heaps_.push_back(call.address);
      }
    });
  }
  ModelPair(const ModelPair&) = delete;
  ModelPair& operator=(const ModelPair&) = delete;

  // Reads on, up to a moment.
  void advance(RecordedOps& reader, int64_t time_ns) {
    reader.set_time_limit(time_ns);
    while (reader.next_chunk(ops_)) run(ops_);
  }

  void run(std::span<const Op> ops) {
    if (ops.empty()) return;
    glibc_->run(ops);
    if (recorded_ != nullptr) recorded_->run(ops);
  }

  Model& glibc() { return *glibc_; }
  // No moment follows.
  void end_recorded() { recorded_.reset(); }

  // `heaps`: where the recording's arena heaps were made, in order.
  ModelMoment moment(int64_t process, int64_t time_ns, uint64_t heap_start,
                     const std::vector<uint64_t>& heaps) {
    ModelMoment moment{process, time_ns, glibc_->space().held_bytes(), {}};
    if (recorded_ == nullptr) return moment;
    std::map<uint64_t, uint64_t> places;  // The model's address -> the recording's.
    if (heap_start != 0) places[recorded_->space().break_begin()] = heap_start;
    for (size_t i = 0; i < std::min(heaps.size(), heaps_.size()); ++i) {
      places[heaps_[i]] = heaps[i];  // The last that was made at an address is the one there.
    }
    for (const FreePiece& piece : recorded_->free_pieces()) {
      const auto after = places.upper_bound(piece.start);
      if (after == places.begin()) continue;
      const auto& [from, to] = *std::prev(after);
      moment.free.push_back({piece.start - from + to, piece.end - from + to, piece.kind});
    }
    return moment;
  }

  struct Image {
    std::unique_ptr<ModelImage> glibc, recorded;
    std::vector<uint64_t> heaps;
  };
  Image save() const {
    return {glibc_->save(), recorded_ != nullptr ? recorded_->save() : nullptr, heaps_};
  }
  void restore(const Image& image) {
    glibc_->restore(*image.glibc);
    if (recorded_ != nullptr) recorded_->restore(*image.recorded);
    heaps_ = image.heaps;
  }

 private:
  std::unique_ptr<Model> glibc_;
  std::unique_ptr<Model> recorded_;
  std::vector<uint64_t> heaps_;  // Where the latter's arena heaps were made, in order.
  std::vector<Op> ops_;
};

uint64_t recorded_heap_start(const TraceInfo& info, int64_t process) {
  const ProcessInfo* at = &info.process(process);
  while (at->forked && at->parent && *at->parent < at->id) at = &info.process(*at->parent);
  return static_cast<uint64_t>(at->heap_start.value_or(0));
}

ModelMoment moment_of(const TraceInfo& info, MapNotes& notes, ModelPair& models, int64_t process,
                      int64_t time_ns) {
  return models.moment(process, time_ns, recorded_heap_start(info, process),
                       notes.heaps_at(process, time_ns));
}

bool is_forked(const TraceInfo& info, const ProcessInfo& process) {
  // Only a damaged trace has a parent that came later.
  return process.recorded && process.forked && process.parent && process.start_ns &&
         *process.parent < process.id && info.process(*process.parent).recorded;
}

// All processes, each fork's child in the middle of its parent: the models are put back afterwards.
class Family {
 public:
  Family(schema::Database& db, const TraceInfo& info, const ModelTimes& times, OpQueue* queue)
      : db_(db), info_(info), times_(times), queue_(queue), notes_(db, info) {
    for (const ProcessInfo& process : info.processes) {
      if (is_forked(info, process)) children_[*process.parent].push_back(&process);
    }
    for (auto& [parent, children] : children_) {
      std::stable_sort(children.begin(), children.end(),
                       [](const auto* a, const auto* b) { return *a->start_ns < *b->start_ns; });
    }
  }

  FidelityResults run() {
    for (const ProcessInfo* process : recorded_by_start(info_)) {
      if (!is_forked(info_, *process)) afresh_.push_back(process);
    }
    for (size_t i = 0; i < afresh_.size(); ++i) {  // It grows meanwhile.
      if (queue_ != nullptr && !afresh_[i]->forked && !children_.contains(afresh_[i]->id)) {
        play_fed(*afresh_[i]);
      } else {
        play_afresh(*afresh_[i]);
      }
    }
    std::sort(results_.processes.begin(), results_.processes.end(),
              [](const Fidelity& a, const Fidelity& b) { return a.process < b.process; });
    return std::move(results_);
  }

 private:
  // What lies deeper is played from its beginning: an image per generation takes memory.
  static constexpr int kDepthMax = 32;

  void play_fed(const ProcessInfo& process) {
    ModelPair models(db_, info_, process.id, times_.contains(process.id), kHotBytes);
    OpPart part;
    do {
      if (!queue_->pop(part)) return;  // The pass has failed: nobody will ask.
      if (part.process != process.id) throw std::logic_error("the models were fed another process");
      models.run(part.ops);
      queue_->give_spare(std::move(part.ops));
      if (!part.moment_ns) continue;
      results_.moments[{process.id, *part.moment_ns}] =
          moment_of(info_, notes_, models, process.id, *part.moment_ns);
      if (part.moment_ns == times_.at(process.id).back()) models.end_recorded();
    } while (!part.is_last);
    results_.processes.push_back({process.id, models.glibc().counts()});
  }

  void play_afresh(const ProcessInfo& process) {
    ModelPair models(db_, info_, process.id, !times_.empty());
    // What is damaged is noted where the process is replayed.
    RecordedOps reader(db_, info_, process.id, [](const schema::Damage&) {});
    play(process, reader, models, 0);
  }

  // A process and its descendants. Before its last child the process itself is played to its end:
  // nothing of it has to be kept then, however long the line of only children is.
  void play(const ProcessInfo& first, RecordedOps& first_reader, ModelPair& models, int depth) {
    const ProcessInfo* process = &first;
    RecordedOps* reader = &first_reader;
    std::unique_ptr<RecordedOps> last_reader;
    for (auto found = children_.find(process->id); found != children_.end();
         found = children_.find(process->id)) {
      const std::vector<const ProcessInfo*>& children = found->second;
      for (size_t i = 0; i + 1 < children.size(); ++i) {
        play_child(*process, *children[i], *reader, models, depth);
      }
      const ProcessInfo* last = children.back();
      advance(*process, *reader, models, *last->start_ns);
      const ModelPair::Image image = models.save();
      auto child_reader = std::make_unique<RecordedOps>(*reader, last->id);
      play_rest(*process, *reader, models);
      models.restore(image);
      last_reader = std::move(child_reader);
      reader = last_reader.get();
      process = last;
    }
    play_rest(*process, *reader, models);
  }

  void play_child(const ProcessInfo& parent, const ProcessInfo& child, RecordedOps& reader,
                  ModelPair& models, int depth) {
    if (depth >= kDepthMax) {
      afresh_.push_back(&child);
      return;
    }
    advance(parent, reader, models, *child.start_ns);
    const ModelPair::Image image = models.save();
    RecordedOps child_reader(reader, child.id);
    play(child, child_reader, models, depth + 1);
    models.restore(image);
  }

  void play_rest(const ProcessInfo& process, RecordedOps& reader, ModelPair& models) {
    advance(process, reader, models, std::numeric_limits<int64_t>::max());
    results_.processes.push_back({process.id, models.glibc().counts()});
  }

  // Up to a moment, with a stop at each time somebody wants to know of.
  void advance(const ProcessInfo& process, RecordedOps& reader, ModelPair& models,
               int64_t until_ns) {
    if (const auto found = times_.find(process.id); found != times_.end()) {
      size_t& next = next_time_[process.id];
      for (; next < found->second.size() && found->second[next] <= until_ns; ++next) {
        const int64_t time_ns = found->second[next];
        models.advance(reader, time_ns);
        results_.moments[{process.id, time_ns}] =
            moment_of(info_, notes_, models, process.id, time_ns);
      }
    }
    models.advance(reader, until_ns);
  }

  schema::Database& db_;
  const TraceInfo& info_;
  const ModelTimes& times_;
  OpQueue* queue_;
  std::map<int64_t, size_t> next_time_;  // By process, of its times.
  MapNotes notes_;
  std::map<int64_t, std::vector<const ProcessInfo*>> children_;
  std::vector<const ProcessInfo*> afresh_;  // Still to be played: a model takes address space.
  FidelityResults results_;
};

}  // namespace

std::vector<const ProcessInfo*> recorded_by_start(const TraceInfo& info) {
  std::vector<const ProcessInfo*> processes;
  for (const ProcessInfo& process : info.processes) {
    if (process.recorded) processes.push_back(&process);
  }
  std::stable_sort(processes.begin(), processes.end(), [](const auto* a, const auto* b) {
    return a->start_ns.value_or(0) < b->start_ns.value_or(0);
  });
  return processes;
}

FidelityResults compute_fidelity(schema::Database& db, const TraceInfo& info,
                                 const ModelTimes& times, OpQueue* queue) {
  return Family(db, info, times, queue).run();
}

ModelMoment model_at(schema::Database& db, const TraceInfo& info, int64_t process,
                     int64_t time_ns) {
  ModelPair models(db, info, process, true);
  RecordedOps reader(db, info, process, [](const schema::Damage&) {});
  models.advance(reader, time_ns);
  MapNotes notes(db, info);
  return moment_of(info, notes, models, process, time_ns);
}

FidelityPass::FidelityPass(schema::Database& db, const TraceInfo& info, ModelTimes times)
    : db_(db), info_(info), times_(std::move(times)) {
  std::error_code error;
  if (!std::filesystem::exists(db.path(), error)) return;
  for (const ProcessInfo& process : info.processes) {
    if (is_forked(info, process)) forking_.insert(*process.parent);
  }
  // Opened here: the thread must not meet the pass's transaction half-way.
  schema::Database own = schema::open_trace(db.path(), schema::OpenMode::kReadOnly);
  thread_ = std::thread([this, own = std::move(own)]() mutable {
    try {
      results_ = compute_fidelity(own, info_, times_, &queue_);
    } catch (...) {
      error_ = std::current_exception();
      queue_.close();
    }
  });
}

FidelityPass::~FidelityPass() {
  queue_.close();
  if (thread_.joinable()) thread_.join();
}

std::unique_ptr<OpFeed> FidelityPass::feed(const ProcessInfo& process) {
  if (!thread_.joinable() || process.forked || forking_.contains(process.id)) return nullptr;
  const auto times = times_.find(process.id);
  return std::make_unique<OpFeed>(
      db_, process.id, times == times_.end() ? std::vector<int64_t>() : times->second, queue_);
}

void FidelityPass::finish() {
  if (thread_.joinable()) {
    thread_.join();
  } else {
    results_ = compute_fidelity(db_, info_, times_);
  }
  if (error_) std::rethrow_exception(error_);
  schema::Statement insert = db_.prepare("INSERT INTO fidelity VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
  for (const Fidelity& row : results_.processes) {
    const auto& calls = row.counts.calls;
    insert.run_with(row.process, row.counts.held_bytes_peak, calls[0], calls[1], calls[2], calls[3],
                    calls[4], calls[5]);
  }
}

ModelMoment* FidelityPass::moment(int64_t process, int64_t time_ns) {
  const auto found = results_.moments.find({process, time_ns});
  return found == results_.moments.end() ? nullptr : &found->second;
}

}  // namespace heapledger::analyzer
