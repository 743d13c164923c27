// SPDX-License-Identifier: Apache-2.0
//
// Where the words of a chunk are. A chunk starts 16 bytes before the memory the program gets, at a
// multiple of 16.
//
//   Header16, allocated             Header16, free
//   +0   chunk size | flags         +0     chunk size | flags
//   +8   allocation id              +8     link: next of its list
//   +16  the program's memory       +16    link: previous of its list
//        ...                        +24    large only: next and previous of another size
//        (size - 16 bytes)          size-8 the size again: the next chunk finds its neighbour by it
//
// A Layout answers only where things are and how many bytes a request takes. It never decides:
// every comparison with a policy constant uses glibc's chunk size for the request, `nb` (below), in
// every layout, so that all layouts take the same decisions. The `slack` flag records nb where the
// chunk is 16 bytes larger than it (1 of 2 requests under Header16, never under glibc's own
// layout), so that free decides by the same number as malloc did.
//
// The size word of an allocated chunk is also written by whoever frees the chunk before it
// (kPrevInUse), under the arena's lock: nobody else may write it without that lock, and reads
// without it are relaxed atomics.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interposer/base/bits.h"

namespace heapledger::heap {

struct Chunk;  // Never defined: a chunk is bytes, read through ChunkView.

inline constexpr size_t kAlignment = 16;  // Of every block and every chunk size.
inline constexpr size_t kMinChunk =
    32;  // glibc's MINSIZE; also the smallest remainder worth splitting off.
inline constexpr size_t kFenceBytes =
    16;  // A pseudo-chunk that ends a part of an arena, always in use.
inline constexpr size_t kRequestMax = PTRDIFF_MAX;  // Larger requests fail at once.

// Flags in the low bits of the size word.
inline constexpr size_t kPrevInUse =
    1;                                  // The chunk before this one is not free (or there is none).
inline constexpr size_t kIsMapped = 2;  // A mapping of its own.
inline constexpr size_t kNonMain = 4;   // Belongs to a secondary arena.
inline constexpr size_t kSlack =
    8;  // In an arena: nb is chunk size - 16. In a mapping: a front offset is stored.
// In a mapping, where the version says so: 16 bytes behind the chunk belong to the mapping, too.
// The block may use 8 of them, as in an arena.
inline constexpr size_t kMappedTail = 4;
inline constexpr size_t kMappedTailBytes = 16;
inline constexpr size_t kMappedHuge = 1;  // In a mapping, likewise: it has pages of the huge pool.
inline constexpr size_t kFlagMask = 15;

// glibc's chunk size for a request (its request2size): the number that every policy constant is
// compared with.
constexpr size_t policy_bytes(size_t request) {
  const size_t rounded = base::align_down(request + 8 + kAlignment - 1, kAlignment);
  return rounded < kMinChunk ? kMinChunk : rounded;
}

// A block with a 16-byte header: word 0 size and flags, word 1 the id of its allocation.
struct Header16 {
  static constexpr ptrdiff_t kHeadAt = 0;  // Size word.
  static constexpr bool kHasId = true;     // There is a word only for us in each allocated chunk:
  static constexpr ptrdiff_t kIdAt = 8;    // its block's id, or kFreedMark once it is freed.
  static constexpr ptrdiff_t kLinkAt = 8;  // Links of a chunk in a bin.
  // Size of the free chunk before this one; front offset of a mapping.
  static constexpr ptrdiff_t kPrevSizeAt = -8;
  static constexpr size_t kBorrowed = 0;   // Bytes of the next chunk that belong to this block.
  static constexpr size_t kSlackMax = 16;  // chunk_bytes() - policy_bytes() at most.

  // Bytes the chunk of this request takes.
  static constexpr size_t chunk_bytes(size_t request) {
    const size_t rounded = base::align_up(request, kAlignment) + 16;
    return rounded < kMinChunk ? kMinChunk : rounded;
  }
};

// glibc's own header of 8 bytes, for models of what glibc would have done with the same calls. A
// block borrows the first word of the next chunk, so that word holds a size only while this chunk
// is free:
//
//   +0  the previous chunk's: its data, or its size while it is free
//   +8  chunk size | flags
//   +16 the program's memory, or the links of a free chunk
//
// It has no id word, hence no marks: double frees of cached blocks are not found.
struct Glibc {
  static constexpr ptrdiff_t kHeadAt = 8;
  static constexpr bool kHasId = false;
  static constexpr ptrdiff_t kLinkAt = 16;
  static constexpr ptrdiff_t kPrevSizeAt = 0;
  static constexpr size_t kBorrowed = 8;
  static constexpr size_t kSlackMax = 0;

  static constexpr size_t chunk_bytes(size_t request) { return policy_bytes(request); }
};

// What a request asks for: `policy` decides, `bytes` are taken.
struct Request {
  size_t policy = 0;  // glibc's nb.
  size_t bytes = 0;   // Size of the chunk in this layout; policy or policy + 16.
  size_t user = 0;    // What the program asked for.

