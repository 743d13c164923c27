// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/sweep_lane.h"

#include <algorithm>
#include <utility>

namespace heapledger::analyzer {

SweepLane::SweepLane(const Plan& plan, size_t cpus, const CallCost& cost)
    : cost_(cost), order_(plan.order), jitter_(plan.jitter), random_(plan.jitter) {
  row_.choice = plan.choice;
  ModelOptions options;
  options.layout = LayoutKind::kGlibc;
  options.settings = plan.choice.settings;
  options.cpus = cpus;
  options.space.residency = true;
  options.touched_below = kWideBytes;
  model_ = make_model(options);
  model_->set_sink([this](const heap::SimulatedCall& call, uint64_t) { on_call(call); });
}

void SweepLane::run(const Chunk& chunk) {
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

SweepRow SweepLane::finish(int64_t ns_per_fault, uint64_t second_faults, uint64_t other_bytes_end) {
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

std::span<const Op> SweepLane::changed(std::span<const Op> ops) {
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

void SweepLane::run_part(std::span<const Op> ops, size_t end) {
  model_->run(ops.subspan(first_, end - first_));
  first_ = end;
}

// With what was not heap since the last time.
void SweepLane::note_peak() {
  const uint64_t heap = model_->space().resident_bytes_peak();
  row_.resident_bytes_peak = std::max(row_.resident_bytes_peak, heap);
  row_.rss_bytes_peak = std::max(row_.rss_bytes_peak, heap + other_bytes_);
  model_->space().restart_resident_peak();
}

void SweepLane::begin_own_part(int64_t time_ns) {
  row_.syscall_ns = 0;
  row_.resident_bytes_peak = row_.rss_bytes_peak = 0;
  held_integral_ = resident_integral_ = 0;
  held_peak_ = 0;
  inherited_faults_ = model_->space().faults();
  start_ns_ = last_ns_ = time_ns;
  has_begun_ = true;
}

// Mean values hold from one look to the next.
void SweepLane::sample(int64_t time_ns) {
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

void SweepLane::on_call(const heap::SimulatedCall& call) {
  row_.syscall_ns += cost_.ns(call);
  const size_t at = first_ + model_->position();
  sample(chunk_->ops[at].time_ns);
  if (held_ > held_peak_) {
    held_peak_ = held_;
    row_.external = std::max(0.0, 1 - static_cast<double>(chunk_->live_bytes[at]) / held_);
  }
}

}  // namespace heapledger::analyzer
