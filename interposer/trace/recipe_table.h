// SPDX-License-Identifier: Apache-2.0
// The recipes of the code addresses that were met so far, for all threads of the process.
//
// First level: 32768 words in buckets of 8, one cache line each. Bits 6 to 17 of an address are its
// bucket, bits 3 to 5 where in the bucket to begin, and all but the bucket's the tag, so that a tag
// that matches is the address itself. No mixing: it would stand between one return address and the
// next (stack_walk.cc), and as it is the calls of one function share a line. Word: tag 36,
// pending 1, recipe 27 (while pending: its maker's ticket); 0 is empty. Second level, for recipes
// that do not fit and for full buckets: entries of two words, address and recipe. Where that is
// full as well, recipes are compiled each time.
//
// Invariants. 1. A word of the first level goes from empty to pending to live to empty, each by one
// atomic operation; readers see live ones only. 2. An entry becomes live only if the generation is
// still the one from before its recipe was compiled; forget() first raises the generation, then
// empties pending and live entries. So no reader ever finds a recipe of code that was forgotten
// before, however late its maker is. 3. The address of a second-level entry never changes once it
// is there; only its recipe does, as in 1. 4. Who is interrupted in an insert, or never returns to
// it, leaves a pending entry, which costs a place and nothing else: others take the next one.
// Private memory: a forked child has a copy that goes its own way, as its modules do.
//
// Thread safety: any thread, any signal handler. No locks, no allocation, errno kept. Cost: 1-2 ns
// where found, about 0.5 us where compiled.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "interposer/trace/recipe.h"

namespace heapledger::trace {

class RecipeTable {
 public:
  using Compile = Recipe (*)(uintptr_t at) noexcept;

  static constexpr size_t kFirstEntries = 32768;
  static constexpr size_t kBucketEntries = 8;
  static constexpr size_t kSecondEntries = size_t{1} << 18;
  static constexpr size_t kAreaWords = 512;  // A bit for each area of 64 KiB that has entries.
  static constexpr size_t kPageWords = kSecondEntries * 16 / 4096 / 64;  // Second level: a bit
                                                                         // for each page in use.
  static constexpr size_t kBytes =                                       // What attach() wants.
      kFirstEntries * 8 + kSecondEntries * 16 + kAreaWords * 8 + kPageWords * 8;

  // `memory`: zeroed, aligned to a cache line. Before anything else, by one thread.
  void attach(void* memory, Compile compile) noexcept;
  bool attached() const noexcept { return first_ != nullptr; }

  // The recipe for the code at `at`: a return address - 1, or an interrupted frame's rip.
  PackedRecipe find(uintptr_t at) noexcept {
    // Acquire: nothing hangs on an entry's word, but an answer must not be older than the
    // generation its reader has seen.
    const uint64_t word = first_[home_of(at)].load(std::memory_order_acquire);
    const uint64_t bits = word ^ tag_of(at);
    if (__builtin_expect(is_live(bits) & (at >> 48 == 0), 1)) return PackedRecipe(bits);
    return find_slow(at);
  }

  // For an address whose packed recipe is kWide.
  Recipe find_wide(uintptr_t at) noexcept;

  // Code in [start, end) goes, or came: its entries go, and all that say "no information"; then the
  // generation rises.
  void forget(uintptr_t start, uintptr_t end) noexcept;
  // False: there are no entries in this range. Cheap; true far too often, for ranges near code.
  bool may_know(uintptr_t start, uintptr_t end) const noexcept;
  // Whether there are, pending ones included; as slow as forget().
  bool knows(uintptr_t start, uintptr_t end) const noexcept;

  uint32_t generation() const noexcept {
    // Acquire: pairs with the release in forget().
    return generation_.load(std::memory_order_acquire);
  }

  // While not zero, nothing is inserted: code is being unloaded, nobody knows yet which.
  void hold_inserts() noexcept { holds_.fetch_add(1, std::memory_order_seq_cst); }
  void allow_inserts() noexcept;
  // In a forked child: the threads that held are not there.
  void reset_holds() noexcept { holds_.store(0, std::memory_order_relaxed); }

