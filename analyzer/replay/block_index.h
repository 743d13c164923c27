// SPDX-License-Identifier: Apache-2.0
// Which block starts last at or before an address: how a page fault finds its block.
//
// An ordered map of live blocks would cost more than the whole rest of the replay. Blocks start at
// multiples of 16, so one bit per 16 bytes says where they start; a second and a third level say
// which words below are not empty. Setting and clearing is a few instructions, and looking back
// skips 64 times as much at each level. A leaf covers 64 MiB of addresses; its words are
// calloc'ed, so parts never used cost no memory.
// Thread safety: none.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>

namespace heapledger::analyzer {

class BlockIndex {
 public:
  // `address` is rounded down to 16.
  void insert(uint64_t address);
  void erase(uint64_t address);
  // The greatest start <= address.
  std::optional<uint64_t> at_or_before(uint64_t address) const;
  // The smallest start >= address.
  std::optional<uint64_t> at_or_after(uint64_t address) const;

 private:
  static constexpr int kLeafBits = 26;  // log2 of the bytes that a leaf covers.
  static constexpr uint64_t kGranules = uint64_t{1} << (kLeafBits - 4);
  struct Free {
    void operator()(uint64_t* words) const { std::free(words); }
  };
  struct Leaf {
    std::unique_ptr<uint64_t, Free> starts;                   // A bit per granule.
    std::array<uint64_t, kGranules / 64 / 64> words{};        // A bit per word of starts.
    std::array<uint64_t, kGranules / 64 / 64 / 64> groups{};  // A bit per word of words.
  };

  Leaf* leaf(uint64_t key) const;
  static std::optional<uint64_t> last_in(const Leaf& leaf, uint64_t granule);
  static std::optional<uint64_t> first_in(const Leaf& leaf, uint64_t granule);

  std::map<uint64_t, std::unique_ptr<Leaf>> leaves_;
  mutable uint64_t cached_key_ = UINT64_MAX;
  mutable Leaf* cached_ = nullptr;
};

}  // namespace heapledger::analyzer
