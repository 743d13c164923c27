// SPDX-License-Identifier: Apache-2.0
// The way of a call through the replay, from its end to its beginning: Replay::play_calls(), which
// is compiled for the types that watch it.
//
// A call takes part in a dozen small steps here and in its observer. As functions that find each
// other at run time they cost more than what they do, so whoever replays a hundred million calls
// has them compiled into one: ReplayOptions::player. Everybody else gets the one for any observer.
// Even small ones among them are not inlined by themselves, there being too many: play_calls() is
// flattened.
// Thread safety, cost: as Replay.
#pragma once

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "analyzer/replay/replay_streams.h"

namespace heapledger::analyzer {

inline schema::CallRow call_row(const schema::CallBatch& batch, size_t row) {
  schema::CallRow call;
  call.time_ns = call.ended_ns = batch.time_ns[row];
  call.thread = batch.thread[row];
  call.kind = batch.kind[row];
  call.flags = batch.flags[row];
  call.id = batch.id[row];
  call.address = batch.address[row];
  call.size = batch.size[row];
  call.usable = batch.usable[row];
  call.ended_id = batch.ended_id[row];
  call.old_address = batch.old_address[row];
  call.stack = batch.stack[row];
  return call;
}

inline void Replay::note_resident_peak() {
  if (memory_.resident_bytes() <= resident_peak_.bytes) return;
  resident_peak_.bytes = memory_.resident_bytes();
  resident_peak_.at_ns = now_ns_;
}

inline ChunkPlace Replay::place_of(const Block& block, Placing placing) {
  if (block.address - near_.start >= near_.end - near_.start) {
    const RangeMap::Map& ranges = memory_.held().ranges();
    const auto next = ranges.upper_bound(block.address);
    if (next == ranges.begin() || block.address >= std::prev(next)->second.end) return {};
    near_ = {std::prev(next)->first, std::prev(next)->second.end, std::prev(next)->second.kind};
  }
  constexpr int kHeapBits = 26;  // glibc's heaps are aligned to 64 MiB.
  ChunkPlace place;
  place.is_mapped = near_.kind == RangeKind::kMapped;
  place.arena = near_.kind == RangeKind::kHeap ? block.address >> kHeapBits : 0;
  // Asked for only where it decides: looking around is the dearest part.
  if (placing == Placing::kFreed && freed_.has_fast() && !freed_.is_fast(policy_bytes_of(block))) {
    place.merged_bytes = live_.gap_around(block.address, near_.start, near_.end);
  }
  return place;
}

inline void Replay::follow_chunks(uint32_t thread, const Block* ended, const Block* begun) {
  if (ended != nullptr && begun != nullptr && ended->address == begun->address) {
    // A realloc in place. What it cuts off is freed.
    if (ended->usable < begun->usable + kChunkBytesMin) return;
    Block rest = *begun;
    rest.address += begun->usable + kHeaderBytes;
    rest.usable = rest.size = ended->usable - begun->usable - kHeaderBytes;
    freed_.free(thread, rest, [&] { return place_of(rest, Placing::kFreed); });
    return;
  }
  if (begun != nullptr) {
    freed_.allocate(thread, *begun, [&] { return place_of(*begun, Placing::kAllocated); });
  }
  if (ended != nullptr) {
    freed_.free(thread, *ended, [&] { return place_of(*ended, Placing::kFreed); });
  }
}

// False: no fault waits for this block, of whatever thread. Some wait until the process ends, so
// this is asked for every block.
inline bool Replay::may_wait_for(const Block& block) {
  constexpr uint64_t kPagesMax = 8;  // To look at.
  const uint64_t start = block.address - std::min(block.address, kHeaderBytes);
  const uint64_t end = block.address + block.usable;
  if (end <= waiting_in_.first || start > waiting_in_.last) return false;
  const uint64_t last = end / kPageBytes;
  uint64_t page = start / kPageBytes;
  if (last - page >= kPagesMax) return true;
  for (; page <= last; ++page) {
    if (waiting_at(page) != 0) return true;
  }
  return false;
}

// `block` is for those who are compiled in: it never lies in memory then. Others get the live
// set's.
template <class Observer>
[[gnu::always_inline]] inline uint32_t Replay::begin_block(const schema::CallRow& row,
                                                           Observer* observer) {
  Block block{row.id, row.address, row.size, row.usable, row.time_ns, row.stack, row.thread};
  block.step = step_ + 1;
  const uint32_t place = live_.insert(block);
  if (place == LiveSet::kNone) return place;
  if (options_.faults && block.usable != 0) {
    memory_.note_used(block.address, block.address + block.usable);
  }
  if (observer != nullptr) observer->on_alloc(row, block);
  if (waiting_count_ != 0 && may_wait_for(block)) [[unlikely]]
    take_waiting(row.thread, live_.at(place));
  return place;
}

// Where it was, or kNone.
template <class Observer>
[[gnu::always_inline]] inline uint32_t Replay::end_block(const schema::CallRow& row,
                                                         Observer* observer) {
  const bool released = row.kind < schema::EventKind::kRealloc && row.id == 0;
  const uint32_t place = live_.take(row.ended_id, released ? row.address : row.old_address);
  if (place == LiveSet::kNone) {
    ++unmatched_ends_;
  } else if (observer != nullptr) {
    observer->on_end(row, live_.at(place));
  }
  return place;
}

// Plays the call; the places of the blocks that it ended and began.
template <class Observer>
[[gnu::always_inline]] inline std::pair<uint32_t, uint32_t> Replay::play_call(
    const schema::CallRow& row, Observer* observer) {
  const uint32_t ended_at = row.ended_id != 0 ? end_block(row, observer) : LiveSet::kNone;
  const Block* ended = ended_at != LiveSet::kNone ? &live_.at(ended_at) : nullptr;
  if (row.id == 0) {
    if (ended != nullptr) follow_chunks(row.thread, ended, nullptr);
    return {ended_at, LiveSet::kNone};
  }
  std::optional<Block> copy;  // The new block may take its place.
  if (ended != nullptr) ended = &copy.emplace(*ended);
  const uint32_t begun_at = begin_block(row, observer);
  follow_chunks(row.thread, ended, begun_at != LiveSet::kNone ? &live_.at(begun_at) : nullptr);
  return {ended_at, begun_at};
}

// Has the caches get the blocks that the next calls end, and where those are found that they begin.
[[gnu::always_inline]] inline void Replay::look_ahead() {
  constexpr size_t kAheadNumber = 18;
  constexpr size_t kAheadCell = 12;
  constexpr size_t kAheadBlock = 6;
  static_assert(kAheadNumber < kLookups);
  const Streams& in = *streams_;
  in.prefetch_rows();
  const size_t row = in.run.begin;
  lookups_[(row + kAheadNumber) % kLookups] = live_.begin_lookup(in.address_ahead(kAheadNumber));
  live_.find_cell(lookups_[(row + kAheadCell) % kLookups]);
  live_.prefetch(lookups_[(row + kAheadBlock) % kLookups]);
}

// As many calls as come before anything else. They change nothing about pages.
template <class Observer, class Calls>
[[gnu::flatten]] void Replay::play_calls(Replay& replay, int64_t last_ns, uint64_t step_max) {
  Streams& in = *replay.streams_;
  Observer* observer = replay.own_ ? static_cast<Observer*>(replay.options_.observer) : nullptr;
  Calls* calls = replay.own_ ? static_cast<Calls*>(replay.options_.calls) : nullptr;
  replay.note_resident_peak();
  while (in.call_time <= last_ns && replay.step_ < step_max) {
    const schema::CallBatch& batch = *in.run.batch;
    replay.lookups_ = {};
    do {
      replay.look_ahead();
      const schema::CallRow row = call_row(batch, in.run.begin);
      replay.now_ns_ = row.time_ns;
      if (observer != nullptr) observer->on_call(row);
      const auto [ended, begun] = replay.play_call(row, observer);
      if (calls != nullptr) calls->on_played(batch, in.run.begin, ended, begun);
      ++replay.step_;
      if (observer != nullptr) observer->on_call_step(replay);
    } while (++in.run.begin < in.run.end && batch.time_ns[in.run.begin] <= last_ns &&
             replay.step_ < step_max);
    in.seek_call();
  }
  if (observer != nullptr) observer->on_calls_end(replay);
}

}  // namespace heapledger::analyzer
