// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/touch_plan.h"

#include <algorithm>
#include <bit>

#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

namespace {

// In the number of resident pages that a block began with: the program touched pages behind them.
constexpr uint32_t kBeyondFront = 1U << 31;
// Such blocks show what their program touches: all but the page of their header was fresh.
bool is_sample(uint32_t front) { return front <= 1; }

size_t size_class(uint64_t bytes) { return static_cast<size_t>(std::bit_width(bytes) - 1); }

uint64_t pages_of(const Block& block) {
  const uint64_t first = block.address / kPageBytes;
  return (block.address + block.size - 1) / kPageBytes - first + 1;
}

// In another layout the block begins some bytes earlier or later in its page: its first byte of a
// page would be one of the page before.
uint64_t offset_of_page(const Block& block, uint64_t first_byte) {
  return std::min(first_byte + kPageBytes / 2, block.size - 1);
}

}  // namespace

class TouchPlan::Observer : public ReplayObserver {
 public:
  Observer(TouchPlan& plan, RecorderShare recorder) : plan_(plan), recorder_(std::move(recorder)) {}

  void on_begin(Replay& replay) override { replay_ = &replay; }

  void on_alloc(const schema::CallRow& call, const Block& block) override {
    first_call_ns_ = std::min(first_call_ns_, call.time_ns);
    if (block.size < kWideBytes) return;
    const uint64_t pages = pages_of(block);
    // With what faulted inside the call: the model makes such touches itself.
    const uint64_t resident =
        replay_->memory().resident().count(block.address, block.address + block.size);
    const uint64_t fresh = pages - std::min(pages, resident);
    plan_.fresh_pages_ += fresh;
    plan_.recycled_pages_ += pages - fresh;
    if (fresh == 0) return;
    const auto front = static_cast<uint32_t>(pages - fresh);
    plan_.recycled_front_.put(block.id, front);
    if (is_sample(front)) count(block, {fresh, 0});
  }

  void on_fault(const FaultFact& fault) override {
    if (fault.block_id == 0) {
      if (fault.region != Region::kOther || recorder_.has(fault.row.address)) return;
      if (recorder_.has(fault.row.ip)) {
        recorder_ns_.push_back(fault.row.time_ns);
        plan_.recorder_pages_.add(fault.row.address);
      } else {
        plan_.other_touches_.push_back({fault.row.time_ns, fault.row.address, false});
      }
      return;
    }
    if (fault.touch == schema::Touch::kZeroUpgrade || fault.touch == schema::Touch::kCow) {
      ++plan_.second_faults_;
      return;
    }
    if (fault.touch != schema::Touch::kFirst && fault.touch != schema::Touch::kRepeat) return;
    const Block* block = fault.block;
    if (block->size < kWideBytes || block->inherited) return;
    if (fault.row.address >= block->address + block->size) return;
    if (fault.row.time_ns <= block->time_ns) return;  // Inside the call.
    const uint32_t front = plan_.recycled_front_.find(block->id);
    if (front != FlatMap::kNone) {
      if (is_sample(front)) {
        count(*block, {0, 1});
      } else {
        plan_.recycled_front_.put(block->id, front | kBeyondFront);
      }
    }
    const uint64_t page = fault.row.address / kPageBytes * kPageBytes;
    plan_.touches_.push_back(
        {fault.row.time_ns, block->id,
         page > block->address ? offset_of_page(*block, page - block->address) : 0});
  }

  // Until it records the first call, what happens between the recorder's faults is its start-up.
  void mark_start_up() {
    if (recorder_ns_.empty()) return;
    const int64_t first = *std::min_element(recorder_ns_.begin(), recorder_ns_.end());
    int64_t last = first;
    for (const int64_t time_ns : recorder_ns_) {
      if (time_ns < first_call_ns_) last = std::max(last, time_ns);
    }
    for (OtherTouch& touch : plan_.other_touches_) {
      touch.by_start_up = first < touch.time_ns && touch.time_ns < last;
    }
  }

 private:
  void count(const Block& block, const Share& share) {
    plan_.by_stack_[block.stack] += share;
    plan_.by_size_[size_class(block.size)] += share;
    plan_.all_ += share;
  }

  TouchPlan& plan_;
  RecorderShare recorder_;
  const Replay* replay_ = nullptr;
  int64_t first_call_ns_ = INT64_MAX;
  std::vector<int64_t> recorder_ns_;  // Times of its faults.
};

TouchPlan TouchPlan::of(schema::Database& db, const TraceInfo& info, int64_t process) {
  TouchPlan plan;
  plan.known_ = info.faults_have_addresses();
  if (!plan.known_) return plan;
  Observer observer(plan, RecorderShare::of(db, process));
  ReplayOptions options;
  options.observer = &observer;
  Replay(db, info, process, options).run_to_end();
  observer.mark_start_up();
  // A fault inside a call is told when the call ends.
  const auto is_before = [](const auto& a, const auto& b) { return a.time_ns < b.time_ns; };
  std::stable_sort(plan.touches_.begin(), plan.touches_.end(), is_before);
  std::stable_sort(plan.other_touches_.begin(), plan.other_touches_.end(), is_before);
  return plan;
}

uint64_t TouchPlan::assumed_bytes(uint64_t id, uint64_t bytes, uint32_t stack) const {
  if (!known_) return bytes;
  const uint32_t front = recycled_front_.find(id);
  uint64_t reach = bytes;
  if (front != FlatMap::kNone) {
    reach = std::min<uint64_t>(bytes, (front & ~kBeyondFront) * kPageBytes);
    if ((front & kBeyondFront) != 0) return reach;
  }
  const auto found = by_stack_.find(stack);
  Share share = found == by_stack_.end() ? Share{} : found->second;
  if (share.fresh == 0) share = by_size_[size_class(bytes)];
  if (share.fresh == 0) share = all_;
  if (share.fresh == 0) return reach;
  const double part =
      std::min(1.0, static_cast<double>(share.touched) / static_cast<double>(share.fresh));
  return std::min(reach, static_cast<uint64_t>(static_cast<double>(bytes) * part));
}

}  // namespace heapledger::analyzer
