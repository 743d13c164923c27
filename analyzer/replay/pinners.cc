// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/pinners.h"

#include <malloc.h>

#include <algorithm>
#include <map>
#include <unordered_map>

namespace heapledger::analyzer {

namespace {

constexpr size_t kRowsMax = 50;                          // Of the brk heap,
constexpr size_t kHeapRowsMax = 10;                      // of another one.
constexpr uint64_t kReservedBytes = uint64_t{64} << 20;  // What glibc reserves for a heap.

// What a trim of a top of this size gives back: all but top_pad, the smallest chunk and rounding.
uint64_t returned(uint64_t top_bytes, const TrimSettings& trim) {
  if (top_bytes < trim.trim_threshold || top_bytes <= kChunkBytesMin + 1) return 0;
  const uint64_t spare = top_bytes - kChunkBytesMin - 1;
  if (spare <= trim.top_pad) return 0;
  return (spare - trim.top_pad) / kPageBytes * kPageBytes;
}

struct Segment {
  uint64_t start, end;
};

// One heap that gives back at its end: its memory in order of age, mostly one piece.
class HeapEnd {
 public:
  HeapEnd(const HeapState& state, std::vector<Segment> segments, const TrimSettings& trim)
      : state_(state), segments_(std::move(segments)), trim_(trim) {}

  // Calls visit(start, end) for the memory that goes back if everything in use ends at `floor`,
  // which lies in (or at the start of) segment `at`.
  template <typename Visit>
  void each_returned(size_t at, uint64_t floor, Visit visit) const {
    for (size_t i = segments_.size(); i-- > at;) {
      const Segment& segment = segments_[i];
      if (i > at && is_deletable(i, at, floor)) {
        visit(segment.start, segment.end);
        continue;
      }
      const uint64_t bytes = returned(segment.end - (i == at ? floor : segment.start), trim_);
      if (bytes != 0) visit(segment.end - bytes, segment.end);
      return;
    }
  }

  uint64_t returned_bytes(size_t at, uint64_t floor) const {
    uint64_t bytes = 0;
    each_returned(at, floor, [&](uint64_t start, uint64_t end) { bytes += end - start; });
    return bytes;
  }
  uint64_t resident_bytes(size_t at, uint64_t floor) const {
    uint64_t bytes = 0;
    each_returned(at, floor, [&](uint64_t start, uint64_t end) {
      bytes += state_.memory().resident().bytes(start, end);
    });
    return bytes;
  }
  const std::vector<Segment>& segments() const { return segments_; }

 private:
  // An empty heap goes as a whole if the one before has room for the next requests.
  bool is_deletable(size_t heap, size_t at, uint64_t floor) const {
    const Segment& before = segments_[heap - 1];
    const uint64_t free_bytes = before.end - (heap - 1 == at ? floor : before.start);
    const uint64_t held = before.end - before.start;
    const uint64_t room = free_bytes + (kReservedBytes - std::min(kReservedBytes, held));
    return room >= trim_.top_pad + kChunkBytesMin + kPageBytes;
  }

  const HeapState& state_;
  std::vector<Segment> segments_;
  const TrimSettings& trim_;
};

// Walks down from a heap's end.
class PinnerSearch {
 public:
  PinnerSearch(const HeapState& state, std::span<const HeapChunk> all, const HeapEnd& heap,
               int64_t at_ns, bool resident_known)
      : state_(state), heap_(heap), at_ns_(at_ns), resident_known_(resident_known) {
    for (size_t i = 0; i < heap.segments().size(); ++i) {
      const auto [start, end] = heap.segments()[i];
      auto it = std::lower_bound(all.begin(), all.end(), start,
                                 [](const HeapChunk& c, uint64_t a) { return c.block < a; });
      const auto last = std::lower_bound(
          it, all.end(), end, [](const HeapChunk& c, uint64_t a) { return c.block < a; });
      if (it == last) continue;
      parts_.push_back({count_, &*it, i});
      count_ += static_cast<size_t>(last - it);
    }
  }

