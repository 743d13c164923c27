// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/op_feed.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace heapledger::analyzer {

void OpQueue::push(OpPart part) {
  std::unique_lock lock(mutex_);
  // Who has waited goes on when half is gone: woken for each part, it would soon wait again.
  if (parts_.size() == kPartsMax) {
    changed_.wait(lock, [this] { return parts_.size() <= kPartsMax / 2 || is_closed_; });
  }
  if (is_closed_) return;
  parts_.push_back(std::move(part));
  const bool was_empty = parts_.size() == 1;
  lock.unlock();
  if (was_empty) changed_.notify_all();
}

bool OpQueue::pop(OpPart& part) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !parts_.empty() || is_closed_; });
  if (parts_.empty()) return false;
  part = std::move(parts_.front());
  parts_.pop_front();
  const bool is_half = parts_.size() == kPartsMax / 2;
  lock.unlock();
  if (is_half) changed_.notify_all();
  return true;
}

void OpQueue::close() {
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
  }
  changed_.notify_all();
}

std::vector<Op> OpQueue::take_spare() {
  const std::lock_guard lock(mutex_);
  if (spare_.empty()) return {};
  std::vector<Op> ops = std::move(spare_.back());
  spare_.pop_back();
  return ops;
}

void OpQueue::give_spare(std::vector<Op> ops) {
  ops.clear();
  const std::lock_guard lock(mutex_);
  if (spare_.size() < kPartsMax) spare_.push_back(std::move(ops));
}

OpFeed::OpFeed(schema::Database& db, int64_t process, std::vector<int64_t> moments, OpQueue& queue)
    : process_(process),
      moments_(std::move(moments)),
      side_(db, process, std::numeric_limits<int64_t>::max()),
      queue_(queue) {
  find_next_stop();
}

void OpFeed::find_next_stop() {
  const int64_t moment =
      next_moment_ < moments_.size() ? moments_[next_moment_] : std::numeric_limits<int64_t>::max();
  next_stop_ns_ = std::min(moment, side_.next_time());
}

// What is due before a call at `until_ns`: side operations of up to then, moments before it.
void OpFeed::pass_moments(int64_t until_ns) {
  for (; next_moment_ < moments_.size() && moments_[next_moment_] < until_ns; ++next_moment_) {
    side_.take_until(moments_[next_moment_], threads_, ops_);
    send(moments_[next_moment_], false);
  }
  side_.take_until(until_ns, threads_, ops_);
  find_next_stop();
}

void OpFeed::send(std::optional<int64_t> moment_ns, bool is_last) {
  queue_.push({process_, std::move(ops_), moment_ns, is_last});
  ops_ = queue_.take_spare();
  ops_.reserve(kPartOps);
}

void OpFeed::finish() {
  pass_moments(std::numeric_limits<int64_t>::max());
  send(std::nullopt, true);
}

}  // namespace heapledger::analyzer
