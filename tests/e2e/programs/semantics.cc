// SPDX-License-Identifier: Apache-2.0
// semantics SECTION: what the malloc family returns, sets and leaves alone at its edges, as lines
// "name: value" without addresses, so that the outputs of two allocators can be compared.
// "semantics list" prints the sections.
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>
#include <new>

#include "tests/e2e/programs/sections.h"

namespace {

using Word = uintptr_t;

// Hidden from the compiler, which knows too much about malloc.
template <class T>
T opaque(T value) {
  T volatile hidden = value;
  return hidden;
}
Word address(const void* block) { return reinterpret_cast<Word>(block); }

void say(const char* name, long value) { printf("%s: %ld\n", name, value); }
void say(const char* name, const char* value) { printf("%s: %s\n", name, value); }

// The outcome of one call: null or not, errno, and the alignment as far as 4 KiB.
const char* outcome(const void* block, int error) {
  static char text[128];
  Word alignment = block == nullptr ? 0 : address(block) & -address(block);
  if (alignment > 4096) alignment = 4096;
  const bool aligned = alignment % 16 == 0 && (block == nullptr || alignment >= 16);
  snprintf(text, sizeof text, "%s errno %d%s", block == nullptr ? "null" : "block", error,
           aligned ? "" : " MISALIGNED");
  return text;
}

void fill(void* block, size_t size, int seed) {
  auto* bytes = static_cast<unsigned char*>(block);
  for (size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<unsigned char>(static_cast<size_t>(seed) + i * 7);
  }
}
bool filled(const void* block, size_t size, int seed) {
  const auto* bytes = static_cast<const unsigned char*>(block);
  for (size_t i = 0; i < size; ++i) {
    if (bytes[i] != static_cast<unsigned char>(static_cast<size_t>(seed) + i * 7)) return false;
  }
  return true;
}

constexpr size_t kHuge[] = {size_t{1} << 62, PTRDIFF_MAX - 4096, PTRDIFF_MAX - 16,
                            PTRDIFF_MAX - 1, PTRDIFF_MAX,        size_t{PTRDIFF_MAX} + 1,
                            SIZE_MAX - 4096, SIZE_MAX - 32,      SIZE_MAX - 16,
                            SIZE_MAX - 8,    SIZE_MAX - 1,       SIZE_MAX};

// ---- Sections.

void zero_sizes() {
  void* blocks[7];
  errno = 0;
  blocks[0] = opaque(malloc(opaque<size_t>(0)));
  blocks[1] = opaque(calloc(0, 8));
  blocks[2] = opaque(calloc(8, 0));
  blocks[3] = opaque(calloc(0, opaque(SIZE_MAX)));
  blocks[4] = opaque(realloc(nullptr, 0));
  blocks[5] = opaque(reallocarray(nullptr, 0, 8));
  blocks[6] = opaque(aligned_alloc(64, 0));
  say("errno", errno);
  for (int i = 0; i < 7; ++i) {
    say("block", outcome(blocks[i], 0));
    for (int j = 0; j < i; ++j) {
      if (blocks[i] == blocks[j]) say("not unique", i * 10 + j);
    }
    say("usable", malloc_usable_size(blocks[i]) >= 8);
  }
  for (void* block : blocks) free(block);
  errno = 7;
  void* p = opaque(malloc(100));
  say("realloc(p, 0)", outcome(opaque(realloc(p, 0)), errno));
  p = opaque(malloc(300000));
  say("realloc(mapped, 0)", outcome(opaque(realloc(p, 0)), errno));
  p = opaque(malloc(100));
  say("reallocarray(p, 0, 9)", outcome(opaque(reallocarray(p, 0, 9)), errno));
  p = opaque(malloc(100));
  say("reallocarray(p, 9, 0)", outcome(opaque(reallocarray(p, 9, 0)), errno));
  free(nullptr);
  say("errno", errno);
}

void too_large() {
  for (const size_t size : kHuge) {
    errno = 0;
    void* block = opaque(malloc(opaque(size)));
    say("malloc", outcome(block, errno));
    errno = 0;
    block = opaque(calloc(1, opaque(size)));
    say("calloc", outcome(block, errno));
    errno = 0;
    block = opaque(realloc(nullptr, opaque(size)));
    say("realloc(NULL)", outcome(block, errno));
    errno = 0;
    block = opaque(memalign(64, opaque(size)));
    say("memalign", outcome(block, errno));
    errno = 0;
    block = opaque(aligned_alloc(4096, opaque(size)));
    say("aligned_alloc", outcome(block, errno));
    errno = 0;
    block = opaque(valloc(opaque(size)));
    say("valloc", outcome(block, errno));
    errno = 0;
    block = opaque(pvalloc(opaque(size)));
    say("pvalloc", outcome(block, errno));
    void* result = &errno;
    say("posix_memalign", posix_memalign(&result, 64, opaque(size)));
    say("left alone", result == &errno);
    say("new nothrow", outcome(opaque(operator new(opaque(size), std::nothrow)), 0));
  }
  struct {
    size_t count, size;
  } constexpr kProducts[] = {{SIZE_MAX, 2},
                             {2, SIZE_MAX},
                             {SIZE_MAX / 2 + 1, 2},
                             {size_t{1} << 32, size_t{1} << 32},
                             {size_t{1} << 32, size_t{1} << 31},
                             {SIZE_MAX / 3, 3}};
  for (const auto& product : kProducts) {
    errno = 0;
    void* block = opaque(calloc(opaque(product.count), opaque(product.size)));
    say("calloc product", outcome(block, errno));
    errno = 0;
    block = opaque(reallocarray(nullptr, opaque(product.count), opaque(product.size)));
    say("reallocarray product", outcome(block, errno));
  }
}

void failed_realloc() {
  for (const size_t size : {24UL, 1000UL, 5000UL, 300000UL}) {
    void* block = opaque(malloc(size));
    fill(block, size, 3);
    for (const size_t wanted : kHuge) {
      errno = 0;
      void* result = opaque(realloc(opaque(block), opaque(wanted)));
      say("realloc", outcome(result, errno));
    }
    errno = 0;
    void* result = opaque(reallocarray(opaque(block), opaque(SIZE_MAX / 2), 3));
    say("reallocarray", outcome(result, errno));
    say("intact", filled(block, size, 3));
    free(opaque(block));
  }
}

void posix_memalign_rules() {
  for (const size_t alignment :
       {size_t{0}, size_t{1}, size_t{2}, size_t{4}, size_t{7}, size_t{8}, size_t{12}, size_t{16},
        size_t{24}, size_t{32}, size_t{48}, size_t{4096}, size_t{1} << 20, size_t{1} << 40,
        size_t{1} << 62, size_t{1} << 63, (size_t{1} << 63) + 8}) {
    for (const size_t size : {0UL, 1UL, 100UL}) {
      int nothing = 0;
      void* result = &nothing;
      errno = 99;
      const int error = posix_memalign(&result, opaque(alignment), size);
      say("result", error);
      // glibc sets errno besides returning ENOMEM, against its own documentation.
      if (error != ENOMEM) say("errno", errno);
      if (error != 0) {
        say("left alone", result == &nothing);
        continue;
      }
      say("aligned", address(result) % alignment == 0);
      fill(result, size, 1);
      free(result);
    }
  }
}

void odd_alignments() {
  for (const size_t alignment :
       {size_t{0}, size_t{1}, size_t{3}, size_t{8}, size_t{16}, size_t{17}, size_t{24}, size_t{33},
        size_t{100}, size_t{1000}, size_t{5000}, size_t{1} << 21, size_t{1} << 62,
        (size_t{1} << 62) + 1, size_t{1} << 63, (size_t{1} << 63) + 1, SIZE_MAX}) {
    size_t rounded = 16;
    while (rounded < alignment && rounded != 0) rounded *= 2;
    for (const size_t size : {0UL, 40UL, 200000UL}) {
      errno = 0;
      void* block = opaque(memalign(opaque(alignment), size));
      say("memalign", outcome(block, errno));
      if (block != nullptr) {
        say("rounded up", address(block) % rounded == 0);
        fill(block, malloc_usable_size(block), 2);
        free(block);
      }
      errno = 0;
      block = opaque(aligned_alloc(opaque(alignment), size));
      say("aligned_alloc", outcome(block, errno));
      if (block != nullptr) {
        say("rounded up", address(block) % rounded == 0);
        fill(block, malloc_usable_size(block), 2);
        free(block);
      }
    }
  }
  errno = 0;
  void* block = opaque(valloc(0));
  say("valloc(0)", outcome(block, errno));
  say("page", address(block) % 4096 == 0);
  fill(block, malloc_usable_size(block), 2);
  free(block);
  block = opaque(valloc(5000));
  say("page", address(block) % 4096 == 0);
  free(block);
  for (const size_t size : {size_t{1}, size_t{4095}, size_t{4096}, size_t{4097}}) {
    block = opaque(pvalloc(size));
    say("pvalloc page", address(block) % 4096 == 0);
    say("pvalloc rounds up", malloc_usable_size(block) >= (size + 4095) / 4096 * 4096);
    fill(block, malloc_usable_size(block), 2);
    free(block);
  }
}

void usable_bytes() {
  say("usable(NULL)", static_cast<long>(malloc_usable_size(nullptr)));
  constexpr int kBlocks = 400;
  void* blocks[kBlocks];
  size_t usable[kBlocks];
  for (int i = 0; i < kBlocks; ++i) {
    const size_t size = i % 50 == 49 ? 150000 + static_cast<size_t>(i) * 333
                                     : static_cast<size_t>(i) * static_cast<size_t>(i) / 5;
    blocks[i] = i % 3 == 0   ? opaque(malloc(size))
                : i % 3 == 1 ? opaque(calloc(1, size))
                             : opaque(memalign(size_t{32} << (i % 7), size));
    usable[i] = malloc_usable_size(blocks[i]);
    if (usable[i] < size || address(blocks[i]) % 16 != 0) say("bad block", i);
    if (i % 3 == 1) {
      for (size_t j = 0; j < size; ++j) {
        if (static_cast<char*>(blocks[i])[j] != 0) say("not zero", i);
      }
    }
    fill(blocks[i], usable[i], i);
  }
  for (int i = 0; i < kBlocks; ++i) {
    if (!filled(blocks[i], usable[i], i)) say("overwritten", i);
  }
  for (int i = 0; i < kBlocks; i += 2) free(blocks[i]);
  for (int i = 1; i < kBlocks; i += 2) {
    const size_t size = usable[i] / 2 + static_cast<size_t>(i * 40 % 3000);
    blocks[i] = opaque(realloc(blocks[i], size));
    const size_t kept = size < usable[i] ? size : usable[i];
    if (!filled(blocks[i], kept, i)) say("lost by realloc", i);
    fill(blocks[i], malloc_usable_size(blocks[i]), i + 1);
  }
  for (int i = 1; i < kBlocks; i += 2) {
    if (!filled(blocks[i], malloc_usable_size(blocks[i]), i + 1)) say("overwritten later", i);
    free(blocks[i]);
  }
  // Where calloc's memory was used before.
  for (int round = 0; round < 20; ++round) {
    for (const size_t size : {40UL, 600UL, 1500UL, 20000UL, 200000UL, 900000UL}) {
      void* dirty = opaque(malloc(size));
      memset(dirty, 0xee, size);
      free(opaque(dirty));
      auto* clean = static_cast<char*>(opaque(calloc(size / 8, 8)));
      for (size_t j = 0; j < size / 8 * 8; ++j) {
        if (clean[j] != 0) say("calloc left data at", static_cast<long>(j));
      }
      free(clean);
    }
  }
  say("done", 1);
}

void errno_is_kept() {
  for (const size_t size : {8UL, 100UL, 1000UL, 5000UL, 100000UL, 140000UL, 400000UL, 3000000UL}) {
    errno = 0;
    void* block = opaque(malloc(size));
    say("malloc", errno);
    errno = 1234;
    free(block);
    say("free", errno);
    block = opaque(malloc(size));
    void* second = opaque(malloc(16));
    errno = 1234;
    block = opaque(realloc(block, size * 2));
    say("realloc", errno);
    free(block);
    free(second);
    say("frees", errno);
  }
  // Frees that trim the heap.
  char* blocks[40];
  for (char*& block : blocks) block = static_cast<char*>(opaque(malloc(100000)));
  errno = 4321;
  for (int i = 39; i >= 0; --i) free(blocks[i]);
  say("trims", errno);
  errno = 4321;
  say("malloc_trim", malloc_trim(0));
  say("errno", errno);
  malloc_usable_size(opaque(malloc(10)));
  mallinfo2();
  say("errno", errno);
}

using FreeSized = void (*)(void*, size_t);
using FreeAlignedSized = void (*)(void*, size_t, size_t);

// glibc has them from 2.43: without them, free() stands in, and so does the comparison.
void sized_frees() {
  auto sized = reinterpret_cast<FreeSized>(dlsym(RTLD_DEFAULT, "free_sized"));
  auto aligned = reinterpret_cast<FreeAlignedSized>(dlsym(RTLD_DEFAULT, "free_aligned_sized"));
  if (sized == nullptr) sized = [](void* block, size_t) { free(block); };
  if (aligned == nullptr) aligned = [](void* block, size_t, size_t) { free(block); };
  errno = 77;
  sized(nullptr, 100);
  aligned(nullptr, 64, 100);
  for (const size_t size : {0UL, 30UL, 1000UL, 50000UL, 300000UL}) {
    sized(opaque(malloc(size)), size);
    sized(opaque(calloc(1, size)), size);
    aligned(opaque(aligned_alloc(64, size)), 64, size);
    aligned(opaque(aligned_alloc(8192, size)), 8192, size);
    sized(opaque(malloc(size)), size + 5);  // A wrong size must not break what free would bear.
  }
  say("errno", errno);
}

// ---- C++.

int handler_calls = 0;

void handler_that_gives_up() {
  if (++handler_calls == 3) std::set_new_handler(nullptr);
}
struct HandlerError {};
void handler_that_throws() {
  ++handler_calls;
  throw HandlerError();
}
void handler_that_throws_bad_alloc() {
  ++handler_calls;
  throw std::bad_alloc();
}

constexpr size_t kImpossible = size_t{1} << 60;
constexpr std::align_val_t kAlign{128};

// Every allocating form, by number; array forms are odd.
void* make(int form, size_t size) {
  switch (form) {
    case 0:
      return operator new(size);
    case 1:
      return operator new[](size);
    case 2:
      return operator new(size, std::nothrow);
    case 3:
      return operator new[](size, std::nothrow);
    case 4:
      return operator new(size, kAlign);
    case 5:
      return operator new[](size, kAlign);
    case 6:
      return operator new(size, kAlign, std::nothrow);
    default:
      return operator new[](size, kAlign, std::nothrow);
  }
}
constexpr int kForms = 8;

// Every releasing form of the right family.
void release(int form, bool array, bool aligned, void* block, size_t size) {
  if (!aligned) {
    switch (form % 3) {
      case 0:
        return array ? operator delete[](block) : operator delete(block);
      case 1:
        return array ? operator delete[](block, size) : operator delete(block, size);
      default:
        return array ? operator delete[](block, std::nothrow) :
                     operator delete(block, std::nothrow);
    }
  }
  switch (form % 3) {
    case 0:
      return array ? operator delete[](block, kAlign) : operator delete(block, kAlign);
    case 1:
      return array ? operator delete[](block, size, kAlign) : operator delete(block, size, kAlign);
    default:
      return array ? operator delete[](block, kAlign, std::nothrow) :
                   operator delete(block, kAlign, std::nothrow);
  }
}

const char* how_it_ends(int form, size_t size) {
  try {
    void* block = opaque(make(form, opaque(size)));
    if (block == nullptr) return "null";
    release(0, form % 2 != 0, form >= 4, block, size);
    return "block";
  } catch (const HandlerError&) {
    return "handler's exception";
  } catch (const std::bad_alloc&) {
    return "bad_alloc";
  }
}

void operators() {
  for (int form = 0; form < kForms; ++form) {
    for (int way = 0; way < 3; ++way) {
      for (const size_t size : {0UL, 1UL, 100UL, 4000UL, 300000UL}) {
        errno = 0;
        void* block = opaque(make(form, size));
        void* other = opaque(make(form, size));
        say("new", outcome(block, errno));
        if (block == other) say("not unique", form);
        if (form >= 4 && address(block) % 128 != 0) say("misaligned", form);
        fill(block, size, 5);
        errno = 55;
        release(way, form % 2 != 0, form >= 4, block, size);
        release(way, form % 2 != 0, form >= 4, other, size);
        say("delete", errno);
      }
      release(way, form % 2 != 0, form >= 4, nullptr, 0);
    }
  }
  // The families may be mixed where everything is malloc underneath.
  free(opaque(make(0, 50)));
  free(opaque(make(5, 50)));
  operator delete(opaque(malloc(50)));
  operator delete[](opaque(aligned_alloc(128, 50)), kAlign);
  void* grown = opaque(realloc(opaque(make(1, 50)), 5000));
  operator delete(grown);
  say("mixed", 1);
}

void failing_operators() {
  for (int form = 0; form < kForms; ++form) {
    for (const size_t size : {kImpossible, SIZE_MAX, SIZE_MAX - 64}) {
      // libstdc++ 12 rounds such a size up to 0 where an alignment is given.
      if (form >= 4 && size != kImpossible) continue;
      std::set_new_handler(nullptr);
      errno = 0;
      say("no handler", how_it_ends(form, size));
      handler_calls = 0;
      std::set_new_handler(handler_that_gives_up);
      say("handler gives up", how_it_ends(form, size));
      say("calls", handler_calls);
      handler_calls = 0;
      std::set_new_handler(handler_that_throws_bad_alloc);
      say("handler throws bad_alloc", how_it_ends(form, size));
      say("calls", handler_calls);
      handler_calls = 0;
      std::set_new_handler(handler_that_throws);
      say("handler throws", how_it_ends(form, size));
      say("calls", handler_calls);
    }
  }
  std::set_new_handler(nullptr);
}

constexpr victim::NamedPart kSections[] = {
    SECTION(zero_sizes),           SECTION(too_large),      SECTION(failed_realloc),
    SECTION(posix_memalign_rules), SECTION(odd_alignments), SECTION(usable_bytes),
    SECTION(errno_is_kept),        SECTION(sized_frees),    SECTION(operators),
    SECTION(failing_operators),
};

}  // namespace

int main(int argc, char** argv) { return victim::run_named_part(kSections, argc, argv); }
