// SPDX-License-Identifier: Apache-2.0
#include "interposer/child_environment.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>

#include "interposer/base/env.h"
#include "interposer/base/sys.h"
#include "interposer/lifecycle.h"
#include "interposer/trace/own_calls.h"
#include "interposer/trace/ring_producer.h"
#include "schema/shared_region.h"

extern "C" char** environ;

namespace heapledger {
namespace {

namespace sys = base::sys;

// Before what was put back. The second: this library is also at the front of LD_PRELOAD.
constexpr char kMarker[] = "HEAPLEDGER_PUT_BACK=1";
constexpr char kMarkerFront[] = "HEAPLEDGER_PUT_BACK=2";
constexpr char kPreload[] = "LD_PRELOAD=";
constexpr size_t kPreloadBytes = sizeof(kPreload) - 1;
constexpr char kLibraryName[] = "libheapledger.so";
constexpr char kCollectorName[] = "heapledger-collector";

// What the shim of a new image reads of the session, beside its name.
constexpr const char* kCarried[] = {
    "HEAPLEDGER_QUIET",        "HEAPLEDGER_MMAP_THRESHOLD", "HEAPLEDGER_TRIM_THRESHOLD",
    "HEAPLEDGER_TOP_PAD",      "HEAPLEDGER_MMAP_MAX",       "HEAPLEDGER_ARENA_MAX",
    "HEAPLEDGER_TCACHE_COUNT",
};
constexpr size_t kEntriesMax = std::size(kCarried) + 2;  // The session, LD_PRELOAD.
constexpr size_t kBytesMax = 64 * 1024;                  // Of a list on the caller's stack.

// Kept aside: programs write over the strings they were started with.
struct Session {
  size_t count;  // 0: children are not followed.
  const char* entries[kEntriesMax];
  char text[4096];
  size_t used;
  const char* library;  // Its path, in the entry of LD_PRELOAD, which is the last one.
};
constinit Session g_kept{};

// Puts name=value among the entries; false where there is no room.
bool keep(const char* name, const char* value) {
  const size_t name_bytes = strlen(name);
  const size_t bytes = name_bytes + 1 + strlen(value) + 1;
  if (g_kept.used + bytes > sizeof(g_kept.text)) return false;
  char* entry = g_kept.text + g_kept.used;
  memcpy(entry, name, name_bytes);
  entry[name_bytes] = '=';
  strcpy(entry + name_bytes + 1, value);
  g_kept.used += bytes;
  g_kept.entries[g_kept.count++] = entry;
  return true;
}

// Where this library lies, however LD_PRELOAD named it.
bool library_path(char* path, size_t size) {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&remember_session), &info) == 0) return false;
  const char* name = info.dli_fname;
  const size_t bytes = strlen(name) + 1;
  size_t used = 0;
  if (strchr(name, '/') != nullptr && name[0] != '/') {
    const long length = sys::call(SYS_getcwd, sys::word(path), static_cast<long>(size));
    if (sys::failed(length)) return false;
    used = static_cast<size_t>(length);  // The terminating zero becomes the slash.
    path[used - 1] = '/';
  }
  if (used + bytes > size) return false;
  memcpy(path + used, name, bytes);
  return true;
}

bool is_library(const char* entry, size_t length) {
  constexpr size_t kBytes = sizeof(kLibraryName) - 1;
  return length >= kBytes && memcmp(entry + length - kBytes, kLibraryName, kBytes) == 0;
}

bool lists_library(const char* list) {
  while (*list != 0) {
    const size_t length = strcspn(list, ": ");
    if (is_library(list, length)) return true;
    list += length + (list[length] == 0 ? 0 : 1);
  }
  return false;
}

bool is_collector(const char* program) {
  if (program == nullptr) return false;
  const char* slash = strrchr(program, '/');
  return strcmp(slash == nullptr ? program : slash + 1, kCollectorName) == 0;
}

bool library_is_reachable() {
  if (strchr(g_kept.library, '/') == nullptr) return true;  // The loader searches for it.
  return sys::call(SYS_faccessat, AT_FDCWD, sys::word(g_kept.library), R_OK) == 0;
}

}  // namespace

size_t without_library(const char* list, char* out) noexcept {
  size_t used = 0;
  while (*list != 0) {
    const size_t length = strcspn(list, ": ");
    if (length != 0 && !is_library(list, length)) {
      if (used != 0) out[used++] = ':';
      memcpy(out + used, list, length);
      used += length;
    }
    list += length + (list[length] == 0 ? 0 : 1);
  }
  out[used] = 0;
  return used;
}

void remember_session(const char* session) noexcept {
  char path[2048];
  if (!library_path(path, sizeof(path))) return;
  if (!keep(schema::kSessionVariable, session)) return;
  for (const char* name : kCarried) {
    const char* value = base::env_lookup(name);
    if (value != nullptr) keep(name, value);
  }
  if (keep("LD_PRELOAD", path)) {
    g_kept.library = g_kept.entries[g_kept.count - 1] + kPreloadBytes;
  } else {
    g_kept.count = 0;
  }
}