  std::vector<Pinner> find(size_t rows_max) {
    std::vector<Pinner> rows;
    size_t left = count_;
    given_ = heap_.returned_bytes(place_below(left).first, place_below(left).second);
    if (resident_known_) given_resident_ = resident(left);
    while (left > 0 && rows.size() < rows_max) {
      const HeapChunk& top = chunk_at(left - 1);
      const Key key{top.stack, top.state};
      gone_.push_back(key);
      std::vector<uint32_t> members;
      for (; left > 0 && is_gone(chunk_at(left - 1)); --left) {
        if (is_of(chunk_at(left - 1), key)) members.push_back(static_cast<uint32_t>(left - 1));
      }
      rows.push_back(row(key, top, members, left));
    }
    return rows;
  }

 private:
  // The chunks of a segment that has some.
  struct Part {
    size_t first;  // Number of its first chunk, counted over all parts.
    const HeapChunk* chunks;
    size_t segment;
  };
  struct Key {
    uint32_t stack;
    ChunkState state;
  };

  static bool is_of(const HeapChunk& chunk, const Key& key) {
    return chunk.stack == key.stack && chunk.state == key.state;
  }
  bool is_gone(const HeapChunk& chunk) const {
    return std::any_of(gone_.begin(), gone_.end(),
                       [&](const Key& key) { return is_of(chunk, key); });
  }

  const Part& part_of(size_t number) const {
    size_t part = parts_.size() - 1;
    while (parts_[part].first > number) --part;
    return parts_[part];
  }
  const HeapChunk& chunk_at(size_t number) const {
    const Part& part = part_of(number);
    return part.chunks[number - part.first];
  }

  // Where the memory in use ends if of the chunks only the first `count` are left.
  std::pair<size_t, uint64_t> place_below(size_t count) const {
    if (count == 0) return {0, heap_.segments().front().start};
    return {part_of(count - 1).segment, chunk_at(count - 1).end};
  }
  uint64_t resident(size_t count) const {
    const auto [segment, floor] = place_below(count);
    return heap_.resident_bytes(segment, floor);
  }

  Pinner row(const Key& key, const HeapChunk& top, const std::vector<uint32_t>& members,
             size_t left) {
    Pinner pinner;
    pinner.stack = key.stack;
    pinner.state = key.state;
    pinner.thread = top.thread;
    pinner.blocks = members.size();
    for (const uint32_t member : members) {
      const HeapChunk& chunk = chunk_at(member);
      pinner.own_bytes += chunk.end - chunk.start();
      if (chunk.is_live()) pinner.age_ns = std::max(pinner.age_ns, at_ns_ - chunk.time_ns);
    }
    const auto [segment, floor] = place_below(left);
    const uint64_t total = heap_.returned_bytes(segment, floor);
    pinner.held_bytes = total - std::min(total, given_);
    if (resident_known_) {
      const uint64_t total_resident = resident(left);
      pinner.held_resident_bytes = total_resident - std::min(total_resident, given_resident_);
      given_resident_ = std::max(given_resident_, total_resident);
    }
    const size_t stays = highest_staying(members, pinner);
    if (key.state == ChunkState::kLive) {
      uint64_t freed = total;
      if (stays != 0) {
        const auto [at, end] = place_below(stays);
        freed = heap_.returned_bytes(at, end);
      }
      pinner.bytes_released_if_freed = freed - std::min(freed, given_);
    }
    given_ = std::max(given_, total);
    return pinner;
  }

