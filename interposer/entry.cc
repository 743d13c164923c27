// SPDX-License-Identifier: Apache-2.0
// The exported malloc family: arguments checked by glibc's rules, the heap called, the call
// recorded. Nothing else.
//
// Ordering rule (here and nowhere else): an allocation is stamped after its block exists; a release
// is validated first, then stamped and recorded, then done, since from then on another thread may
// get the address; a realloc is one event with both. errno: set where C says so, otherwise as it
// was.
#include <errno.h>
#include <malloc.h>

#include <cstdlib>
#include <cstring>

#include "interposer/base/bits.h"
#include "interposer/calls.h"

#define HL_EXPORT extern "C" __attribute__((visibility("default")))
#define HL_ALIAS(name) __attribute__((visibility("default"), alias(#name)))

using heapledger::g_heap;
using heapledger::is_plain;
using heapledger::real;
using heapledger::record_allocation;
using heapledger::record_release;
using heapledger::release_plain;
using heapledger::t_heap;
using heapledger::base::is_aligned;
using heapledger::base::kPageBytes;
using heapledger::schema::EventKind;

namespace {

using heapledger::heap::Use;

// What realloc's observer leaves behind.
struct EndStamp {
  uint64_t tick = 0;
};

void stamp_end(void* context, void*) {
  static_cast<EndStamp*>(context)->tick = heapledger::trace::tick();
}

void move_own_block(void* own_block, void* block, size_t size) {
  const size_t old_size = heapledger::OwnHeap::usable_size(own_block);
  std::memcpy(block, own_block, old_size < size ? old_size : size);
  heapledger::release_own(own_block);
}

void* resize_plain(void* old, size_t size) {
  if (old != nullptr && !g_heap.check(old, Use::kRealloc).ours) {
    return heapledger::resize_foreign(old, size);
  }
  return g_heap.reallocate(t_heap, old, size);
}

[[gnu::noinline]] void* record_resize(EventKind kind, void* old, size_t size, const void* caller) {
  if (!heapledger::traced()) {
    heapledger::arm_plain();
    return resize_plain(old, size);
  }
  const bool own_call = heapledger::trace::is_own_call(caller);
  if (own_call && (old == nullptr || heapledger::is_own_block(old))) {
    return heapledger::resize_own(old, size);
  }
  heapledger::trace::CallScope scope(caller);
  heapledger::heap::Checked found;
  void* own_block = nullptr;
  if (old != nullptr) {
    scope.announce(kind, old, size);
    found = g_heap.check(old, Use::kRealloc);
    if (!found.ours && heapledger::is_own_block(old)) {
      // To the program's heap this is a new block; old's birth was no event either.
      if (size == 0) return heapledger::resize_own(old, 0);
      own_block = old;
      old = nullptr;
    } else if (!found.ours) {
      return heapledger::resize_foreign(old, size);
    }
  }
  if (own_call) {  // A block of the program's, which stays one: an environment array, say.
    void* block = g_heap.reallocate(t_heap, old, size);
    if (block != nullptr) heapledger::Heap::set_id(block, found.id);
    return block;
  }
  EndStamp end;
  void* block = g_heap.reallocate(t_heap, old, size, {stamp_end, &end});
  const bool failed = block == nullptr && !(old != nullptr && size == 0);
  uint64_t id = 0;
  size_t usable = 0;
  if (block != nullptr) {
    id = scope.next_id();
    heapledger::Heap::set_id(block, id);
    usable = heapledger::Heap::usable_size(block);
  }
  scope.on_reallocation({kind, end.tick, old, found.id, block, size, usable, id, failed});
  if (own_block != nullptr && block != nullptr) move_own_block(own_block, block, size);
  return block;
}

void* allocate_aligned(EventKind kind, size_t alignment, size_t size, const void* caller) {
  return record_allocation(kind, size, alignment, caller,
                           [=] { return g_heap.allocate_aligned(t_heap, alignment, size); });
}

// A call that is refused before the heap sees it is a failed call all the same.
void* refuse(EventKind kind, size_t size, size_t alignment, int error, const void* caller) {
  errno = error;
  return record_allocation(kind, size, alignment, caller,
                           [] { return static_cast<void*>(nullptr); });
}

// Apart from malloc, so that the path of plain threads there needs no stack frame.
[[gnu::noinline]] void* record_malloc(size_t size, const void* caller) {
  return record_allocation(EventKind::kMalloc, size, 0, caller,
                           [=] { return g_heap.allocate(t_heap, size); });
}

[[gnu::noinline]] void* record_calloc(size_t count, size_t size, const void* caller) {
  const size_t bytes = heapledger::base::multiply_saturating(count, size);
  return record_allocation(EventKind::kCalloc, bytes, 0, caller,
                           [=] { return g_heap.allocate_zeroed(t_heap, count, size); });
}

}  // namespace

void heapledger::release_plain_slow(void* block) noexcept {
  if (block != nullptr && !g_heap.release_uncached(t_heap, block)) release_foreign(block);
}

HL_EXPORT void* malloc(size_t size) {
  if (is_plain()) return g_heap.allocate(t_heap, size);
  return record_malloc(size, __builtin_return_address(0));
}

HL_EXPORT void free(void* block) {
  if (is_plain()) return release_plain(block);
  record_release(EventKind::kFree, block, __builtin_return_address(0));
}

