// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/sweep.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <deque>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

#include "analyzer/whatif/model.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

constexpr size_t kCombinationsMax = 10'000;
// Address space, not memory: each model reserves a third of a TiB of 128.
constexpr size_t kModelsAtOnce = 200;

// Operations, with the requested bytes that live after each.
struct Chunk {
  struct OtherStep {
    size_t op;       // The first one from then on.
    uint64_t bytes;  // RSS that is not heap.
  };
  std::vector<Op> ops;
  std::vector<uint64_t> live_bytes;
  std::vector<OtherStep> other_steps;
};

// Puts steps of what is not heap between the operations.
class OtherSteps {
 public:
  explicit OtherSteps(const std::vector<OtherRss::Step>& steps) : steps_(steps) {}

  void fill(Chunk& chunk) {
    chunk.other_steps.clear();
    for (size_t i = 0; i < chunk.ops.size() && next_ < steps_.size(); ++i) {
      const size_t before = next_;
      while (next_ < steps_.size() && steps_[next_].time_ns <= chunk.ops[i].time_ns) ++next_;
      if (next_ != before) chunk.other_steps.push_back({i, steps_[next_ - 1].bytes});
    }
  }

 private:
  const std::vector<OtherRss::Step>& steps_;
  size_t next_ = 0;
};

class LiveBytes {
 public:
  void fill(Chunk& chunk) {
    chunk.live_bytes.resize(chunk.ops.size());
    for (size_t i = 0; i < chunk.ops.size(); ++i) {
      apply(chunk.ops[i]);
      chunk.live_bytes[i] = live_;
    }
  }

 private:
  void apply(const Op& op) {
    switch (op.kind) {
      case OpKind::kAllocate:
      case OpKind::kZeroed:
      case OpKind::kAligned:
      case OpKind::kResize:
        if (op.failed) return;
        if (op.old_block != Op::kNoBlock) end(op.old_block);
        if (op.block != Op::kNoBlock) begin(op.block, op.size);
        break;
      case OpKind::kRelease:
        end(op.block);
        break;
      default:
        break;
    }
  }
  void begin(uint32_t block, uint64_t bytes) {
    if (block >= sizes_.size()) sizes_.resize(std::max<size_t>(1024, block * size_t{2}));
    sizes_[block] = bytes;
    live_ += bytes;
  }
  void end(uint32_t block) {
    if (block < sizes_.size()) live_ -= std::exchange(sizes_[block], 0);
  }

  std::vector<uint64_t> sizes_;
  uint64_t live_ = 0;
};

// One setting's model, and the books on it.
class Lane {
 public:
  // `jitter`: 0, or the seed of changed sizes.
  Lane(const SettingChoice& choice, size_t cpus, const CallCost& cost, uint32_t jitter)
      : cost_(cost), jitter_(jitter), random_(jitter) {
    row_.choice = choice;
    ModelOptions options;
    options.layout = LayoutKind::kGlibc;
    options.settings = choice.settings;
    options.cpus = cpus;
    options.space.residency = true;
    options.touched_below = kWideBytes;
    model_ = make_model(options);
    model_->set_sink([this](const heap::SimulatedCall& call, uint64_t) { on_call(call); });
  }

  void run(const Chunk& chunk) {
    chunk_ = &chunk;
    std::span<const Op> ops = chunk.ops;
    if (jitter_ != 0) ops = changed(ops);
    first_ = 0;
    auto step = chunk.other_steps.begin();
    for (size_t i = 0; i < ops.size(); ++i) {
      if (step != chunk.other_steps.end() && step->op == i) {
        run_part(ops, i);
        note_peak();
        other_bytes_ = (step++)->bytes;
      }
      // What the ancestors cost is not this process's.
      if (ops[i].kind != OpKind::kFork) continue;
      run_part(ops, i + 1);
      begin_own_part(ops[i].time_ns);
    }
    run_part(ops, ops.size());
    sample(ops.back().time_ns);
  }