  // One more than the index of the highest of `members` that keeps its place when all of them are
  // freed, lowest first; 0: none does.
  size_t highest_staying(const std::vector<uint32_t>& members, Pinner& pinner) const {
    if (pinner.state != ChunkState::kLive) {
      pinner.cached_blocks = members.size();
      return 0;
    }
    const FreedChunks& rules = state_.freed_chunks();
    std::map<std::pair<uint32_t, uint64_t>, size_t> room;
    size_t cached = 0;
    size_t fast = 0;
    bool merges = false;
    for (size_t i = members.size(); i-- > 0;) {
      const HeapChunk& chunk = chunk_at(members[i]);
      const uint64_t bytes = chunk.end - chunk.start();
      bool goes_to_cache = false;
      if (rules.is_cacheable(chunk.policy_bytes)) {
        const auto [found, fresh] = room.try_emplace({chunk.thread, bytes}, 0);
        if (fresh) found->second = rules.cache_room(chunk.thread, bytes);
        goes_to_cache = found->second > 0;
        if (goes_to_cache) --found->second;
      }
      if (goes_to_cache) {
        cached = std::max(cached, members[i] + size_t{1});
        ++pinner.cached_blocks;
      } else if (rules.is_fast(chunk.policy_bytes)) {
        fast = std::max(fast, members[i] + size_t{1});
        ++pinner.cached_blocks;
      } else {
        // Merging with much free memory empties the fastbins.
        merges = true;
      }
    }
    return merges ? cached : std::max(cached, fast);
  }

