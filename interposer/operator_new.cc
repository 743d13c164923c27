// SPDX-License-Identifier: Apache-2.0
// The replaceable operators of C++: 8 forms of new, 12 of delete. Each is a call of its own kind,
// not also a malloc or free.
//
// The library has no C++ run time: on failure, libstdc++'s own functions (the new handler, the
// throw) are looked up in the program. The exception passes through these frames by their unwind
// tables; no CallScope may be alive then.
//
// A program with a malloc of its own gets libstdc++'s operators, which call that: there, too, new
// and malloc are one heap.
#include <errno.h>

#include <atomic>
#include <new>

#include "interposer/base/fatal.h"
#include "interposer/calls.h"

#define HL_EXPORT __attribute__((visibility("default")))

namespace heapledger {
namespace {

using schema::EventKind;

constexpr std::nothrow_t kNothrow{};  // std::nothrow itself lies in libstdc++.

// ---- The operators behind ours, where the program's own malloc is to serve them.

// Not in plain threads: they were found to have none.
bool has_other_malloc() {
  traced();  // The first call finds out.
  return __builtin_expect(g_other_malloc.load(std::memory_order_relaxed), 0);
}

// The next definition of an operator; `known` remembers it.
template <class Function>
Function* next_operator(std::atomic<void*>& known, const char* mangled) {
  // Relaxed: every thread finds the same function.
  void* next = known.load(std::memory_order_relaxed);
  if (next == nullptr) {
    next = find_cxx_function(mangled);
    if (next == nullptr) base::fatal("heapledger: no operator new behind this library's");
    known.store(next, std::memory_order_relaxed);
  }
  return reinterpret_cast<Function*>(next);
}

[[gnu::noinline, gnu::cold]] void* call_next_new(EventKind kind, size_t size, size_t alignment) {
  static constinit std::atomic<void*> plain[2];
  static constinit std::atomic<void*> aligned[2];
  const bool array = kind == EventKind::kNewArray;
  if (alignment == 0) {
    return next_operator<void*(size_t)>(plain[array], array ? "_Znam" : "_Znwm")(size);
  }
  return next_operator<void*(size_t, std::align_val_t)>(
      aligned[array], array ? "_ZnamSt11align_val_t" : "_ZnwmSt11align_val_t")(
      size, std::align_val_t{alignment});
}

// All forms of delete come to this one where there is one heap.
[[gnu::noinline, gnu::cold]] void call_next_delete(EventKind kind, void* block) {
  static constinit std::atomic<void*> known[2];
  const bool array = kind == EventKind::kDeleteArray;
  next_operator<void(void*)>(known[array], array ? "_ZdaPv" : "_ZdlPv")(block);
}

// ---- Ours.

// A failed attempt is not recorded: the new handler may find memory. record_failure() records the
// call that failed for good.
void* try_allocate(EventKind kind, size_t size, size_t alignment, const void* caller) {
  const auto make = [=] {
    return alignment == 0 ? g_heap.allocate(t_heap, size)
                          : g_heap.allocate_aligned(t_heap, alignment, size);
  };
  if (!traced()) {
    arm_plain();
    return make();
  }
  trace::CallScope scope(caller);
  void* block = make();
  if (block == nullptr) {
    scope.flush();
    return nullptr;
  }
  const uint64_t id = scope.next_id();
  Heap::set_id(block, id);
  scope.on_allocation({kind, block, size, Heap::usable_size(block), alignment, id});
  return block;
}

void record_failure(EventKind kind, size_t size, size_t alignment, const void* caller) {
  if (traced()) {
    record_allocation(kind, size, alignment, caller, [] { return static_cast<void*>(nullptr); });
  }
}

std::new_handler current_new_handler() {
  using Getter = std::new_handler (*)() noexcept;
  const auto getter = reinterpret_cast<Getter>(find_cxx_function("_ZSt15get_new_handlerv"));
  return getter == nullptr ? nullptr : getter();
}

[[noreturn]] void throw_bad_alloc() {
  using Thrower = void (*)();
  const auto thrower = reinterpret_cast<Thrower>(find_cxx_function("_ZSt17__throw_bad_allocv"));
  if (thrower != nullptr) thrower();
  base::fatal("terminate called after throwing an instance of 'std::bad_alloc'");
}

[[gnu::noinline]] void* allocate_or_throw_slow(EventKind kind, size_t size, size_t alignment,
                                               const void* caller) {
  for (;;) {
    const std::new_handler handler = current_new_handler();
    if (handler == nullptr) {
      record_failure(kind, size, alignment, caller);
      throw_bad_alloc();
    }
    handler();
    void* block = try_allocate(kind, size, alignment, caller);
    if (block != nullptr) return block;
  }
}

[[gnu::noinline]] void* record_or_throw(EventKind kind, size_t size, size_t alignment,
                                        const void* caller) {
  if (has_other_malloc()) return call_next_new(kind, size, alignment);
  void* block = try_allocate(kind, size, alignment, caller);
  if (__builtin_expect(block != nullptr, 1)) return block;
  return allocate_or_throw_slow(kind, size, alignment, caller);
}

// Plain threads get their block from the cache here, without a stack frame.
inline void* allocate_or_throw(EventKind kind, size_t size, const void* caller) {
  if (is_plain()) {
    void* block = g_heap.allocate_cached(t_heap, size);
    if (__builtin_expect(block != nullptr, 1)) return block;
  }
  return record_or_throw(kind, size, 0, caller);
}

// The handler may throw, and the nothrow forms must then return null. libstdc++'s own nothrow form
// catches: it calls our throwing one, which records the call.
[[gnu::noinline]] void* allocate_or_null_slow(EventKind kind, size_t size, size_t alignment,
                                              const void* caller) {
  const bool array = kind == EventKind::kNewArray;
  if (alignment == 0) {
    using Form = void* (*)(size_t, const std::nothrow_t&);
    const auto form = reinterpret_cast<Form>(
        find_cxx_function(array ? "_ZnamRKSt9nothrow_t" : "_ZnwmRKSt9nothrow_t"));
    if (form != nullptr) return form(size, kNothrow);
  } else {
    using Form = void* (*)(size_t, std::align_val_t, const std::nothrow_t&);
    const auto form = reinterpret_cast<Form>(find_cxx_function(
        array ? "_ZnamSt11align_val_tRKSt9nothrow_t" : "_ZnwmSt11align_val_tRKSt9nothrow_t"));
    if (form != nullptr) return form(size, std::align_val_t{alignment}, kNothrow);
  }
  record_failure(kind, size, alignment, caller);
  return nullptr;
}

inline void* allocate_or_null(EventKind kind, size_t size, size_t alignment, const void* caller) {
  // libstdc++'s nothrow form calls our throwing one, which goes on to libstdc++'s.
  if (has_other_malloc()) return allocate_or_null_slow(kind, size, alignment, caller);
  void* block = try_allocate(kind, size, alignment, caller);
  if (__builtin_expect(block != nullptr, 1)) return block;
  return allocate_or_null_slow(kind, size, alignment, caller);
}

[[gnu::noinline]] void release_recorded(EventKind kind, void* block, const void* caller) {
  if (has_other_malloc()) return call_next_delete(kind, block);
  record_release(kind, block, caller);
}

inline void release_block(EventKind kind, void* block, const void* caller) {
  if (is_plain()) return release_plain(block);
  release_recorded(kind, block, caller);
}

}  // namespace
}  // namespace heapledger

