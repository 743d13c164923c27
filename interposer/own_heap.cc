// SPDX-License-Identifier: Apache-2.0
#include "interposer/own_heap.h"

#include "interposer/base/sys.h"
#include "interposer/heap/allocator_impl.h"
#include "interposer/heap/direct_os.h"
#include "interposer/trace/process.h"

template class heapledger::heap::Allocator<heapledger::heap::Header16, heapledger::OwnOs>;

namespace heapledger {

constinit OwnHeap g_own_heap;
// Ended before it began: this heap has no thread caches.
thread_local constinit OwnHeap::ThreadState t_own_heap
    __attribute__((tls_model("initial-exec"))) = {.ended = true};

namespace {

// Addresses, not memory. libunwind takes some 20 KiB, and 10 KiB more per thread.
constexpr size_t kReservedBytes = 4 * 1024 * 1024;  // Less under a low limit.

constinit uintptr_t g_area = 0;  // 0: none was reserved.
constinit size_t g_area_bytes = 0;
constinit uintptr_t g_break = 0;  // Written under the lock of the only arena.

heap::DirectOs counted() {
  trace::count_recorder_syscalls(1);
  return {};
}

}  // namespace

void reserve_own_heap() noexcept {
  const size_t bytes = trace::mapping_allowance(kReservedBytes) & ~size_t{4095};
  void* memory = trace::own_memory(bytes);
  if (memory == nullptr) return;
  g_area = g_break = base::address_of(memory);
  g_area_bytes = bytes;
}

heap::Settings OwnOs::initial_settings() {
  // The program's settings are for its own heap. Nothing is cached, nothing given back.
  heap::Settings settings;
  settings.threshold_is_dynamic = false;
  settings.trim_threshold = SIZE_MAX;
  settings.top_pad = 0;
  settings.arena_max = 1;
  settings.cache_count = 0;
  return settings;
}

uintptr_t OwnOs::brk(uintptr_t address, heap::Cause) {
  if (address >= g_area && address <= g_area + g_area_bytes && g_area != 0) g_break = address;
  return g_break;
}

void* OwnOs::mmap(void* hint, size_t length, int protection, int flags, heap::Cause cause) {
  return counted().mmap(hint, length, protection, flags, cause);
}
bool OwnOs::munmap(void* address, size_t length, heap::Cause cause) {
  return counted().munmap(address, length, cause);
}
void* OwnOs::mremap(void* address, size_t old_length, size_t new_length, int flags,
                    heap::Cause cause) {
  return counted().mremap(address, old_length, new_length, flags, cause);
}
bool OwnOs::madvise(void* address, size_t length, int advice, heap::Cause cause) {
  return counted().madvise(address, length, advice, cause);
}
bool OwnOs::mprotect(void* address, size_t length, int protection, heap::Cause cause) {
  return counted().mprotect(address, length, protection, cause);
}
bool OwnOs::is_single_threaded() { return heap::DirectOs().is_single_threaded(); }

void* allocate_own(size_t size, size_t alignment, bool zeroed) noexcept {
  void* block = alignment != 0 ? g_own_heap.allocate_aligned(t_own_heap, alignment, size)
                : zeroed       ? g_own_heap.allocate_zeroed(t_own_heap, 1, size)
                               : g_own_heap.allocate(t_own_heap, size);
  if (block != nullptr) OwnHeap::set_id(block, trace::kOwnBlock);
  return block;
}

void release_own(void* block) noexcept { g_own_heap.release(t_own_heap, block); }

void* resize_own(void* block, size_t size) noexcept {
  if (block != nullptr) g_own_heap.checked_id(block, heap::Use::kRealloc);
  void* resized = g_own_heap.reallocate(t_own_heap, block, size);
  if (resized != nullptr) OwnHeap::set_id(resized, trace::kOwnBlock);
  return resized;
}

}  // namespace heapledger