  // `other_bytes_end`: RSS that is not heap, at the end.
  SweepRow finish(int64_t ns_per_fault, uint64_t second_faults, uint64_t other_bytes_end) {
    note_peak();
    other_bytes_ = other_bytes_end;
    note_peak();
    const ModelCounts counts = model_->counts();
    row_.calls = counts.calls;
    row_.held_bytes_peak = counts.held_bytes_peak;
    row_.faults = model_->space().faults() - inherited_faults_ + second_faults;
    row_.fault_ns = static_cast<double>(row_.faults) * static_cast<double>(ns_per_fault);
    const double lasted = static_cast<double>(last_ns_ - start_ns_);
    if (lasted > 0) {
      row_.held_bytes_mean = held_integral_ / lasted;
      row_.resident_bytes_mean = resident_integral_ / lasted;
    }
    return std::move(row_);
  }

 private:
  std::span<const Op> changed(std::span<const Op> ops) {
    constexpr uint64_t kChangedFrom = 32 << 10;
    std::uniform_real_distribution<double> factor(0.97, 1.03);
    changed_.assign(ops.begin(), ops.end());
    for (Op& op : changed_) {
      const bool has_size = op.kind == OpKind::kAllocate || op.kind == OpKind::kZeroed ||
                            op.kind == OpKind::kAligned || op.kind == OpKind::kResize;
      if (has_size && op.size >= kChangedFrom) {
        op.size = static_cast<uint64_t>(static_cast<double>(op.size) * factor(random_));
      }
    }
    return changed_;
  }

  void run_part(std::span<const Op> ops, size_t end) {
    model_->run(ops.subspan(first_, end - first_));
    first_ = end;
  }

  // With what was not heap since the last time.
  void note_peak() {
    const uint64_t heap = model_->space().resident_bytes_peak();
    row_.resident_bytes_peak = std::max(row_.resident_bytes_peak, heap);
    row_.rss_bytes_peak = std::max(row_.rss_bytes_peak, heap + other_bytes_);
    model_->space().restart_resident_peak();
  }

  void begin_own_part(int64_t time_ns) {
    row_.syscall_ns = 0;
    row_.resident_bytes_peak = row_.rss_bytes_peak = 0;
    held_integral_ = resident_integral_ = 0;
    held_peak_ = 0;
    inherited_faults_ = model_->space().faults();
    start_ns_ = last_ns_ = time_ns;
    has_begun_ = true;
  }

  // Mean values hold from one look to the next.
  void sample(int64_t time_ns) {
    if (!has_begun_) {
      start_ns_ = last_ns_ = time_ns;
      has_begun_ = true;
    }
    const auto lasted = static_cast<double>(std::max<int64_t>(0, time_ns - last_ns_));
    held_integral_ += lasted * held_;
    resident_integral_ += lasted * resident_;
    held_ = static_cast<double>(model_->space().held_bytes());
    resident_ = static_cast<double>(model_->space().resident_bytes());
    last_ns_ = std::max(last_ns_, time_ns);
  }

  void on_call(const heap::SimulatedCall& call) {
    row_.syscall_ns += cost_.ns(call);
    const size_t at = first_ + model_->position();
    sample(chunk_->ops[at].time_ns);
    if (held_ > held_peak_) {
      held_peak_ = held_;
      row_.external = std::max(0.0, 1 - static_cast<double>(chunk_->live_bytes[at]) / held_);
    }
  }

  const CallCost& cost_;
  const uint32_t jitter_;
  std::minstd_rand random_;
  std::vector<Op> changed_;
  SweepRow row_;
  std::unique_ptr<Model> model_;
  const Chunk* chunk_ = nullptr;
  size_t first_ = 0;  // Of the part of the chunk that the model runs.
  bool has_begun_ = false;
  int64_t start_ns_ = 0, last_ns_ = 0;
  double held_ = 0, resident_ = 0, held_peak_ = 0;
  double held_integral_ = 0, resident_integral_ = 0;
  uint64_t inherited_faults_ = 0;
  uint64_t other_bytes_ = 0;  // RSS that is not heap.
};

