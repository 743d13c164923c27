// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/interleaving.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace heapledger::analyzer {

namespace {

// A thread is at most so many turns of every thread ahead or behind, and comes from there to the
// other side in no less than so many times as long: so its own times never go back.
constexpr double kReachTurns = 2;
constexpr double kSwingReaches = 8;
// By seed: no turn ends where its thread holds least, a third of them, two thirds. (All, which no
// program does, would leave nothing of how the recorded threads met.)
constexpr uint32_t kQuietShares = 3;

constexpr double kBefore = -std::numeric_limits<double>::infinity();

// Evenly spread over 0..1 (splitmix64).
double random_part(uint64_t number) {
  number += 0x9e3779b97f4a7c15;
  number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9;
  number = (number ^ (number >> 27)) * 0x94d049bb133111eb;
  return static_cast<double>((number ^ (number >> 31)) >> 11) * 0x1p-53;
}

size_t end_of_turn(std::span<const Op> ops, size_t begin) {
  size_t end = begin + 1;
  while (end < ops.size() && ops[end].thread == ops[begin].thread) ++end;
  return end;
}

template <class Value>
Value& at(std::vector<Value>& values, uint32_t number, Value none) {
  if (number >= values.size()) values.resize(number + size_t{1} + number / 2, none);
  return values[number];
}

bool is_of_blocks(const Op& op) { return op.kind <= OpKind::kResize || op.kind == OpKind::kTouch; }

}  // namespace

Interleaving::Interleaving(uint32_t seed)
    : seed_(seed), quiet_share_(static_cast<double>(seed % kQuietShares) / (kQuietShares - 1)) {}

void Interleaving::reorder(std::span<const Op> ops, std::vector<Op>& out) {
  out.clear();
  out.reserve(ops.size());
  size_t begin = 0;
  for (size_t i = 0; i < ops.size(); ++i) {
    if (ops[i].kind != OpKind::kFork) continue;
    reorder_part(ops.subspan(begin, i - begin), out);
    out.push_back(ops[i]);
    begin = i + 1;
  }
  reorder_part(ops.subspan(begin), out);
  for (size_t i = 0; i < out.size(); ++i) out[i].time_ns = ops[i].time_ns;
}

void Interleaving::reorder_part(std::span<const Op> ops, std::vector<Op>& out) {
  pieces_.clear();
  reach_ns_ = reach_ns(ops);
  std::fill(block_keys_.begin(), block_keys_.end(), kBefore);
  for (size_t begin = 0; begin < ops.size();) {
    const size_t end = end_of_turn(ops, begin);
    add_turn(ops, begin, end);
    begin = end;
  }
  // Pieces of one key stay in recorded order.
  std::stable_sort(pieces_.begin(), pieces_.end(),
                   [](const Piece& a, const Piece& b) { return a.key < b.key; });
  for (const Piece& piece : pieces_) {
    const auto part = ops.subspan(piece.begin, piece.end - piece.begin);
    out.insert(out.end(), part.begin(), part.end());
  }
}

// Of the time from one turn to the next the median, since a pause of all is no measure.
double Interleaving::reach_ns(std::span<const Op> ops) {
  threads_.clear();
  gaps_ns_.clear();
  size_t threads = 0;
  for (size_t begin = 0; begin < ops.size();) {
    ThreadState& thread = at(threads_, ops[begin].thread, {});
    if (thread.key == 0) ++threads;
    thread.key = thread.start_key = kBefore;
    const size_t end = end_of_turn(ops, begin);
    if (end < ops.size()) gaps_ns_.push_back(ops[end].time_ns - ops[begin].time_ns);
    begin = end;
  }
  if (gaps_ns_.empty()) return 0;
  const auto middle = gaps_ns_.begin() + static_cast<ptrdiff_t>(gaps_ns_.size() / 2);
  std::nth_element(gaps_ns_.begin(), middle, gaps_ns_.end());
  return kReachTurns * static_cast<double>(threads) * static_cast<double>(*middle);
}

// What comes after the quiet point goes on with the thread's next turn.
void Interleaving::add_turn(std::span<const Op> ops, size_t begin, size_t end) {
  const size_t quiet = quiet_point(ops, begin, end);
  const bool ends_quietly =
      random_part((uint64_t{seed_} << 48) ^ ~turns_++) < quiet_share_ && quiet != end;
  const size_t cut = ends_quietly ? quiet : end;
  ThreadState& thread = threads_[ops[begin].thread];
  if (begin < cut) add_piece(ops, begin, cut);
  if (cut == begin && thread.goes_on) return add_piece(ops, begin, end);
  thread.goes_on = false;
  if (cut < end) add_piece(ops, cut, end);
  thread.goes_on = cut < end;
}

void Interleaving::add_piece(std::span<const Op> ops, size_t begin, size_t end) {
  const uint32_t number = ops[begin].thread;
  ThreadState& thread = threads_[number];
  const int64_t time_ns = ops[begin].time_ns;
  if (!thread.goes_on) thread.start_key = static_cast<double>(time_ns) + lag_ns(number, time_ns);
  double key = std::max(thread.start_key, thread.key);
  const auto each_block = [&](auto act) {
    for (const Op& op : ops.subspan(begin, end - begin)) {
      if (!is_of_blocks(op)) continue;
      if (op.block != Op::kNoBlock) act(at(block_keys_, op.block, kBefore));
      if (op.old_block != Op::kNoBlock) act(at(block_keys_, op.old_block, kBefore));
    }
  };
  each_block([&](double block_key) { key = std::max(key, block_key); });
  each_block([&](double& block_key) { block_key = key; });
  thread.key = key;
  pieces_.push_back({begin, end, key});
}

// Behind which operation of its turn the thread holds least, by what it allocates and frees.
size_t Interleaving::quiet_point(std::span<const Op> ops, size_t begin, size_t end) {
  int64_t held = 0, least = 0;
  size_t point = begin;
  for (size_t i = begin; i < end; ++i) {
    const Op& op = ops[i];
    if (op.kind > OpKind::kResize || op.failed) continue;
    const uint32_t ended = op.kind == OpKind::kRelease ? op.block : op.old_block;
    if (ended != Op::kNoBlock) held -= static_cast<int64_t>(at<uint64_t>(block_bytes_, ended, 0));
    if (op.kind != OpKind::kRelease && op.block != Op::kNoBlock) {
      at<uint64_t>(block_bytes_, op.block, 0) = op.size;
      held += static_cast<int64_t>(op.size);
    }
    if (held <= least) {
      least = held;
      point = i + 1;
    }
  }
  return point;
}

// From one random lag to the next, evenly.
double Interleaving::lag_ns(uint32_t thread, int64_t time_ns) const {
  if (reach_ns_ <= 0) return 0;
  const double place = static_cast<double>(time_ns) / (kSwingReaches * reach_ns_);
  const double whole = std::floor(place);
  const uint64_t number = (uint64_t{seed_} << 48) ^ (uint64_t{thread} << 32) ^
                          static_cast<uint64_t>(static_cast<int64_t>(whole));
  const double from = random_part(number);
  const double to = random_part(number + 1);
  return (2 * std::lerp(from, to, place - whole) - 1) * reach_ns_;
}

}  // namespace heapledger::analyzer