using heapledger::allocate_or_null;
using heapledger::allocate_or_throw;
using heapledger::record_or_throw;
using heapledger::release_block;
using heapledger::schema::EventKind;

#define HL_CALLER __builtin_return_address(0)

HL_EXPORT void* operator new(size_t size) {
  return allocate_or_throw(EventKind::kNew, size, HL_CALLER);
}
HL_EXPORT void* operator new[](size_t size) {
  return allocate_or_throw(EventKind::kNewArray, size, HL_CALLER);
}
HL_EXPORT void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return allocate_or_null(EventKind::kNew, size, 0, HL_CALLER);
}
HL_EXPORT void* operator new[](size_t size, const std::nothrow_t&) noexcept {
  return allocate_or_null(EventKind::kNewArray, size, 0, HL_CALLER);
}
HL_EXPORT void* operator new(size_t size, std::align_val_t alignment) {
  return record_or_throw(EventKind::kNew, size, static_cast<size_t>(alignment), HL_CALLER);
}
HL_EXPORT void* operator new[](size_t size, std::align_val_t alignment) {
  return record_or_throw(EventKind::kNewArray, size, static_cast<size_t>(alignment), HL_CALLER);
}
HL_EXPORT void* operator new(size_t size, std::align_val_t alignment,
                             const std::nothrow_t&) noexcept {
  return allocate_or_null(EventKind::kNew, size, static_cast<size_t>(alignment), HL_CALLER);
}
HL_EXPORT void* operator new[](size_t size, std::align_val_t alignment,
                               const std::nothrow_t&) noexcept {
  return allocate_or_null(EventKind::kNewArray, size, static_cast<size_t>(alignment), HL_CALLER);
}

HL_EXPORT void operator delete(void* block) noexcept {
  release_block(EventKind::kDelete, block, HL_CALLER);
}
HL_EXPORT void operator delete[](void* block) noexcept {
  release_block(EventKind::kDeleteArray, block, HL_CALLER);
}
HL_EXPORT void operator delete(void* block, const std::nothrow_t&) noexcept {
  release_block(EventKind::kDelete, block, HL_CALLER);
}
HL_EXPORT void operator delete[](void* block, const std::nothrow_t&) noexcept {
  release_block(EventKind::kDeleteArray, block, HL_CALLER);
}
HL_EXPORT void operator delete(void* block, size_t) noexcept {
  release_block(EventKind::kDelete, block, HL_CALLER);
}
HL_EXPORT void operator delete[](void* block, size_t) noexcept {
  release_block(EventKind::kDeleteArray, block, HL_CALLER);
}
HL_EXPORT void operator delete(void* block, std::align_val_t) noexcept {
  release_block(EventKind::kDelete, block, HL_CALLER);
}
HL_EXPORT void operator delete[](void* block, std::align_val_t) noexcept {
  release_block(EventKind::kDeleteArray, block, HL_CALLER);
}
HL_EXPORT void operator delete(void* block, std::align_val_t, const std::nothrow_t&) noexcept {
  release_block(EventKind::kDelete, block, HL_CALLER);
}
HL_EXPORT void operator delete[](void* block, std::align_val_t, const std::nothrow_t&) noexcept {
  release_block(EventKind::kDeleteArray, block, HL_CALLER);
}
HL_EXPORT void operator delete(void* block, size_t, std::align_val_t) noexcept {
  release_block(EventKind::kDelete, block, HL_CALLER);
}
HL_EXPORT void operator delete[](void* block, size_t, std::align_val_t) noexcept {
  release_block(EventKind::kDeleteArray, block, HL_CALLER);
}
