// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/page_set.h"

#include <algorithm>
#include <bit>

namespace heapledger::analyzer {

namespace {

// Bits [first, last) of one word; first < last <= 64.
uint64_t mask_of(uint64_t first, uint64_t last) {
  const uint64_t high = last == 64 ? ~uint64_t{0} : (uint64_t{1} << last) - 1;
  return high & ~((uint64_t{1} << first) - 1);
}

// Calls visit(word index, mask) for the words that hold bits [first, last).
template <typename Visit>
void each_word(uint64_t first, uint64_t last, Visit visit) {
  while (first < last) {
    const uint64_t word = first / 64;
    const uint64_t stop = std::min(last, (word + 1) * 64);
    visit(word, mask_of(first % 64, stop - word * 64));
    first = stop;
  }
}

}  // namespace

PageSet::PageSet(const PageSet& other) {
  for (const auto& [key, leaf] : other.leaves_) leaves_[key] = std::make_unique<Leaf>(*leaf);
}

PageSet& PageSet::operator=(const PageSet& other) {
  PageSet copy(other);
  clear();
  leaves_.swap(copy.leaves_);
  return *this;
}

void PageSet::clear() {
  leaves_.clear();
  cached_key_ = UINT64_MAX;
  cached_ = nullptr;
}

PageSet::Leaf* PageSet::leaf(uint64_t page) const {
  const uint64_t key = page >> kLeafBits;
  if (key == cached_key_) return cached_;
  const auto found = leaves_.find(key);
  if (found == leaves_.end()) return nullptr;
  cached_key_ = key;
  cached_ = found->second.get();
  return cached_;
}

PageSet::Leaf& PageSet::make_leaf(uint64_t page) {
  if (Leaf* found = leaf(page)) return *found;
  std::unique_ptr<Leaf>& made = leaves_[page >> kLeafBits];
  made = std::make_unique<Leaf>();
  return *made;
}

bool PageSet::contains(uint64_t address) const {
  const uint64_t page = address / kPageBytes;
  const Leaf* found = leaf(page);
  if (found == nullptr) return false;
  const uint64_t bit = page % kLeafPages;
  return (found->words[bit / 64] >> (bit % 64) & 1) != 0;
}

bool PageSet::add(uint64_t address) {
  const uint64_t page = address / kPageBytes;
  const uint64_t bit = page % kLeafPages;
  uint64_t& word = make_leaf(page).words[bit / 64];
  const uint64_t mask = uint64_t{1} << (bit % 64);
  const bool fresh = (word & mask) == 0;
  word |= mask;
  return fresh;
}

void PageSet::remove_page(uint64_t address) {
  const uint64_t page = address / kPageBytes;
  Leaf* found = leaf(page);
  if (found == nullptr) return;
  const uint64_t bit = page % kLeafPages;
  found->words[bit / 64] &= ~(uint64_t{1} << (bit % 64));
}

template <typename Visit>
void PageSet::each_leaf(uint64_t first, uint64_t last, Visit visit) const {
  if (first >= last) return;
  for (auto it = leaves_.lower_bound(first >> kLeafBits); it != leaves_.end(); ++it) {
    const uint64_t base = it->first << kLeafBits;
    if (base >= last) return;
    visit(*it->second, base, std::max(first, base) - base, std::min(last - base, kLeafPages));
  }
}

uint64_t PageSet::remove(uint64_t start, uint64_t end) {
  uint64_t removed = 0;
  each_leaf((start + kPageBytes - 1) / kPageBytes, end / kPageBytes,
            [&](Leaf& found, uint64_t, uint64_t from, uint64_t to) {
              each_word(from, to, [&](uint64_t word, uint64_t mask) {
                removed += static_cast<uint64_t>(std::popcount(found.words[word] & mask));
                found.words[word] &= ~mask;
              });
            });
  return removed;
}

uint64_t PageSet::count(uint64_t start, uint64_t end) const {
  uint64_t pages = 0;
  if (start >= end) return 0;
  each_leaf(start / kPageBytes, (end + kPageBytes - 1) / kPageBytes,
            [&](const Leaf& found, uint64_t, uint64_t from, uint64_t to) {
              each_word(from, to, [&](uint64_t word, uint64_t mask) {
                pages += static_cast<uint64_t>(std::popcount(found.words[word] & mask));
              });
            });
  return pages;
}

uint64_t PageSet::bytes(uint64_t start, uint64_t end) const {
  if (start >= end) return 0;
  uint64_t total = count(start, end) * kPageBytes;
  const uint64_t first_page = start / kPageBytes * kPageBytes;
  const uint64_t last_page = (end - 1) / kPageBytes * kPageBytes;
  if (start != first_page && contains(start)) total -= start - first_page;
  if (end != last_page + kPageBytes && contains(end - 1)) total -= last_page + kPageBytes - end;
  return total;
}

void PageSet::for_each(uint64_t start, uint64_t end,
                       const std::function<void(uint64_t)>& visit) const {
  if (start >= end) return;
  each_leaf(start / kPageBytes, (end + kPageBytes - 1) / kPageBytes,
            [&](const Leaf& found, uint64_t base, uint64_t from, uint64_t to) {
              each_word(from, to, [&](uint64_t word, uint64_t mask) {
                for (uint64_t bits = found.words[word] & mask; bits != 0; bits &= bits - 1) {
                  const auto bit = static_cast<uint64_t>(std::countr_zero(bits));
                  visit((base + word * 64 + bit) * kPageBytes);
                }
              });
            });
}

void PageSet::for_each_missing(uint64_t start, uint64_t end,
                               const std::function<void(uint64_t)>& visit) const {
  if (start >= end) return;
  const uint64_t last = (end - 1) / kPageBytes + 1;
  for (uint64_t page = start / kPageBytes; page < last;) {
    const uint64_t base = page / kLeafPages * kLeafPages;
    const uint64_t stop = std::min(last, base + kLeafPages);
    const Leaf* found = leaf(page);
    each_word(page - base, stop - base, [&](uint64_t word, uint64_t mask) {
      uint64_t bits = found == nullptr ? mask : mask & ~found->words[word];
      for (; bits != 0; bits &= bits - 1) {
        visit((base + word * 64 + static_cast<uint64_t>(std::countr_zero(bits))) * kPageBytes);
      }
    });
    page = stop;
  }
}

void PageSet::add_range(uint64_t start, uint64_t end) {
  if (start >= end) return;
  const uint64_t last = (end - 1) / kPageBytes + 1;
  for (uint64_t page = start / kPageBytes; page < last;) {
    const uint64_t base = page / kLeafPages * kLeafPages;
    const uint64_t stop = std::min(last, base + kLeafPages);
    Leaf& found = make_leaf(page);
    each_word(page - base, stop - base,
              [&](uint64_t word, uint64_t mask) { found.words[word] |= mask; });
    page = stop;
  }
}

void PageSet::add_common(const PageSet& other, uint64_t start, uint64_t end) {
  if (start >= end) return;
  other.each_leaf(start / kPageBytes, (end + kPageBytes - 1) / kPageBytes,
                  [&](const Leaf& theirs, uint64_t base, uint64_t from, uint64_t to) {
                    Leaf& ours = make_leaf(base);
                    each_word(from, to, [&](uint64_t word, uint64_t mask) {
                      ours.words[word] |= theirs.words[word] & mask;
                    });
                  });
}

void PageSet::remove_common(const PageSet& other, uint64_t start, uint64_t end) {
  if (start >= end || leaves_.empty()) return;
  other.each_leaf(start / kPageBytes, (end + kPageBytes - 1) / kPageBytes,
                  [&](const Leaf& theirs, uint64_t base, uint64_t from, uint64_t to) {
                    Leaf* ours = leaf(base);
                    if (ours == nullptr) return;
                    each_word(from, to, [&](uint64_t word, uint64_t mask) {
                      ours->words[word] &= ~(theirs.words[word] & mask);
                    });
                  });
}

}  // namespace heapledger::analyzer