// Threads that run every lane over one chunk at a time.
class Crew {
 public:
  Crew(std::deque<Lane>& lanes, size_t threads)
      : lanes_(lanes), meet_(static_cast<ptrdiff_t>(threads + 1)) {
    for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Crew() {
    if (works_) meet_.arrive_and_wait();  // The reading of the next chunk threw.
    chunk_ = nullptr;
    meet_.arrive_and_wait();
  }

  // Returns at once; the chunk must stay until wait().
  void start(const Chunk& chunk) {
    chunk_ = &chunk;
    next_ = 0;
    works_ = true;
    meet_.arrive_and_wait();
  }
  void wait() {
    meet_.arrive_and_wait();
    works_ = false;
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void work() {
    for (;;) {
      meet_.arrive_and_wait();
      if (chunk_ == nullptr) return;
      try {
        for (size_t i = next_++; i < lanes_.size(); i = next_++) lanes_[i].run(*chunk_);
      } catch (...) {
        const std::scoped_lock lock(error_lock_);
        error_ = std::current_exception();
      }
      meet_.arrive_and_wait();
    }
  }

  std::deque<Lane>& lanes_;
  std::barrier<> meet_;
  const Chunk* chunk_ = nullptr;
  bool works_ = false;  // Only for the thread that starts and waits.
  std::atomic<size_t> next_{0};
  std::mutex error_lock_;
  std::exception_ptr error_;
  std::vector<std::jthread> threads_;  // Last: joined first.
};

uint64_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  uint64_t kib = 0;
  std::string unit;
  while (file >> name >> kib >> unit) {
    if (name == "MemAvailable:") return kib * 1024;
  }
  return uint64_t{1} << 30;
}

// A model stores the pages that the allocator writes headers to: at most what is held.
size_t models_at_once(schema::Database& db, int64_t process, size_t threads) {
  const auto held = static_cast<uint64_t>(
      db.query_int("SELECT max(held_bytes) FROM fragmentation WHERE process = " +
                   std::to_string(process))
          .value_or(0));
  const uint64_t each = std::max<uint64_t>(held, uint64_t{1} << 20);
  return std::clamp<size_t>(available_bytes() / 2 / each, threads, kModelsAtOnce);
}

class Sweep {
 public:
  Sweep(schema::Database& db, const TraceInfo& info, int64_t process, const SweepOptions& options)
      : db_(db),
        info_(info),
        process_(process),
        options_(options),
        threads_(options.threads != 0 ? options.threads
                                      : std::max(1U, std::thread::hardware_concurrency())),
        plan_(TouchPlan::of(db, info, process)) {}

  SweepResult run(int64_t ns_per_fault) {
    SweepResult result;
    result.ns_per_fault = ns_per_fault;
    result.call_cost = CallCost::of(db_, process_);
    result.touches_known = plan_.is_known();
    result.fresh_pages = plan_.fresh_pages();
    result.recycled_pages = plan_.recycled_pages();
    result.other_faults = plan_.other_touches().size();
    other_ = other_rss(db_, process_, RecorderShare::of(db_, process_), plan_.other_touches(),
                       plan_.recorder_pages());
    result.other_rss_bytes = other_.bytes;
    std::vector<SettingChoice> grid =
        setting_grid(recorded_settings(db_, info_, process_), options_.axes);
    first_jitter_ = grid.size();
    grid.insert(grid.end(), options_.jitters, grid.front());
    const size_t group = models_at_once(db_, process_, threads_);
    const size_t groups = (grid.size() + group - 1) / group;
    for (size_t i = 0; i < groups; ++i) {
      const size_t first = grid.size() * i / groups;
      const size_t last = grid.size() * (i + 1) / groups;
      done_before_ = static_cast<double>(first) / static_cast<double>(grid.size());
      part_ = static_cast<double>(last - first) / static_cast<double>(grid.size());
      run_group(std::span(grid).subspan(first, last - first), first, result);
    }
    const auto jittered = result.rows.begin() + static_cast<ptrdiff_t>(first_jitter_);
    result.jittered.assign(std::make_move_iterator(jittered),
                           std::make_move_iterator(result.rows.end()));
    result.rows.erase(jittered, result.rows.end());
    return result;
  }

