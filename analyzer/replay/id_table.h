// SPDX-License-Identifier: Apache-2.0
// From the ids of live blocks to 32-bit numbers.
//
// Each thread counts its ids up, and most blocks end soon: the ids in use are dense at the end of
// each thread's. So a number is kept in a leaf of 1,024 neighbouring ids, which is in the caches
// for most calls. What is left of a leaf whose thread has gone on moves to a hash table when it is
// less than an eighth.
// Thread safety: none. Memory: 4 to 32 bytes per id in leaves, 26 to 52 in the hash table. Cost:
// some ns, where the id is not an old one's.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "analyzer/replay/flat_map.h"

namespace heapledger::analyzer {

class IdTable {
 public:
  static constexpr uint32_t kNone = FlatMap::kNone;

  IdTable() = default;
  IdTable(const IdTable& other);
  IdTable& operator=(const IdTable&) = delete;

  uint32_t find(uint64_t id) const;
  // The id must be new, and not 0; the number not kNone.
  void put(uint64_t id, uint32_t number);
  // Takes the id out; returns its number, or kNone.
  uint32_t take(uint64_t id);
  size_t size() const { return size_; }

 private:
  static constexpr int kLeafBits = 10;
  static constexpr size_t kLeafIds = size_t{1} << kLeafBits;
  static constexpr uint32_t kFew = kLeafIds / 8;
  struct Leaf {
    std::array<uint32_t, kLeafIds> numbers{};  // + 1; 0: none.
    uint64_t key = 0;                          // See key_of(); 0: not in use.
    uint32_t used = 0;
    bool is_passed = false;  // The next leaf has begun.
  };

  // 0 is no leaf's, nor is it the key before another one.
  static uint64_t key_of(uint64_t id) { return (id >> kLeafBits) + 2; }
  Leaf* leaf(uint64_t key) const;
  Leaf& make_leaf(uint64_t key);
  void spill(Leaf& leaf);

  FlatMap leaves_;  // Key -> place in pool_.
  std::vector<std::unique_ptr<Leaf>> pool_;
  std::vector<uint32_t> free_;  // Of pool_.
  FlatMap old_;
  size_t size_ = 0;
  mutable Leaf* last_ = nullptr;  // The leaf looked at last.
};

}  // namespace heapledger::analyzer
