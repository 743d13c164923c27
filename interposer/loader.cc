// SPDX-License-Identifier: Apache-2.0
// The dynamic linker's functions that change or show the list of modules.
//
// While they run, this thread does not call libunwind (LoaderScope), which takes the linker's
// locks. RTLD_DEEPBIND is masked out: a library bound that way would take libc's malloc and free
// our blocks there. dlmopen brings a second libc, whose malloc is out of sight: noted as a gap.
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <cstring>

#include "interposer/base/env.h"
#include "interposer/base/sys.h"
#include "interposer/lifecycle.h"
#include "interposer/trace/module_map.h"
#include "interposer/trace/recorder.h"
#include "interposer/trace/stack_capture.h"

#define HL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using heapledger::real;
using heapledger::schema::EventKind;
namespace trace = heapledger::trace;
namespace sys = heapledger::base::sys;

void note(const char* text, const void* caller) {
  if (!heapledger::traced()) return;
  trace::CallScope scope(caller);
  scope.on_text(EventKind::kNote, text, true);
}

// ---- libc searches the DT_RPATH and DT_RUNPATH of the file that called dlopen, which it tells by
// the return address: ours. So where the program's file has such a path, it is searched here first,
// as libc would.

// The directories of one entry, with $ORIGIN replaced; false where it does not fit.
bool expand(const char* entry, size_t length, const char* origin, char* path, size_t size) {
  constexpr const char* kTokens[] = {"$ORIGIN", "${ORIGIN}"};
  const char* slash = strrchr(origin, '/');
  const size_t origin_bytes = slash == nullptr ? 0 : static_cast<size_t>(slash - origin);
  size_t used = 0;
  for (size_t i = 0; i < length;) {
    const char* from = entry + i;
    size_t count = 1;
    size_t skip = 1;
    for (const char* token : kTokens) {
      const size_t bytes = strlen(token);
      if (length - i >= bytes && strncmp(from, token, bytes) == 0) {
        from = origin;
        count = origin_bytes;
        skip = bytes;
      }
    }
    if (used + count >= size) return false;
    memcpy(path + used, from, count);
    used += count;
    i += skip;
  }
  path[used] = 0;
  return true;
}

void* open_in(const char* directories, const char* origin, const char* file, int flags) {
  char path[PATH_MAX];
  const size_t file_bytes = strlen(file) + 1;
  for (const char* entry = directories;;) {
    const char* end = strchrnul(entry, ':');
    if (end != entry && expand(entry, static_cast<size_t>(end - entry), origin, path,
                               sizeof(path) - file_bytes - 1)) {
      const size_t length = strlen(path);
      path[length] = '/';
      memcpy(path + length + 1, file, file_bytes);
      if (sys::call(SYS_faccessat, AT_FDCWD, sys::word(path), F_OK) == 0) {
        if (void* handle = real().dlopen(path, flags)) return handle;
      }
    }
    if (*end == 0) return nullptr;
    entry = end + 1;
  }
}

// Null where libc's own search will do as well from here.
void* open_by_run_path(const char* file, int flags, const void* caller) {
  Dl_info info;
  link_map* map = nullptr;
  if (dladdr1(caller, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0) return nullptr;
  if (map == nullptr || map->l_ld == nullptr) return nullptr;
  const char* strings = nullptr;
  const ElfW(Dyn)* old_path = nullptr;
  const ElfW(Dyn)* run_path = nullptr;
  for (const ElfW(Dyn)* entry = map->l_ld; entry->d_tag != DT_NULL; ++entry) {
    if (entry->d_tag == DT_STRTAB) strings = reinterpret_cast<const char*>(entry->d_un.d_ptr);
    if (entry->d_tag == DT_RPATH) old_path = entry;
    if (entry->d_tag == DT_RUNPATH) run_path = entry;
  }
  const ElfW(Dyn)* path = run_path != nullptr ? run_path : old_path;
  if (path == nullptr || strings == nullptr) return nullptr;
  // Loaded already, under this name: no search. Otherwise LD_LIBRARY_PATH comes before DT_RUNPATH,
  // after DT_RPATH.
  if (void* handle = real().dlopen(file, flags | RTLD_NOLOAD)) return handle;
  char program[PATH_MAX];
  const char* origin = map->l_name;
  if (origin[0] == 0) {  // The program itself.
    const long length = sys::readlink("/proc/self/exe", program, sizeof(program) - 1);
    program[length > 0 ? length : 0] = 0;
    origin = program;
  }
  if (run_path != nullptr) {
    const char* first = heapledger::base::env_lookup("LD_LIBRARY_PATH");
    if (first != nullptr && !heapledger::base::is_secure()) {
      if (void* handle = open_in(first, origin, file, flags)) return handle;
    }
  }
  return open_in(strings + path->d_un.d_val, origin, file, flags);
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
  trace::UnloadScope unload;
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
  void* handle = nullptr;
  if (file != nullptr && strchr(file, '/') == nullptr)
    handle = open_by_run_path(file, flags, caller);
  if (handle == nullptr) handle = real().dlopen(file, flags);
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