void hide_session() noexcept {
  char** entries = environ;
  if (entries == nullptr) return;
  size_t count = 0;
  size_t preload_bytes = 0;
  const auto is_marker = [](const char* entry) {
    return strcmp(entry, kMarker) == 0 || strcmp(entry, kMarkerFront) == 0;
  };
  for (; entries[count] != nullptr && !is_marker(entries[count]); ++count) {
    const char* value = base::env_value_if_named(entries[count], "LD_PRELOAD");
    if (value != nullptr) preload_bytes += strlen(value) + sizeof(kPreload);
  }
  if (entries[count] == nullptr) return;
  const bool at_front = strcmp(entries[count], kMarkerFront) == 0;
  // A list of its own: the one on the stack stays as the kernel made it, for env_lookup().
  const trace::OwnWork own;
  const size_t list_bytes = (count + 1) * sizeof(char*);
  auto** list = static_cast<char**>(malloc(list_bytes + preload_bytes));
  if (list == nullptr) return;
  char* text = reinterpret_cast<char*>(list) + list_bytes;
  for (size_t i = 0; i < count; ++i) {
    const char* value = base::env_value_if_named(entries[i], "LD_PRELOAD");
    list[i] = entries[i];
    if (!at_front || value == nullptr) continue;
    memcpy(text, kPreload, kPreloadBytes);
    strcpy(text + kPreloadBytes, strchrnul(value, ':') + 1);
    list[i] = text;
    text += strlen(text) + 1;
  }
  list[count] = nullptr;
  environ = list;
}

ChildEnvironment::ChildEnvironment(char* const* given, const char* program) noexcept
    : given_(given) {
  if (g_kept.count == 0) return;
  for (; given_ != nullptr && given_[count_] != nullptr; ++count_) {
    const char* entry = given_[count_];
    if (const char* value = base::env_value_if_named(entry, "LD_PRELOAD")) preload_ = value;
    if (const char* value = base::env_value_if_named(entry, schema::kSessionVariable)) {
      has_session_ = value[0] != 0;
    }
    const char* record = base::env_value_if_named(entry, "HEAPLEDGER_RECORD");
    if (record != nullptr && strcmp(record, "off") == 0) return;
  }
  has_library_ = preload_ != nullptr && lists_library(preload_);
  const bool reachable = !trace::is_sandboxed() && library_is_reachable();
  if (!reachable && has_library_) change_ = Change::kTakeOut;
  if (reachable && (!has_library_ || !has_session_) && !is_collector(program)) {
    change_ = Change::kPutIn;
  }
  if (change_ == Change::kNone) return;
  const size_t preload_bytes = preload_ == nullptr ? 0 : strlen(preload_);
  bytes_ = (count_ + kEntriesMax + 2) * sizeof(char*) + kPreloadBytes + strlen(g_kept.library) +
           preload_bytes + 2;
  if (bytes_ > kBytesMax) {
    change_ = Change::kNone;
    bytes_ = 0;
  }
}

// LD_PRELOAD with or without this library, written to `text`; null: nothing is left of it.
const char* ChildEnvironment::changed_preload(char* text) const noexcept {
  memcpy(text, kPreload, kPreloadBytes);
  char* value = text + kPreloadBytes;
  if (change_ == Change::kTakeOut) return without_library(preload_, value) == 0 ? nullptr : text;
  const size_t length = strlen(g_kept.library);
  memcpy(value, g_kept.library, length);
  value[length] = ':';
  strcpy(value + length + 1, preload_);
  return text;
}

char* const* ChildEnvironment::build(void* room) const noexcept {
  auto** list = static_cast<const char**>(room);
  char* text = reinterpret_cast<char*>(list + count_ + kEntriesMax + 2);
  const bool to_front = change_ == Change::kPutIn && preload_ != nullptr && !has_library_;
  size_t used = 0;
  for (size_t i = 0; i < count_; ++i) {
    const char* entry = given_[i];
    const bool is_preload = preload_ != nullptr && entry + kPreloadBytes == preload_;
    if (is_preload && (to_front || change_ == Change::kTakeOut)) entry = changed_preload(text);
    if (entry != nullptr) list[used++] = entry;
  }
  if (change_ == Change::kPutIn) {
    list[used++] = to_front ? kMarkerFront : kMarker;
    const size_t settings = g_kept.count - 1;
    for (size_t i = 0; i < settings && !has_session_; ++i) list[used++] = g_kept.entries[i];
    if (preload_ == nullptr) list[used++] = g_kept.entries[settings];
  }
  list[used] = nullptr;
  return const_cast<char* const*>(list);
}

}  // namespace heapledger