  const HeapState& state_;
  const HeapEnd& heap_;
  int64_t at_ns_;
  bool resident_known_;
  std::vector<Part> parts_;
  size_t count_ = 0;  // Of chunks.
  std::vector<Key> gone_;
  uint64_t given_ = 0, given_resident_ = 0;
};

// The brk heap's last piece: where something else moved the break, it goes on behind that.
std::optional<Segment> break_segment(const MemoryMap& memory) {
  const uint64_t end = memory.break_end();
  if (end == 0) return std::nullopt;
  const HeldRange* range = memory.held().find(end - 1);
  if (range == nullptr || range->kind != RangeKind::kBreak) return std::nullopt;
  for (const auto& [start, held] : memory.held().ranges()) {
    if (&held == range) return Segment{start, end};
  }
  return std::nullopt;
}

void add_holders(std::span<const PageHolder> page, uint64_t free_bytes,
                 std::unordered_map<uint32_t, PageHolder>& holders) {
  uint64_t live = 0;
  for (const PageHolder& part : page) live += part.live_bytes;
  uint64_t left = free_bytes;
  for (size_t i = 0; i < page.size(); ++i) {
    const uint64_t share =
        i + 1 == page.size() ? left : free_bytes * page[i].live_bytes / std::max<uint64_t>(live, 1);
    left -= share;
    PageHolder& holder = holders[page[i].stack];
    holder.stack = page[i].stack;
    ++holder.pages;
    holder.live_bytes += page[i].live_bytes;
    holder.free_bytes += share;
  }
}

}  // namespace

std::vector<Pinner> find_pinners(const HeapState& state, std::span<const HeapChunk> chunks,
                                 const TrimSettings& trim, int64_t at_ns, bool resident_known) {
  std::vector<Pinner> pinners;
  const auto search = [&](std::vector<Segment> segments, uint64_t address, size_t rows_max) {
    const HeapEnd heap(state, std::move(segments), trim);
    for (Pinner& pinner : PinnerSearch(state, chunks, heap, at_ns, resident_known).find(rows_max)) {
      pinner.heap = address;
      pinners.push_back(pinner);
    }
  };
  const MemoryMap& memory = state.memory();
  if (const auto segment = break_segment(memory)) search({*segment}, 0, kRowsMax);
  for (const std::vector<uint64_t>& chain : trim.heap_chains) {
    std::vector<Segment> segments;
    for (const uint64_t heap : chain) {
      if (const HeldRange* range = memory.held().find(heap)) segments.push_back({heap, range->end});
    }
    if (!segments.empty()) search(std::move(segments), chain.back(), kHeapRowsMax);
  }
  return pinners;
}

std::vector<PageHolder> find_page_holders(const HeapState& state,
                                          std::span<const HeapChunk> chunks) {
  std::unordered_map<uint32_t, PageHolder> holders;
  std::vector<PageHolder> page;  // Who is on the page at hand.
  uint64_t current = UINT64_MAX;
  const MemoryMap& memory = state.memory();
  const HeldRange* range = nullptr;
  uint64_t used = 0;  // Bytes of chunks in use on it, freed ones not counted.
  const auto finish = [&] {
    if (current != UINT64_MAX && !page.empty() && memory.resident().contains(current)) {
      if (used < kPageBytes) add_holders(page, kPageBytes - used, holders);
    }
    page.clear();
    used = 0;
  };
  const auto add = [&](uint64_t at, uint64_t bytes, uint32_t stack) {
    if (at != current) finish();
    current = at;
    used += bytes;
    for (PageHolder& part : page) {
      if (part.stack != stack) continue;
      part.live_bytes += bytes;
      return;
    }
    page.push_back({stack, 0, bytes, 0});
  };
  for (const HeapChunk& chunk : chunks) {
    if (!chunk.is_live()) continue;
    if (range == nullptr || chunk.block >= range->end) range = memory.held().find(chunk.block);
    if (range == nullptr || range->kind == RangeKind::kMapped) continue;
    // Only the pages at its ends can have free bytes.
    const uint64_t first = chunk.start() / kPageBytes * kPageBytes;
    const uint64_t last = (chunk.end - 1) / kPageBytes * kPageBytes;
    add(first, std::min(chunk.end, first + kPageBytes) - chunk.start(), chunk.stack);
    if (last != first) add(last, chunk.end - last, chunk.stack);
  }
  finish();
  std::vector<PageHolder> rows;
  rows.reserve(holders.size());
  for (const auto& [stack, holder] : holders) rows.push_back(holder);
  std::sort(rows.begin(), rows.end(), [](const PageHolder& a, const PageHolder& b) {
    return a.free_bytes != b.free_bytes ? a.free_bytes > b.free_bytes : a.stack < b.stack;
  });
  return rows;
}

TrimSettings trim_settings_at(schema::Database& db, const ProcessInfo& process, int64_t time_ns) {
  TrimSettings settings;
  if (process.trim_threshold) {
    settings.trim_threshold = static_cast<uint64_t>(*process.trim_threshold);
  }
  if (process.top_pad) settings.top_pad = static_cast<uint64_t>(*process.top_pad);
  schema::Statement select = db.prepare(
      "SELECT kind, old_value, new_value FROM policy_event WHERE process = ? AND time_ns <= ?"
      " AND kind IN ('threshold raised', 'setting changed', 'heap created', 'heap destroyed')"
      " ORDER BY time_ns, rowid");
  select.bind_all(process.id, time_ns);
  std::map<uint64_t, std::vector<uint64_t>> chains;  // By their last heap.
  while (select.step()) {
    const std::string kind = select.column_text(0);
    const uint64_t before = select.column_uint(1);
    const uint64_t value = select.column_uint(2);
    if (kind == "threshold raised") {
      settings.trim_threshold = 2 * value;
    } else if (kind == "heap created") {
      std::vector<uint64_t> chain;
      if (auto found = chains.extract(before); before != 0 && !found.empty()) {
        chain = std::move(found.mapped());
      }
      chain.push_back(value);
      chains[value] = std::move(chain);
    } else if (kind == "heap destroyed") {
      auto found = chains.extract(before);
      if (found.empty() || found.mapped().size() < 2) continue;
      found.mapped().pop_back();
      chains[found.mapped().back()] = std::move(found.mapped());
    } else if (static_cast<int64_t>(before) == M_TRIM_THRESHOLD) {
      settings.trim_threshold = value;
    } else if (static_cast<int64_t>(before) == M_TOP_PAD) {
      settings.top_pad = value;
    }
  }
  for (auto& [last, chain] : chains) settings.heap_chains.push_back(std::move(chain));
  return settings;
}

}  // namespace heapledger::analyzer