 private:
  // `first`: the number of the first choice.
  void run_group(std::span<const SettingChoice> choices, size_t first, SweepResult& result) {
    const auto cpus = static_cast<size_t>(schema::meta_int(db_, "cpus").value_or(1));
    std::deque<Lane> lanes;  // A lane's model refers to it: it may not move.
    for (const SettingChoice& choice : choices) {
      const size_t jitter = first >= first_jitter_ ? first - first_jitter_ + 1 : 0;
      lanes.emplace_back(choice, cpus, result.call_cost, static_cast<uint32_t>(jitter));
      ++first;
    }
    // What is damaged is said by the notes on the trace.
    RecordedOps reader(
        db_, info_, process_, [](const schema::Damage&) {}, &plan_);
    LiveBytes live;
    OtherSteps others(other_.steps);
    uint64_t operations = 0;
    {
      Crew crew(lanes, std::min(threads_, lanes.size()));
      Chunk chunks[2];
      size_t now = 0;
      bool more = reader.next_chunk(chunks[now].ops);
      while (more) {
        live.fill(chunks[now]);
        others.fill(chunks[now]);
        crew.start(chunks[now]);
        operations += chunks[now].ops.size();
        report(chunks[now].ops.back().time_ns);
        now = 1 - now;
        more = reader.next_chunk(chunks[now].ops);
        crew.wait();
      }
    }
    for (Lane& lane : lanes) {
      result.rows.push_back(
          lane.finish(result.ns_per_fault, plan_.second_faults(), other_.steps.back().bytes));
    }
    result.operations = operations;
    result.unmatched_ends = reader.unmatched_ends();
  }

  void report(int64_t time_ns) const {
    if (!options_.progress || info_.end_ns <= 0) return;
    const double of_group = static_cast<double>(time_ns) / static_cast<double>(info_.end_ns);
    options_.progress(done_before_ + part_ * std::clamp(of_group, 0.0, 1.0));
  }

  schema::Database& db_;
  const TraceInfo& info_;
  int64_t process_;
  const SweepOptions& options_;
  size_t threads_;
  TouchPlan plan_;
  OtherRss other_;
  size_t first_jitter_ = 0;  // Number of the first choice whose sizes are changed.
  double done_before_ = 0, part_ = 1;
};

}  // namespace

uint64_t SweepRow::call_count() const {
  return std::accumulate(calls.begin(), calls.end(), uint64_t{0});
}

SweepResult sweep(schema::Database& db, const TraceInfo& info, int64_t process,
                  int64_t ns_per_fault, const SweepOptions& options) {
  size_t combinations = 1;
  for (const auto& words : options.axes) combinations *= std::max<size_t>(1, words.size());
  if (combinations > kCombinationsMax) {
    throw schema::Error("the lists", "more than 10,000 combinations");
  }
  return Sweep(db, info, process, options).run(ns_per_fault);
}

std::vector<size_t> pareto_front(const std::vector<SweepRow>& rows) {
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(rows[a].cost_ns(), rows[a].resident_bytes_peak) <
           std::pair(rows[b].cost_ns(), rows[b].resident_bytes_peak);
  });
  std::vector<size_t> front;
  uint64_t least = UINT64_MAX;
  for (const size_t row : order) {
    if (rows[row].resident_bytes_peak >= least) continue;
    least = rows[row].resident_bytes_peak;
    front.push_back(row);
  }
  return front;
}

}  // namespace heapledger::analyzer
