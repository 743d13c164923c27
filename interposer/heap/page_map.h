// SPDX-License-Identifier: Apache-2.0
//
// Which pages are ours: one state per OS page of the address space, so that a pointer which is not
// ours is known without being dereferenced (the header before a foreign page may not be mapped),
// and a mapped block is freed only once.
//
// Two bits per page, in leaves of 1 GiB of addresses. A few leaves are part of the object, so that
// an ordinary program never makes a system call for them; more are mapped on demand and never given
// back. Untouched parts cost no memory. Thread safety: all operations are lock-free; a page's state
// is changed only by the owner of the memory. Cost of a lookup: two dependent loads.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#include "interposer/base/bits.h"
#include "interposer/heap/os.h"

namespace heapledger::heap {

enum class PageState : uint8_t {
  kForeign = 0,  // Not ours, or the inside of a mapped block.
  kMapped = 1,   // A mapped block's chunk starts in this page.
  kArena = 2,    // Part of the main arena outside the break: a fallback mapping.
  kHeap = 3,     // Part of a secondary arena's heap, in use or only reserved.
};

template <class Os>
class PageMap {
 public:
  constexpr PageMap() = default;

  PageState lookup(uintptr_t address) const {
    const size_t page = address / base::kPageBytes;
    if (page >= kPages) return PageState::kForeign;
    // Acquire: pairs with the release in leaf_for(), so that a fresh leaf reads as zeros.
    const Leaf* leaf = __atomic_load_n(&root_[page / kPagesPerLeaf], __ATOMIC_ACQUIRE);
    if (leaf == nullptr) return PageState::kForeign;
    const size_t index = page % kPagesPerLeaf;
    // Relaxed: whoever handed the pointer to the asking thread ordered the store before this load.
    const uint64_t word = __atomic_load_n(&leaf->words[index / kPerWord], __ATOMIC_RELAXED);
    return static_cast<PageState>((word >> (2 * (index % kPerWord))) & 3);
  }

  // Sets the state of one page. Returns false where no memory could be had for the leaf.
  bool set(Os& os, uintptr_t address, PageState state) {
    const size_t page = address / base::kPageBytes;
    Leaf* leaf = page < kPages ? leaf_for(os, page / kPagesPerLeaf) : nullptr;
    if (leaf == nullptr) return false;
    const size_t index = page % kPagesPerLeaf;
    uint64_t* word = &leaf->words[index / kPerWord];
    const unsigned shift = 2 * (index % kPerWord);
    // Other pages of the word belong to other threads: both steps are atomic; this page's bits are
    // the caller's own.
    __atomic_fetch_and(word, ~(uint64_t{3} << shift), __ATOMIC_RELAXED);
    __atomic_fetch_or(word, uint64_t{static_cast<uint8_t>(state)} << shift, __ATOMIC_RELAXED);
    return true;
  }

  // Takes a mapped block's page out if it is in: true for exactly one of several callers.
  bool take_mapped(uintptr_t address) {
    if (lookup(address) != PageState::kMapped) return false;
    const size_t page = address / base::kPageBytes;
    Leaf* leaf = __atomic_load_n(&root_[page / kPagesPerLeaf], __ATOMIC_ACQUIRE);
    const size_t index = page % kPagesPerLeaf;
    const uint64_t bit = uint64_t{1} << (2 * (index % kPerWord));
    return (__atomic_fetch_and(&leaf->words[index / kPerWord], ~bit, __ATOMIC_RELAXED) & bit) != 0;
  }

  // Where all pages of a word are of the range, nobody else's are in it: one store.
  bool set_range(Os& os, uintptr_t begin, uintptr_t end, PageState state) {
    constexpr uintptr_t kWordBytes = kPerWord * base::kPageBytes;
    constexpr uint64_t kEveryPage = 0x5555'5555'5555'5555ULL;
    for (uintptr_t at = begin; at < end;) {
      if (!base::is_aligned(at, kWordBytes) || end - at < kWordBytes) {
        if (!set(os, at, state)) return false;
        at += base::kPageBytes;
        continue;
      }
      const size_t page = at / base::kPageBytes;
      Leaf* leaf = page < kPages ? leaf_for(os, page / kPagesPerLeaf) : nullptr;
      if (leaf == nullptr) return false;
      __atomic_store_n(&leaf->words[page % kPagesPerLeaf / kPerWord],
                       kEveryPage * static_cast<uint8_t>(state), __ATOMIC_RELAXED);
      at += kWordBytes;
    }
    return true;
  }

 private:
  static constexpr size_t kAddressBits = 47;
  static constexpr size_t kLeafBits = 30;
  static constexpr size_t kPages = size_t{1} << (kAddressBits - 12);
  static constexpr size_t kPagesPerLeaf = size_t{1} << (kLeafBits - 12);
  static constexpr size_t kLeaves = size_t{1} << (kAddressBits - kLeafBits);
  static constexpr size_t kPerWord = 32;
  static constexpr size_t kOwnLeaves = 8;

  struct Leaf {
    uint64_t words[kPagesPerLeaf / kPerWord];
  };

  Leaf* leaf_for(Os& os, size_t index) {
    Leaf* leaf = __atomic_load_n(&root_[index], __ATOMIC_ACQUIRE);
    if (leaf != nullptr) return leaf;
    Leaf* fresh = new_leaf(os);
    if (fresh == nullptr) return nullptr;
    Leaf* expected = nullptr;
    // Release: pairs with the acquire in lookup(). The loser of a race keeps its leaf out of use:
    // rare, and untouched.
    if (__atomic_compare_exchange_n(&root_[index], &expected, fresh, false, __ATOMIC_RELEASE,
                                    __ATOMIC_ACQUIRE)) {
      return fresh;
    }
    return expected;
  }

  Leaf* new_leaf(Os& os) {
    const size_t number = __atomic_fetch_add(&own_used_, 1, __ATOMIC_RELAXED);
    if (number < kOwnLeaves) return &own_[number];
    void* memory = os.mmap(nullptr, sizeof(Leaf), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, Cause::kRegistry);
    return static_cast<Leaf*>(memory);
  }

  Leaf* root_[kLeaves] = {};
  Leaf own_[kOwnLeaves] = {};
  size_t own_used_ = 0;
};

}  // namespace heapledger::heap
