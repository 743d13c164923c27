// SPDX-License-Identifier: Apache-2.0
// A set of OS pages of an address space: which are resident, which ever were.
//
// One bit per page, in leaves of 32,768 pages (128 MiB of addresses, 4 KiB of memory) that are made
// when first needed. Ranges are page-aligned by the caller's meaning: a page counts if any byte of
// it is in [start, end) for add and count, and if all of it is for remove (the kernel gives back
// whole pages only).
// Thread safety: none. Cost: one map lookup per leaf, cached for the last one.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

namespace heapledger::analyzer {

inline constexpr uint64_t kPageBytes = 4096;

class PageSet {
 public:
  PageSet() = default;
  PageSet(const PageSet& other);
  PageSet& operator=(const PageSet& other);
  PageSet(PageSet&&) = default;
  PageSet& operator=(PageSet&&) = default;

  bool contains(uint64_t address) const;
  // Adds the page of `address`; false if it was there.
  bool add(uint64_t address);
  void remove_page(uint64_t address);
  // Takes out the pages that lie wholly in [start, end); returns how many there were.
  uint64_t remove(uint64_t start, uint64_t end);
  // How many pages with a byte in [start, end) are in the set.
  uint64_t count(uint64_t start, uint64_t end) const;
  // Bytes of [start, end) that lie on pages of the set.
  uint64_t bytes(uint64_t start, uint64_t end) const;
  void for_each(uint64_t start, uint64_t end, const std::function<void(uint64_t)>& visit) const;
  // The pages with a byte in [start, end) that are not in the set.
  void for_each_missing(uint64_t start, uint64_t end,
                        const std::function<void(uint64_t)>& visit) const;
  void add_range(uint64_t start, uint64_t end);
  // The pages of [start, end) that are in `other`, too: into this set, or out of it.
  void add_common(const PageSet& other, uint64_t start, uint64_t end);
  void remove_common(const PageSet& other, uint64_t start, uint64_t end);
  void clear();

 private:
  static constexpr int kLeafBits = 15;
  static constexpr uint64_t kLeafPages = uint64_t{1} << kLeafBits;
  struct Leaf {
    std::array<uint64_t, kLeafPages / 64> words{};
  };

  Leaf* leaf(uint64_t page) const;
  Leaf& make_leaf(uint64_t page);
  // Calls visit(leaf, first bit, one past the last bit) for the leaves that meet [first, last).
  template <typename Visit>
  void each_leaf(uint64_t first, uint64_t last, Visit visit) const;

  std::map<uint64_t, std::unique_ptr<Leaf>> leaves_;
  mutable uint64_t cached_key_ = UINT64_MAX;
  mutable Leaf* cached_ = nullptr;
};

}  // namespace heapledger::analyzer
