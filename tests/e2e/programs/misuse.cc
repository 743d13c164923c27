// SPDX-License-Identifier: Apache-2.0
// misuse PROBE [thread]: breaks the rules of malloc in one way, so that glibc, the shim and a
// recording can be compared. misuse list: the names of all probes. Ends with 0 where nobody
// noticed.
//
// A probe knows no layout: it writes where a program with that bug would write (behind a block,
// into a freed one), relative to the pointer and malloc_usable_size(). The one exception is
// own_size(), which looks for the word. Each probe is a function of its own name: the tests look
// for it on the stack of the offending call.
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace {

using Word = size_t;

// Blocks that the compiler knows nothing about: every call and every store below is made.
char* make(size_t size) {
  char* volatile block = static_cast<char*>(malloc(size));
  return block;
}
void drop(void* block) {
  void* volatile hidden = block;
  free(hidden);
}
void* resize(void* block, size_t size) {
  void* volatile hidden = block;
  void* volatile fresh = realloc(hidden, size);
  return fresh;
}
void* zeroed(size_t size) {
  void* volatile block = calloc(1, size);
  return block;
}
void poke(void* address, Word value) { *static_cast<volatile Word*>(address) = value; }

// The first word behind a block's last usable byte: the size of the next chunk, or of the top.
char* behind(char* block) { return block + malloc_usable_size(block); }

// The size word of the block itself: 8 or 16 bytes before it.
char* own_size(char* block) {
  const size_t usable = malloc_usable_size(block);
  Word word = 0;
  memcpy(&word, block - 16, sizeof word);
  return (word & ~Word{15}) == usable + 16 ? block - 16 : block - 8;
}

constexpr int kCacheDepth = 7;

// Fills the thread's cache bin for this size; later frees of it go to the arena.
void fill_cache(size_t size) {
  char* blocks[kCacheDepth];
  for (char*& block : blocks) block = make(size);
  for (char* block : blocks) drop(block);
}

// Memory of the probe's own that a damaged link can point to without a crash.
alignas(16) Word elsewhere[8];

// ---- Double frees.

void double_free_small() {
  char* block = make(40);
  drop(block);
  drop(block);
}
void double_free_cached_deeper() {
  char* block = make(40);
  char* other = make(40);
  drop(block);
  drop(other);
  drop(block);
}
void double_free_1000() {
  char* block = make(1000);
  drop(block);
  drop(block);
}
void double_free_fast_top() {
  char* block = make(40);
  fill_cache(40);
  drop(block);
  drop(block);
}
void double_free_fast_deeper() {
  char* block = make(40);
  char* other = make(40);
  fill_cache(40);
  drop(block);
  drop(other);
  drop(block);
}
void double_free_small_bin() {
  char* block = make(500);
  make(16);
  fill_cache(500);
  drop(block);
  drop(block);
}
void double_free_1200() {
  char* block = make(1200);
  make(16);
  drop(block);
  drop(block);
}
void double_free_5000() {
  char* block = make(5000);
  make(16);
  drop(block);
  drop(block);
}
void double_free_large_bin() {
  char* block = make(5000);
  make(16);
  drop(block);
  make(9000);  // Files it.
  drop(block);
}
void double_free_at_top() {
  char* block = make(5000);
  drop(block);
  drop(block);
}
void double_free_merged_before() {
  char* first = make(5000);
  char* second = make(5000);
  make(16);
  drop(first);
  drop(second);  // Becomes part of the first one.
  drop(second);
}
void double_free_merged_into_top() {
  char* first = make(5000);
  char* second = make(5000);
  drop(second);
  drop(first);
  drop(second);
}
void double_free_mapped() {
  char* block = make(400000);
  drop(block);
  drop(block);
}
void double_free_with_realloc_to_zero() {
  char* block = make(40);
  resize(block, 0);
  drop(block);
}
void double_free_of_the_old_block_of_realloc() {
  char* block = make(2000);
  make(16);
  resize(block, 9000);
  drop(block);
}

void* drop_in_thread(void* block) {
  drop(block);
  return nullptr;
}
void in_thread(void* (*run)(void*), void* argument) {
  pthread_t thread;
  if (pthread_create(&thread, nullptr, run, argument) != 0) abort();
  pthread_join(thread, nullptr);
}
void double_free_across_threads_5000() {
  char* block = make(5000);
  make(16);
  in_thread(drop_in_thread, block);
  drop(block);
}
void* hold_cached_block(void* block) {
  drop(block);
  // Its cache is given back when the thread ends: the second free comes before that.
  in_thread(drop_in_thread, block);
  return nullptr;
}
void double_free_across_threads_small() {
  char* block = make(40);
  make(16);
  in_thread(hold_cached_block, block);
}

// ---- Pointers that are no block.

void free_misaligned() { drop(make(100) + 8); }
void free_off_by_one() { drop(make(100) + 1); }
void free_interior() {
  char* block = make(1000);
  memset(block, 0, 1000);
  drop(block + 64);
}
void free_interior_text() {
  char* block = make(1000);
  memset(block, 'A', 1000);
  drop(block + 64);
}
void free_interior_mapped() {
  char* block = make(400000);
  drop(block + 64);
}
void free_page_of_mapped() {
  char* block = make(400000);
  drop(block + 8192);
}
void free_stack() {
  alignas(16) volatile char local[64] = {};
  drop(const_cast<char*>(local + 32));
}
void free_stack_misaligned() {
  alignas(16) volatile char local[64] = {};
  drop(const_cast<char*>(local + 33));
}
void free_stack_text() {
  alignas(16) char local[64];
  memset(local, 'B', sizeof local);
  drop(local + 32);
}
alignas(16) char static_memory[256];
void free_static() { drop(static_memory + 64); }
void free_string() {
  memset(static_memory, 'a', sizeof static_memory);
  drop(static_memory + 64);
}
void free_null_plus_16() { drop(reinterpret_cast<void*>(16)); }
void free_wild() { drop(reinterpret_cast<void*>(0x7fff'ffff'f000)); }
void free_non_canonical() { drop(reinterpret_cast<void*>(0xdead'beef'dead'bee0)); }
void free_minus_16() { drop(reinterpret_cast<void*>(~Word{15})); }
void free_top() {
  char* block = make(5000);
  drop(behind(block) + (own_size(block) == block - 16 ? 16 : 8));
}
void realloc_misaligned() { resize(make(100) + 8, 200); }
void realloc_interior() {
  char* block = make(1000);
  memset(block, 0, 1000);
  resize(block + 64, 200);
}
void realloc_stack() {
  alignas(16) volatile char local[64] = {};
  resize(const_cast<char*>(local + 32), 200);
}
void realloc_static_misaligned() { resize(static_memory + 65, 200); }
void realloc_null_plus_16() { resize(reinterpret_cast<void*>(16), 200); }
void realloc_page_of_mapped() { resize(make(400000) + 8192, 500000); }

// ---- realloc of freed memory.

void realloc_freed_small() {
  char* block = make(40);
  drop(block);
  resize(block, 400);
}
void realloc_freed_1200() {
  char* block = make(1200);
  make(16);
  drop(block);
  resize(block, 9000);
}
void realloc_freed_at_top() {
  char* block = make(5000);
  drop(block);
  resize(block, 9000);
}
void realloc_freed_mapped() {
  char* block = make(400000);
  drop(block);
  resize(block, 500000);
}

// ---- Overruns: the next chunk's header.

void overrun_size_zero_fast() {
  char* block = make(40);
  make(16);
  fill_cache(40);
  poke(behind(block), 0);
  drop(block);
}
void overrun_size_huge_fast() {
  char* block = make(40);
  make(16);
  fill_cache(40);
  poke(behind(block), ~Word{14});
  drop(block);
}
void overrun_size_zero_normal() {
  char* block = make(2000);
  make(16);
  poke(behind(block), 1);
  drop(block);
}
void overrun_size_huge_normal() {
  char* block = make(2000);
  make(16);
  poke(behind(block), 0x7000'0000'0000'0001);
  drop(block);
}
void overrun_with_zeros() {
  char* block = make(2000);
  make(16);
  poke(behind(block), 0);
  drop(block);
}
void overrun_with_text() {
  char* block = make(2000);
  make(16);
  memset(block, 'C', malloc_usable_size(block) + 8);
  drop(block);
}
void overrun_then_free_the_next() {
  char* block = make(40);
  char* next = make(40);
  if (behind(block) + 16 < next) return;
  memset(behind(block), 'D', 8);
  drop(next);
}
void overrun_zeros_then_free_the_next() {
  char* block = make(40);
  char* next = make(40);
  poke(behind(block), 0);
  drop(next);
}
void overrun_then_realloc() {
  char* block = make(2000);
  make(16);
  poke(behind(block), 1);
  resize(block, 9000);
}
void overrun_huge_then_realloc() {
  char* block = make(2000);
  make(16);
  poke(behind(block), 0x7000'0000'0000'0001);
  resize(block, 9000);
}
void overrun_top_then_malloc() {
  char* block = make(2000);
  poke(behind(block), ~Word{0});
  make(100000);
}
void overrun_top_with_text_then_malloc() {
  char* block = make(2000);
  memset(behind(block), 'E', 8);
  make(2000);
}

// ---- A block's own size.

void own_size_zero() {
  char* block = make(40);
  poke(own_size(block), 0);
  drop(block);
}
void own_size_odd() {
  char* block = make(2000);
  make(16);
  Word word = 0;
  memcpy(&word, own_size(block), sizeof word);
  poke(own_size(block), word + 0x1'0000'0000);
  drop(block);
}
void own_size_huge() {
  char* block = make(2000);
  make(16);
  poke(own_size(block), ~Word{14});
  drop(block);
}
void own_size_says_mapped() {
  char* block = make(2000);
  make(16);
  Word word = 0;
  memcpy(&word, own_size(block), sizeof word);
  poke(own_size(block), word | 2);
  drop(block);
}
void own_size_of_mapped() {
  char* block = make(400000);
  Word word = 0;
  memcpy(&word, own_size(block), sizeof word);
  poke(own_size(block), word + 512);
  drop(block);
}
void own_size_of_mapped_then_realloc() {
  char* block = make(400000);
  Word word = 0;
  memcpy(&word, own_size(block), sizeof word);
  poke(own_size(block), word + 512);
  resize(block, 900000);
}
void own_size_zero_then_realloc() {
  char* block = make(2000);
  make(16);
  poke(own_size(block), 1);
  resize(block, 9000);
}
void own_size_huge_then_realloc() {
  char* block = make(2000);
  make(16);
  poke(own_size(block), 0x7000'0000'0000'0001);
  resize(block, 9000);
}

// ---- Writes to freed memory.

// Text over the pointer to the next entry, which is stored disguised by its own address: a letter
// chosen so that what it stands for is never aligned by chance.
void scribble(char* block) {
  const Word disguise = reinterpret_cast<Word>(block) >> 12;
  poke(block, 0x4141'4141'4141'4140 | ((disguise & 15) ^ 1));
}
void cached_next_misaligned() {
  char* block = make(40);
  char* other = make(40);
  drop(other);
  drop(block);
  scribble(block);
  make(40);
  make(40);
}
void fast_next_misaligned() {
  char* block = make(40);
  char* other = make(40);
  fill_cache(40);
  drop(other);
  drop(block);
  scribble(block);
  zeroed(40);  // Does not take from the cache.
  zeroed(40);
}
void fast_next_misaligned_then_consolidate() {
  char* block = make(40);
  char* other = make(40);
  fill_cache(40);
  drop(other);
  drop(block);
  scribble(block);
  malloc_trim(0);
}
void fast_size_overwritten() {
  char* block = make(40);
  char* other = make(40);
  fill_cache(40);
  drop(other);
  drop(block);
  poke(own_size(block), 0x61);
  zeroed(40);
}
void fast_size_overwritten_then_consolidate() {
  char* block = make(40);
  char* other = make(40);
  fill_cache(40);
  drop(other);
  drop(block);
  poke(own_size(block), 0x61);
  malloc_trim(0);
}
void fast_entry_size_overwritten_then_free() {
  char* block = make(40);
  char* other = make(40);
  fill_cache(40);
  drop(block);
  poke(own_size(block), 0x61);
  drop(other);
}

// Both links of a freed chunk point elsewhere. own_size() cannot tell where they are once the block
// is free: first_link() is asked before.
void break_links_at(char* first_link) {
  const Word target = reinterpret_cast<Word>(elsewhere);
  poke(first_link, target);
  poke(first_link + 8, target);
}
char* first_link(char* block) { return own_size(block) + 8; }

void unsorted_links() {
  char* block = make(2000);
  make(16);
  char* links = first_link(block);
  drop(block);
  break_links_at(links);
  make(3000);
}
void unsorted_links_then_free() {
  char* block = make(2000);
  make(16);
  char* other = make(2000);
  make(16);
  char* links = first_link(block);
  drop(block);
  break_links_at(links);
  drop(other);
}
void unsorted_links_then_merge() {
  char* block = make(2000);
  char* next = make(2000);
  make(16);
  char* links = first_link(block);
  drop(block);
  break_links_at(links);
  drop(next);
}
void unsorted_size() {
  char* block = make(2000);
  make(16);
  char* size = own_size(block);
  drop(block);
  poke(size, 9);
  make(3000);
}
void unsorted_size_huge() {
  char* block = make(2000);
  make(16);
  char* size = own_size(block);
  drop(block);
  poke(size, 0x7000'0000'0000'0001);
  make(3000);
}
void unsorted_next_size() {
  char* block = make(2000);
  make(16);
  char* next_size = behind(block);
  drop(block);
  poke(next_size, 0);
  make(3000);
}
void unsorted_next_in_use() {
  char* block = make(2000);
  make(16);
  char* next_size = behind(block);
  drop(block);
  Word word = 0;
  memcpy(&word, next_size, sizeof word);
  poke(next_size, word | 1);
  make(3000);
}
void small_bin_links() {
  char* block = make(500);
  make(16);
  char* other = make(500);
  make(16);
  fill_cache(500);
  char* links = first_link(block);
  drop(block);
  drop(other);
  make(3000);  // Files both.
  break_links_at(links);
  zeroed(500);
}
void small_bin_links_then_merge() {
  char* block = make(500);
  char* next = make(2000);
  make(16);
  fill_cache(500);
  char* links = first_link(block);
  drop(block);
  make(3000);
  break_links_at(links);
  drop(next);
}
void large_bin_links() {
  char* block = make(5000);
  make(16);
  char* links = first_link(block);
  drop(block);
  make(9000);
  break_links_at(links);
  make(4990);
}
void large_bin_links_then_merge() {
  char* block = make(5000);
  char* next = make(2000);
  make(16);
  char* links = first_link(block);
  drop(block);
  make(9000);
  break_links_at(links);
  drop(next);
}
void large_bin_size_links() {
  char* block = make(5000);
  char* next = make(2000);
  make(16);
  char* links = first_link(block);
  drop(block);
  make(9000);
  break_links_at(links + 16);
  drop(next);
}
void large_bin_size_links_then_file() {
  char* block = make(5000);
  make(16);
  char* larger = make(5100);
  make(16);
  char* links = first_link(block);
  drop(block);
  make(9000);
  break_links_at(links + 16);
  drop(larger);
  make(9000);
}
// The last words of a freed block: the size that its neighbour behind finds it by.
void foot_of_freed_then_free_the_next() {
  char* block = make(2000);
  char* next = make(2000);
  make(16);
  char* foot = behind(block) - 8;
  drop(block);
  poke(foot, 64);
  memset(block + 2000 - 128, 0, 64);
  drop(next);
}
void foot_of_freed_then_malloc() {
  char* block = make(2000);
  make(16);
  char* foot = behind(block) - 8;
  drop(block);
  poke(foot, 64);
  make(3000);
}
void size_of_freed_then_free_before() {
  char* block = make(2000);
  char* next = make(2000);
  make(16);
  char* size = own_size(next);
  drop(next);
  poke(size, 0x811 + 0x100);
  drop(block);
}
void size_of_freed_then_free_behind() {
  char* block = make(2000);
  char* next = make(2000);
  make(16);
  char* size = own_size(block);
  drop(block);
  poke(size, 0x321);
  drop(next);
}
void previous_in_use_cleared() {
  char* block = make(2000);
  char* next = make(2000);
  make(16);
  memset(block, 0, 2000);
  Word word = 0;
  memcpy(&word, own_size(next), sizeof word);
  poke(own_size(next), word & ~Word{1});
  poke(behind(block) - 8, 96);
  drop(next);
}

struct Probe {
  const char* name;
  void (*run)();
};
#define PROBE(name) \
  { #name, name }
constexpr Probe kProbes[] = {
    PROBE(double_free_small),
    PROBE(double_free_cached_deeper),
    PROBE(double_free_1000),
    PROBE(double_free_fast_top),
    PROBE(double_free_fast_deeper),
    PROBE(double_free_small_bin),
    PROBE(double_free_1200),
    PROBE(double_free_5000),
    PROBE(double_free_large_bin),
    PROBE(double_free_at_top),
    PROBE(double_free_merged_before),
    PROBE(double_free_merged_into_top),
    PROBE(double_free_mapped),
    PROBE(double_free_with_realloc_to_zero),
    PROBE(double_free_of_the_old_block_of_realloc),
    PROBE(double_free_across_threads_5000),
    PROBE(double_free_across_threads_small),
    PROBE(free_misaligned),
    PROBE(free_off_by_one),
    PROBE(free_interior),
    PROBE(free_interior_text),
    PROBE(free_interior_mapped),
    PROBE(free_page_of_mapped),
    PROBE(free_stack),
    PROBE(free_stack_misaligned),
    PROBE(free_stack_text),
    PROBE(free_static),
    PROBE(free_string),
    PROBE(free_null_plus_16),
    PROBE(free_wild),
    PROBE(free_non_canonical),
    PROBE(free_minus_16),
    PROBE(free_top),
    PROBE(realloc_misaligned),
    PROBE(realloc_interior),
    PROBE(realloc_stack),
    PROBE(realloc_static_misaligned),
    PROBE(realloc_null_plus_16),
    PROBE(realloc_page_of_mapped),
    PROBE(realloc_freed_small),
    PROBE(realloc_freed_1200),
    PROBE(realloc_freed_at_top),
    PROBE(realloc_freed_mapped),
    PROBE(overrun_size_zero_fast),
    PROBE(overrun_size_huge_fast),
    PROBE(overrun_size_zero_normal),
    PROBE(overrun_size_huge_normal),
    PROBE(overrun_with_zeros),
    PROBE(overrun_with_text),
    PROBE(overrun_then_free_the_next),
    PROBE(overrun_zeros_then_free_the_next),
    PROBE(overrun_then_realloc),
    PROBE(overrun_huge_then_realloc),
    PROBE(overrun_top_then_malloc),
    PROBE(overrun_top_with_text_then_malloc),
    PROBE(own_size_zero),
    PROBE(own_size_odd),
    PROBE(own_size_huge),
    PROBE(own_size_says_mapped),
    PROBE(own_size_of_mapped),
    PROBE(own_size_of_mapped_then_realloc),
    PROBE(own_size_zero_then_realloc),
    PROBE(own_size_huge_then_realloc),
    PROBE(cached_next_misaligned),
    PROBE(fast_next_misaligned),
    PROBE(fast_next_misaligned_then_consolidate),
    PROBE(fast_size_overwritten),
    PROBE(fast_size_overwritten_then_consolidate),
    PROBE(fast_entry_size_overwritten_then_free),
    PROBE(unsorted_links),
    PROBE(unsorted_links_then_free),
    PROBE(unsorted_links_then_merge),
    PROBE(unsorted_size),
    PROBE(unsorted_size_huge),
    PROBE(unsorted_next_size),
    PROBE(unsorted_next_in_use),
    PROBE(small_bin_links),
    PROBE(small_bin_links_then_merge),
    PROBE(large_bin_links),
    PROBE(large_bin_links_then_merge),
    PROBE(large_bin_size_links),
    PROBE(large_bin_size_links_then_file),
    PROBE(foot_of_freed_then_free_the_next),
    PROBE(foot_of_freed_then_malloc),
    PROBE(size_of_freed_then_free_before),
    PROBE(size_of_freed_then_free_behind),
    PROBE(previous_in_use_cleared),
};

void* run_probe(void* probe) {
  make(16);
  static_cast<const Probe*>(probe)->run();
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  if (strcmp(argv[1], "list") == 0) {
    for (const Probe& probe : kProbes) puts(probe.name);
    return 0;
  }
  // Before the damage: stdio's own block must not lie behind what the probe breaks.
  static char output[256];
  setvbuf(stdout, output, _IOLBF, sizeof output);
  make(16);
  for (const Probe& probe : kProbes) {
    if (strcmp(argv[1], probe.name) != 0) continue;
    if (argc == 2) {
      probe.run();
    } else {  // In an arena of its own.
      in_thread(run_probe, const_cast<Probe*>(&probe));
    }
    puts("not noticed");
    return 0;
  }
  return 2;
}