  template <class Layout>
  static constexpr Request of(size_t size) {
    return {policy_bytes(size), Layout::chunk_bytes(size), size};
  }
  // The flag that remembers the difference.
  constexpr size_t slack_flag() const { return (bytes - policy) / kAlignment * kSlack; }
};

// Typed access to the words of chunks. All static: a chunk carries no object.
template <class Layout>
struct ChunkView {
  static constexpr size_t kHeaderBytes = 16;

  static Chunk* at(const Chunk* chunk, ptrdiff_t bytes) {
    return reinterpret_cast<Chunk*>(base::address_of(chunk) + static_cast<size_t>(bytes));
  }
  static Chunk* after(const Chunk* chunk, size_t bytes) {
    return reinterpret_cast<Chunk*>(base::address_of(chunk) + bytes);
  }
  static Chunk* of_block(const void* block) {
    return reinterpret_cast<Chunk*>(base::address_of(block) - kHeaderBytes);
  }
  static void* block(const Chunk* chunk) {
    return base::pointer_to(base::address_of(chunk) + kHeaderBytes);
  }

  // Relaxed: the flag kPrevInUse may change under another thread's lock; sizes do not while the
  // reader owns the chunk.
  static size_t head(const Chunk* chunk) {
    return __atomic_load_n(word(chunk, Layout::kHeadAt), __ATOMIC_RELAXED);
  }
  static void set_head(Chunk* chunk, size_t value) {
    __atomic_store_n(word(chunk, Layout::kHeadAt), value, __ATOMIC_RELAXED);
  }
  static size_t size(const Chunk* chunk) { return head(chunk) & ~kFlagMask; }
  // glibc's size of the chunk: what the policy sees.
  static size_t policy_size(const Chunk* chunk) { return policy_size_of(head(chunk)); }
  static size_t policy_size_of(size_t head) { return (head & ~kFlagMask) - 2 * (head & kSlack); }
  static Chunk* next(const Chunk* chunk) { return after(chunk, size(chunk)); }

  static bool prev_in_use(const Chunk* chunk) { return (head(chunk) & kPrevInUse) != 0; }
  static bool in_use(const Chunk* chunk) { return prev_in_use(next(chunk)); }
  static void set_prev_in_use(Chunk* chunk) { set_head(chunk, head(chunk) | kPrevInUse); }
  static void clear_prev_in_use(Chunk* chunk) { set_head(chunk, head(chunk) & ~kPrevInUse); }

  // The size of the chunk before this one, valid while that chunk is free.
  static size_t prev_size(const Chunk* chunk) { return *word(chunk, Layout::kPrevSizeAt); }
  static void set_prev_size(Chunk* chunk, size_t value) {
    *word(chunk, Layout::kPrevSizeAt) = value;
  }
  // Makes `chunk`, of `bytes`, findable from behind.
  static void set_foot(Chunk* chunk, size_t bytes) { set_prev_size(after(chunk, bytes), bytes); }

  // Bin links.
  static Chunk*& next_link(Chunk* chunk) { return *link(chunk, 0); }
  static Chunk*& prev_link(Chunk* chunk) { return *link(chunk, 1); }
  static Chunk*& next_size_link(Chunk* chunk) { return *link(chunk, 2); }
  static Chunk*& prev_size_link(Chunk* chunk) { return *link(chunk, 3); }

  // The word only for us; layouts without one read as 0 and forget what is written.
  static uint64_t mark(const Chunk* chunk) {
    if constexpr (Layout::kHasId) {
      return __atomic_load_n(word(chunk, Layout::kIdAt), __ATOMIC_RELAXED);
    }
    return 0;
  }
  static void set_mark(Chunk* chunk, uint64_t value) {
    if constexpr (Layout::kHasId) {
      __atomic_store_n(word(chunk, Layout::kIdAt), value, __ATOMIC_RELAXED);
    }
  }

  // Bytes the program may use.
  static size_t usable(const Chunk* chunk) {
    const size_t value = head(chunk);
    const size_t bytes = (value & ~kFlagMask) - kHeaderBytes;
    if ((value & kIsMapped) == 0) return bytes + Layout::kBorrowed;
    return bytes + ((value & kMappedTail) != 0 ? 8 : 0);
  }
  // The same for the program on glibc: its own layout's for this chunk.
  static size_t policy_usable(const Chunk* chunk) {
    return (head(chunk) & kIsMapped) != 0 ? usable(chunk) : policy_size(chunk) - 8;
  }
  // Of the mapping of a mapped chunk: what lies behind the chunk's start.
  static size_t mapped_bytes(const Chunk* chunk) {
    return size(chunk) + ((head(chunk) & kMappedTail) != 0 ? kMappedTailBytes : 0);
  }

 private:
  static size_t* word(const Chunk* chunk, ptrdiff_t offset) {
    return reinterpret_cast<size_t*>(base::address_of(chunk) + static_cast<size_t>(offset));
  }
  static Chunk** link(Chunk* chunk, ptrdiff_t index) {
    return reinterpret_cast<Chunk**>(word(chunk, Layout::kLinkAt + 8 * index));
  }
};

}  // namespace heapledger::heap
