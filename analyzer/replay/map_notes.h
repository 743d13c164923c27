// SPDX-License-Identifier: Apache-2.0
// Two things that the calls of a recording say of its address spaces, beside the heap itself: what
// heapledger mapped for itself, and which heaps the arenas made. Of every process, with what a fork
// child inherits; read once, because a line of forks may be ten thousand long.
// Thread safety: none. Memory: the rows concerned, some per process.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "analyzer/trace_info.h"

namespace heapledger::analyzer {

using AddressRanges = std::vector<std::pair<uint64_t, uint64_t>>;  // Sorted, without overlaps.
// Address of an arena's heap -> number of the arena; the main arena is 1 and has none.
using ArenaHeaps = std::map<uint64_t, int>;

// From then on the heap at this address is the arena's; 0: it is nobody's.
struct ArenaChange {
  int64_t time_ns = 0;
  uint64_t heap = 0;
  int arena = 0;
};

class MapNotes {
 public:
  MapNotes(schema::Database& db, const TraceInfo& info);

  // Tables of the recorder and the allocator, as they are mapped at `time_ns`.
  AddressRanges own_at(int64_t process, int64_t time_ns);
  // Heaps made until then, in order; those that are gone are among them.
  std::vector<uint64_t> heaps_at(int64_t process, int64_t time_ns);
  ArenaHeaps arenas_at(int64_t process, int64_t time_ns);
  // Whose each heap was, by time; what a fork child inherits comes first.
  std::vector<ArenaChange> arena_history(int64_t process);

 private:
  struct Mapping {
    int64_t time_ns;
    uint64_t start, end;
    bool mapped;
  };
  // An mprotect of a reservation (previous 0), or the policy event that says which heap of the
  // same arena it follows.
  struct NewHeap {
    int64_t time_ns;
    uint64_t heap, previous;
  };
  struct State {
    AddressRanges own;
    std::vector<uint64_t> heaps;
    std::map<uint64_t, uint64_t> first;  // Heap -> the first heap of its arena.
    std::vector<uint64_t> order;         // First heaps as they came.
  };

  void load_mappings(schema::Database& db);
  void load_heaps(schema::Database& db);
  State state_at(int64_t process, int64_t time_ns);
  const State& state_at_fork(int64_t process);
  bool is_forked(const ProcessInfo& process) const;

  const TraceInfo& info_;
  std::map<int64_t, std::vector<Mapping>> mappings_;  // By process, in order of time.
  std::map<int64_t, std::vector<NewHeap>> heaps_;
  std::map<int64_t, std::vector<ArenaChange>> gone_;  // Heaps that were given back.
  std::map<int64_t, State> at_fork_;
};

}  // namespace heapledger::analyzer