  // Entries of both levels, for tests.
  size_t count_first() const noexcept;
  size_t count_second() const noexcept;

  // The word of the first level where the search for `at` begins.
  static size_t home_of(uintptr_t at) noexcept { return at >> 3 & (kFirstEntries - 1); }
  // Bits 0 to 5 and 18 to 47 of an address, above an entry's pending bit.
  static uint64_t tag_of(uintptr_t at) noexcept { return at << 58 | at >> 18 << 28; }
  // The address of the entry in word `index` of the first level that begins with `tag`.
  static uintptr_t address_of(size_t index, uint64_t tag) noexcept {
    return tag >> 58 | (index / kBucketEntries) << 6 | tag << 6 >> 34 << 18;
  }

 private:
  struct Second {
    std::atomic<uint64_t> address;  // 0: free.
    std::atomic<uint64_t> recipe;   // 0: none. Type 3, pending 1, offsets 30 bits each.
  };

  static constexpr uint64_t kRecipeMask = (uint64_t{1} << PackedRecipe::kBits) - 1;
  static constexpr uint64_t kRecipeTypes = 7;  // The type's bits, of what is kept at all.
  static constexpr uint64_t kPending = uint64_t{1} << PackedRecipe::kBits;
  static constexpr uint64_t kSecondPending = 8;
  static constexpr size_t kSecondProbes = 64;

  // Whether `bits`, an entry's word less the tag that was looked for, is that entry's recipe.
  static bool is_live(uint64_t bits) noexcept { return bits - 1 < kRecipeMask; }

  __attribute__((noinline, cold)) PackedRecipe find_slow(uintptr_t at) noexcept;
  static size_t second_home(uintptr_t at) noexcept;
  Recipe find_second(uintptr_t at) const noexcept;
  Recipe compile_and_keep(uintptr_t at) noexcept;
  // A pending entry of who made it alone, to be made live; null: there is one already, or no room.
  struct Place {
    std::atomic<uint64_t>* word;
    uint64_t pending;
    uint64_t live;
  };
  uint64_t take_ticket() noexcept;
  Place insert_first(uintptr_t at, PackedRecipe recipe) noexcept;
  Place insert_second(uintptr_t at, const Recipe& recipe) noexcept;
  Place insert(uintptr_t at, const Recipe& recipe) noexcept;
  // Calls visit(word, address, pending, recipe) for all entries until it returns false.
  template <class Visit>
  void for_each(Visit visit) const noexcept;

  // Read by every lookup, written never again: apart from what changes.
  std::atomic<uint64_t>* first_ = nullptr;
  Second* second_ = nullptr;
  std::atomic<uint64_t>* areas_ = nullptr;
  std::atomic<uint64_t>* pages_ = nullptr;
  Compile compile_ = nullptr;
  std::atomic<uint32_t> generation_{0};  // Changes when code does, which is rare.
  alignas(64) std::atomic<uint32_t> holds_{0};
  std::atomic<uint64_t> tickets_{0};  // No two inserts that overlap have the same one.
};

extern constinit RecipeTable g_recipes;

// Maps the table. False: no memory, or no way to compile; then the functions below must not be
// called. Once, at start.
bool start_recipes() noexcept;

inline PackedRecipe recipe_at(uintptr_t at) noexcept { return g_recipes.find(at); }
inline Recipe wide_recipe(uintptr_t at) noexcept { return g_recipes.find_wide(at); }
inline uint32_t code_generation() noexcept { return g_recipes.generation(); }

// See RecipeTable::forget, hold_inserts and the others. They do nothing where there is no table.
void forget_code(uintptr_t start, uintptr_t end) noexcept;
void hold_recipes() noexcept;
void allow_recipes() noexcept;
void reset_recipe_holds() noexcept;

__attribute__((noinline, cold)) void forget_code_if_any(uintptr_t start, uintptr_t end) noexcept;
// The same for a range that hardly ever has code in it: 2 ns where it has not.
inline void forget_code_if_known(uintptr_t start, uintptr_t end) noexcept {
  if (g_recipes.attached() && __builtin_expect(g_recipes.may_know(start, end), 0)) {
    forget_code_if_any(start, end);
  }
}

}  // namespace heapledger::trace
