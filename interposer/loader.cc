// SPDX-License-Identifier: Apache-2.0
// The dynamic linker's functions that change or show the list of modules.
//
// While they run, this thread does not call libunwind (LoaderScope), which takes the linker's
// locks. RTLD_DEEPBIND is masked out: a library bound that way would take libc's malloc and free
// our blocks there. dlmopen brings a second libc, whose malloc is out of sight: noted as a gap.
#include "interposer/lifecycle.h"
#include "interposer/trace/module_map.h"
#include "interposer/trace/recorder.h"
#include "interposer/trace/stack_capture.h"

#define HL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using heapledger::real;
using heapledger::schema::EventKind;
namespace trace = heapledger::trace;

void note(const char* text, const void* caller) {
  if (!heapledger::traced()) return;
  trace::CallScope scope(caller);
  scope.on_text(EventKind::kNote, text, true);
}

void scan(const void* caller) {
  if (!heapledger::traced()) return;
  trace::CallScope scope(caller);
  trace::scan_modules(real().dl_iterate_phdr, scope);
}

}  // namespace

HL_EXPORT int dl_iterate_phdr(int (*callback)(dl_phdr_info*, size_t, void*), void* data) {
  trace::LoaderScope loader;
  return real().dl_iterate_phdr(callback, data);
}

HL_EXPORT int dlclose(void* handle) noexcept {
  trace::LoaderScope loader;
  const int result = real().dlclose(handle);
  scan(__builtin_return_address(0));
  return result;
}

HL_EXPORT void* dlopen(const char* file, int flags) noexcept {
  const void* caller = __builtin_return_address(0);
  if ((flags & RTLD_DEEPBIND) != 0) {
    flags &= ~RTLD_DEEPBIND;
    note("RTLD_DEEPBIND was masked out of a dlopen: the library would have used libc's malloc",
         caller);
  }
  trace::LoaderScope loader;
  void* handle = real().dlopen(file, flags);
  scan(caller);
  return handle;
}

HL_EXPORT void* dlmopen(Lmid_t space, const char* file, int flags) noexcept {
  const void* caller = __builtin_return_address(0);
  if (space != LM_ID_BASE) {
    heapledger::g_other_allocators.store(true, std::memory_order_relaxed);
    note("dlmopen: what this library and its libc allocate is not recorded", caller);
  }
  trace::LoaderScope loader;
  void* handle = real().dlmopen(space, file, flags & ~RTLD_DEEPBIND);
  scan(caller);
  return handle;
}