HL_EXPORT void* calloc(size_t count, size_t size) {
  if (is_plain()) return g_heap.allocate_zeroed(t_heap, count, size);
  return record_calloc(count, size, __builtin_return_address(0));
}

HL_EXPORT void* realloc(void* old, size_t size) {
  if (is_plain()) return resize_plain(old, size);
  return record_resize(EventKind::kRealloc, old, size, __builtin_return_address(0));
}

HL_EXPORT void* reallocarray(void* old, size_t count, size_t size) {
  if (!heapledger::is_plain()) heapledger::traced();  // The first call finds out.
  if (__builtin_expect(heapledger::g_other_malloc.load(std::memory_order_relaxed), 0)) {
    return real().reallocarray(old, count, size);  // libc's calls the program's realloc.
  }
  const size_t bytes = heapledger::base::multiply_saturating(count, size);
  if (is_plain()) return resize_plain(old, bytes);
  return record_resize(EventKind::kReallocarray, old, bytes, __builtin_return_address(0));
}

HL_EXPORT void* memalign(size_t alignment, size_t size) {
  return allocate_aligned(EventKind::kMemalign, alignment, size, __builtin_return_address(0));
}

HL_EXPORT void* aligned_alloc(size_t alignment, size_t size) {
  const bool is_odd = alignment == 0 || (alignment & (alignment - 1)) != 0;
  if (__builtin_expect(is_odd, 0)) {
    const auto rules = heapledger::heap::glibc_rules(g_heap.settings().glibc_version);
    if (rules.aligned_needs_power_of_two) {
      return refuse(EventKind::kAlignedAlloc, size, alignment, EINVAL, __builtin_return_address(0));
    }
  }
  return allocate_aligned(EventKind::kAlignedAlloc, alignment, size, __builtin_return_address(0));
}

HL_EXPORT int posix_memalign(void** result, size_t alignment, size_t size) {
  if (alignment % sizeof(void*) != 0 || alignment == 0 || (alignment & (alignment - 1)) != 0) {
    return EINVAL;
  }
  const int saved_errno = errno;
  void* block =
      allocate_aligned(EventKind::kPosixMemalign, alignment, size, __builtin_return_address(0));
  errno = saved_errno;
  if (block == nullptr) return ENOMEM;
  *result = block;
  return 0;
}

HL_EXPORT void* valloc(size_t size) {
  return allocate_aligned(EventKind::kValloc, kPageBytes, size, __builtin_return_address(0));
}

HL_EXPORT void* pvalloc(size_t size) {
  const void* caller = __builtin_return_address(0);
  const size_t rounded = heapledger::base::align_up(size, kPageBytes);
  if (rounded < size) return refuse(EventKind::kPvalloc, size, kPageBytes, ENOMEM, caller);
  return record_allocation(EventKind::kPvalloc, size, kPageBytes, caller, [=] {
    return g_heap.allocate_aligned(t_heap, kPageBytes, rounded == 0 ? kPageBytes : rounded);
  });
}

HL_EXPORT void cfree(void* block) {
  record_release(EventKind::kCfree, block, __builtin_return_address(0));
}

// The sizes are hints that existing programs get wrong: not trusted.
HL_EXPORT void free_sized(void* block, size_t) {
  record_release(EventKind::kFreeSized, block, __builtin_return_address(0));
}
HL_EXPORT void free_aligned_sized(void* block, size_t, size_t) {
  record_release(EventKind::kFreeAlignedSized, block, __builtin_return_address(0));
}

HL_EXPORT size_t malloc_usable_size(void* block) {
  const bool others = heapledger::g_other_allocators.load(std::memory_order_relaxed);
  if (others && block != nullptr && !g_heap.owns(block)) return real().malloc_usable_size(block);
  return heapledger::Heap::usable_size(block);
}

HL_EXPORT int malloc_trim(size_t pad) {
  if (!heapledger::traced()) return g_heap.trim(pad) ? 1 : 0;
  heapledger::trace::CallScope scope(__builtin_return_address(0));
  heapledger::trace::note_policy(static_cast<uint8_t>(heapledger::heap::PolicyKind::kTrimCalled),
                                 pad, 0);
  const bool released = g_heap.trim(pad);
  scope.flush();
  return released ? 1 : 0;
}

HL_EXPORT int mallopt(int parameter, int value) {
  if (!heapledger::traced()) return g_heap.set_option(parameter, value) ? 1 : 0;
  heapledger::trace::CallScope scope(__builtin_return_address(0));
  const bool accepted = g_heap.set_option(parameter, value);
  scope.flush();
  return accepted ? 1 : 0;
}

// glibc's internal names, which some programs call: both must be ours, or they would mix two heaps.
#ifndef __clang__
#pragma GCC diagnostic ignored \
    "-Wmissing-attributes"  // Aliases need not repeat what their targets promise.
#endif
extern "C" {
HL_ALIAS(malloc) void* __libc_malloc(size_t);
HL_ALIAS(free) void __libc_free(void*);
HL_ALIAS(calloc) void* __libc_calloc(size_t, size_t);
HL_ALIAS(realloc) void* __libc_realloc(void*, size_t);
HL_ALIAS(memalign) void* __libc_memalign(size_t, size_t);
HL_ALIAS(valloc) void* __libc_valloc(size_t);
HL_ALIAS(pvalloc) void* __libc_pvalloc(size_t);
HL_ALIAS(mallopt) int __libc_mallopt(int, int);
}
