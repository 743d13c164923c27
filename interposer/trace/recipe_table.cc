// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/recipe_table.h"

#include <sys/mman.h>

#include "interposer/base/bits.h"
#include "interposer/base/sys.h"
#include "interposer/trace/eh_frame.h"
#include "interposer/trace/own_calls.h"
#include "interposer/trace/region.h"

namespace heapledger::trace {
namespace {

constexpr int32_t kOffsetMax = 1 << 29;  // Of second-level entries, exclusive; either sign.
constexpr unsigned kAreaShift = 16;

// Sets a bit that stays set. Seq_cst: before the entry that it stands for, in who forgets' eyes.
void set_bit(std::atomic<uint64_t>* words, uint64_t word, uint64_t bit) {
  const uint64_t mask = uint64_t{1} << bit;
  if ((words[word].load(std::memory_order_seq_cst) & mask) == 0) {
    words[word].fetch_or(mask, std::memory_order_seq_cst);
  }
}

bool fits(int32_t offset) { return offset > -kOffsetMax && offset < kOffsetMax; }

uint64_t to_word(const Recipe& recipe) {
  constexpr uint64_t kMask = (uint64_t{1} << 30) - 1;
  return static_cast<uint64_t>(recipe.type) |
         (static_cast<uint64_t>(recipe.cfa_offset) & kMask) << 4 |
         (static_cast<uint64_t>(recipe.rbp_offset) & kMask) << 34;
}

Recipe from_word(uint64_t word) {
  const auto signed_word = static_cast<int64_t>(word);
  return {static_cast<RecipeType>(word & 7),
          static_cast<int32_t>(static_cast<int64_t>(word << 30) >> 34),
          static_cast<int32_t>(signed_word >> 34)};
}

}  // namespace

constinit RecipeTable g_recipes;

void RecipeTable::attach(void* memory, Compile compile) noexcept {
  auto* words = static_cast<std::atomic<uint64_t>*>(memory);
  compile_ = compile;
  second_ = reinterpret_cast<Second*>(words + kFirstEntries);
  areas_ = reinterpret_cast<std::atomic<uint64_t>*>(second_ + kSecondEntries);
  pages_ = areas_ + kAreaWords;
  first_ = words;
}

// ---- Lookup.

PackedRecipe RecipeTable::find_slow(uintptr_t at) noexcept {
  if (at >> 48 != 0) return PackedRecipe::pack({RecipeType::kNoCfi, 0, 0});
  const std::atomic<uint64_t>* bucket = first_ + home_of(at) / kBucketEntries * kBucketEntries;
  for (size_t i = 0; i < kBucketEntries; ++i) {
    // Acquire: see find().
    const uint64_t bits = bucket[i].load(std::memory_order_acquire) ^ tag_of(at);
    if (is_live(bits)) return PackedRecipe(bits);
  }
  Recipe recipe = find_second(at);
  if (recipe.type == RecipeType::kNone) recipe = compile_and_keep(at);
  return PackedRecipe::pack(recipe);
}

Recipe RecipeTable::find_wide(uintptr_t at) noexcept {
  const Recipe recipe = find_second(at);
  return recipe.type == RecipeType::kNone ? compile_and_keep(at) : recipe;
}

// Mixed: those of a full bucket would all begin at one place.
size_t RecipeTable::second_home(uintptr_t at) noexcept {
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;  // Odd; its bits look like chance.
  return (at * kFactor >> 40) % kSecondEntries;
}

Recipe RecipeTable::find_second(uintptr_t at) const noexcept {
  const size_t home = second_home(at);
  for (size_t i = 0; i < kSecondProbes; ++i) {
    const Second& entry = second_[(home + i) % kSecondEntries];
    const uint64_t address = entry.address.load(std::memory_order_relaxed);
    if (address == 0) return {};
    if (address != at) continue;
    // Relaxed above: whatever the recipe is, it is this address's (invariant 3).
    const uint64_t word = entry.recipe.load(std::memory_order_acquire);
    if (word != 0 && (word & kSecondPending) == 0) return from_word(word);
  }
  return {};
}

// ---- Insertion.

// A ticket, so that who makes its pending entry live can take no other's for it.
uint64_t RecipeTable::take_ticket() noexcept {
  return tickets_.fetch_add(1, std::memory_order_relaxed) & kRecipeMask;
}

RecipeTable::Place RecipeTable::insert_first(uintptr_t at, PackedRecipe recipe) noexcept {
  const uint64_t tag = tag_of(at);
  const uint64_t live = recipe.bits() | tag;
  const uint64_t pending = take_ticket() | kPending | tag;
  const size_t home = home_of(at);
  std::atomic<uint64_t>* bucket = first_ + home / kBucketEntries * kBucketEntries;
  for (size_t i = 0; i < kBucketEntries; ++i) {
    std::atomic<uint64_t>& word = bucket[(home + i) % kBucketEntries];
    uint64_t found = 0;
    if (word.compare_exchange_strong(found, pending, std::memory_order_seq_cst)) {
      return {&word, pending, live};
    }
    if (found == live) return {};  // Another thread was faster.
  }
  return insert_second(at, recipe.unpacked());
}

RecipeTable::Place RecipeTable::insert_second(uintptr_t at, const Recipe& recipe) noexcept {
  const uint64_t live = to_word(recipe);
  const uint64_t pending = take_ticket() << 4 | kSecondPending;
  const size_t home = second_home(at);
  for (size_t i = 0; i < kSecondProbes; ++i) {
    const size_t index = (home + i) % kSecondEntries;
    Second& entry = second_[index];
    uint64_t address = entry.address.load(std::memory_order_relaxed);
    if (address == 0) {
      // Relaxed: the two words of an entry need no order (invariant 3).
      entry.address.compare_exchange_strong(address, at, std::memory_order_relaxed);
      if (address == 0) address = at;
    }
    if (address != at) continue;
    const size_t page = index * sizeof(Second) / base::kPageBytes;
    set_bit(pages_, page / 64, page % 64);
    uint64_t found = 0;
    if (entry.recipe.compare_exchange_strong(found, pending, std::memory_order_seq_cst)) {
      return {&entry.recipe, pending, live};
    }
    if (found == live) return {};
  }
  return {};  // Full: compiled anew each time.
}

RecipeTable::Place RecipeTable::insert(uintptr_t at, const Recipe& recipe) noexcept {
  const uint64_t area = at >> kAreaShift;
  set_bit(areas_, area / 64 % kAreaWords, area % 64);
  const PackedRecipe packed = PackedRecipe::pack(recipe);
  if (packed.type() == RecipeType::kWide) return insert_second(at, recipe);
  return insert_first(at, packed);
}

Recipe RecipeTable::compile_and_keep(uintptr_t at) noexcept {
  // Seq_cst throughout: invariant 2 is about the order of these and of forget()'s.
  const uint32_t before = generation_.load(std::memory_order_seq_cst);
  Recipe recipe = compile_(at);
  if (!fits(recipe.cfa_offset) || !fits(recipe.rbp_offset)) recipe = {RecipeType::kOther, 0, 0};
  if (at == 0 || holds_.load(std::memory_order_seq_cst) != 0) return recipe;
  const Place place = insert(at, recipe);
  if (place.word == nullptr) return recipe;
  const bool current = generation_.load(std::memory_order_seq_cst) == before &&
                       holds_.load(std::memory_order_seq_cst) == 0;
  // Fails where forget() came first, which emptied it.
  uint64_t expected = place.pending;
  place.word->compare_exchange_strong(expected, current ? place.live : 0,
                                      std::memory_order_seq_cst);
  return recipe;
}

// ---- Forgetting.

bool RecipeTable::may_know(uintptr_t start, uintptr_t end) const noexcept {
  if (start >= end) return false;
  const uint64_t first = start >> kAreaShift;
  const uint64_t last = (end - 1) >> kAreaShift;
  if (last - first >= kAreaWords * 64) return true;
  for (uint64_t area = first; area <= last; ++area) {
    const uint64_t word = areas_[area / 64 % kAreaWords].load(std::memory_order_seq_cst);
    if (word == 0) {
      area |= 63;  // None of these 64.
    } else if ((word >> area % 64 & 1) != 0) {
      return true;
    }
  }
  return false;
}

template <class Visit>
void RecipeTable::for_each(Visit visit) const noexcept {
  for (size_t i = 0; i < kFirstEntries; ++i) {
    const uint64_t word = first_[i].load(std::memory_order_seq_cst);
    if (word == 0) continue;
    const uintptr_t address = address_of(i, word & ~(kPending | kRecipeMask));
    const bool pending = (word & kPending) != 0;
    if (!visit(first_[i], address, pending, word & kRecipeTypes)) return;
  }
  constexpr size_t kPerPage = base::kPageBytes / sizeof(Second);
  for (size_t page = 0; page < kPageWords * 64; ++page) {
    if ((pages_[page / 64].load(std::memory_order_seq_cst) >> page % 64 & 1) == 0) continue;
    for (Second* entry = second_ + page * kPerPage; entry != second_ + (page + 1) * kPerPage;
         ++entry) {
      const uint64_t word = entry->recipe.load(std::memory_order_seq_cst);
      if (word == 0) continue;
      const uint64_t address = entry->address.load(std::memory_order_relaxed);
      const bool pending = (word & kSecondPending) != 0;
      if (!visit(entry->recipe, address, pending, word & kRecipeTypes)) return;
    }
  }
}

bool RecipeTable::knows(uintptr_t start, uintptr_t end) const noexcept {
  bool found = false;
  for_each([&](std::atomic<uint64_t>&, uintptr_t address, bool, uint64_t) {
    found = address >= start && address < end;
    return !found;
  });
  return found;
}

void RecipeTable::forget(uintptr_t start, uintptr_t end) noexcept {
  // First: an insert under way is either seen below or sees this (invariant 2).
  generation_.fetch_add(1, std::memory_order_seq_cst);
  for_each([=](std::atomic<uint64_t>& word, uintptr_t address, bool pending, uint64_t type) {
    const bool goes = pending || (address >= start && address < end) ||
                      type == static_cast<uint64_t>(RecipeType::kNoCfi);
    if (goes) word.store(0, std::memory_order_seq_cst);
    return true;
  });
  // Once more: who looked meanwhile may have used what is gone now, and must not build on it.
  generation_.fetch_add(1, std::memory_order_seq_cst);
}

void RecipeTable::allow_inserts() noexcept {
  uint32_t holds = holds_.load(std::memory_order_relaxed);
  // 0: this is a child that was forked meanwhile.
  while (holds != 0 && !holds_.compare_exchange_weak(holds, holds - 1, std::memory_order_seq_cst)) {
  }
}

size_t RecipeTable::count_first() const noexcept {
  size_t count = 0;
  for (size_t i = 0; i < kFirstEntries; ++i) {
    if (first_[i].load(std::memory_order_relaxed) != 0) ++count;
  }
  return count;
}

size_t RecipeTable::count_second() const noexcept {
  size_t count = 0;
  for (size_t i = 0; i < kSecondEntries; ++i) {
    if (second_[i].recipe.load(std::memory_order_relaxed) != 0) ++count;
  }
  return count;
}

// ---- The process's table.

bool start_recipes() noexcept {
  if (!can_compile() || mapping_allowance(RecipeTable::kBytes) < RecipeTable::kBytes) return false;
  void* table = own_memory(RecipeTable::kBytes);
  if (table == nullptr) return false;
  own_madvise(table, RecipeTable::kBytes, MADV_DONTDUMP);
  g_recipes.attach(table, compile_recipe);
  return true;
}

void forget_code(uintptr_t start, uintptr_t end) noexcept {
  if (g_recipes.attached()) g_recipes.forget(start, end);
}

void forget_code_if_any(uintptr_t start, uintptr_t end) noexcept {
  if (g_recipes.knows(start, end)) g_recipes.forget(start, end);
}

void hold_recipes() noexcept { g_recipes.hold_inserts(); }
void allow_recipes() noexcept { g_recipes.allow_inserts(); }
void reset_recipe_holds() noexcept { g_recipes.reset_holds(); }

}  // namespace heapledger::trace
