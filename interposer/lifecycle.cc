// SPDX-License-Identifier: Apache-2.0
#include "interposer/lifecycle.h"

#include <elf.h>
#include <gnu/libc-version.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>

#include "interposer/base/env.h"
#include "interposer/base/fatal.h"
#include "interposer/calls.h"
#include "interposer/child_environment.h"
#include "interposer/collector_start.h"
#include "interposer/trace/module_map.h"
#include "interposer/trace/own_calls.h"
#include "interposer/trace/recorder.h"
#include "interposer/trace/stack_capture.h"
#include "interposer/unwinder_io.h"

extern "C" char** environ;

namespace heapledger {

constinit std::atomic<Mode> g_mode{Mode::kNew};
constinit std::atomic<bool> g_other_allocators{false};
constinit std::atomic<bool> g_other_malloc{false};

namespace {

constinit Real g_real{};
constinit bool g_real_ready = false;
constinit char g_session[256] = {};  // The name of a session that this process started itself.
constinit bool g_collector_failed = false;
constinit pthread_key_t g_end_key = 0;
constinit bool g_end_key_ready = false;

enum : uint8_t { kUnarmed = 0, kArmed = 1, kEnded = 2 };  // ThreadLocal::armed.

template <class Function>
void resolve(Function*& function, const char* name) {
  function = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

void resolve_all() {
  resolve(g_real.mmap, "mmap");
  resolve(g_real.munmap, "munmap");
  resolve(g_real.mremap, "mremap");
  resolve(g_real.madvise, "madvise");
  resolve(g_real.mprotect, "mprotect");
  resolve(g_real.mlockall, "mlockall");
  resolve(g_real.setrlimit, "setrlimit");
  resolve(g_real.prlimit, "prlimit");
  resolve(g_real.execve, "execve");
  resolve(g_real.execvpe, "execvpe");
  resolve(g_real.fexecve, "fexecve");
  resolve(g_real.execveat, "execveat");
  resolve(g_real.posix_spawn, "posix_spawn");
  resolve(g_real.posix_spawnp, "posix_spawnp");
  resolve(g_real.system, "system");
  resolve(g_real.popen, "popen");
  resolve(g_real.dlopen, "dlopen");
  resolve(g_real.dlmopen, "dlmopen");
  resolve(g_real.dlclose, "dlclose");
  resolve(g_real.dl_iterate_phdr, "dl_iterate_phdr");
  resolve(g_real.exit_now, "_exit");
  resolve(g_real.quick_exit, "quick_exit");
  resolve(g_real.prctl, "prctl");
  resolve(g_real.reallocarray, "reallocarray");
  resolve(g_real.free, "free");
  resolve(g_real.malloc_usable_size, "malloc_usable_size");
  g_real_ready = true;
}

bool option_is_set(const char* name) {
  const char* value = base::env_lookup(name);
  return value != nullptr && value[0] != 0 && strcmp(value, "0") != 0;
}

trace::StartSettings start_settings() {
  const heap::Settings settings = heap::settings_from_environment();
  return {settings.mmap_threshold,
          settings.trim_threshold,
          settings.top_pad,
          static_cast<uint64_t>(settings.mmap_max),
          settings.arena_max,
          settings.threshold_is_dynamic ? 1U : 0U,
          static_cast<uint32_t>(settings.cache_count)};
}

const char* begin_recording() {
  const char* name = base::env_lookup(schema::kSessionVariable);
  if (name == nullptr || name[0] == 0) {
    if (const char* why = start_collector(g_session, sizeof(g_session))) {
      g_collector_failed = true;
      return why;
    }
    name = g_session;
  }
  trace::Region region;
  if (const char* why = trace::join_session(name, &region)) return why;
  if (!option_is_set("HEAPLEDGER_NO_FOLLOW")) remember_session(name);
  reserve_own_heap();
  return trace::start(region, start_settings(), !option_is_set("HEAPLEDGER_NO_FOLLOW"),
                      arm_thread_end);
}

// One line, in two pieces that need no buffer for formatting.
void warn_untraced(const char* why) {
  if (option_is_set("HEAPLEDGER_QUIET")) return;
  char line[512] = "not recorded: ";
  const size_t start = strlen(line);
  const size_t length = strnlen(why, sizeof(line) - start - 1);
  memcpy(line + start, why, length);
  line[start + length] = 0;
  base::warn(line);
}

// ---- What the constructor adds.

// Key destructors run in rounds; waiting for the last one leaves the rings and the cache to all
// others. What libc itself frees after that claims a ring once more, which the collector takes back
// when it sees that the thread is gone.
void on_thread_end(void* value) {
  const auto round = reinterpret_cast<uintptr_t>(value);
  if (round < PTHREAD_DESTRUCTOR_ITERATIONS) {
    const trace::OwnWork own;
    pthread_setspecific(g_end_key, reinterpret_cast<void*>(round + 1));
    return;
  }
  trace::t_local.armed = kEnded;
  if (traced()) {
    trace::CallScope scope(__builtin_return_address(0));
    g_heap.thread_exit(t_heap);
    scope.flush();
  } else {
    g_heap.thread_exit(t_heap);
  }
  trace::end_thread();
}

void before_fork() {
  trace::before_fork();  // First: threads inside libunwind must be out of it before the heap stands
                         // still.
  g_heap.fork_prepare(t_heap);
  g_own_heap.fork_prepare(t_own_heap);
}
void after_fork_in_parent() {
  g_own_heap.fork_parent(t_own_heap);
  g_heap.fork_parent(t_heap);
  trace::after_fork_in_parent();
}
void after_fork_in_child() {
  g_own_heap.fork_child(t_own_heap);
  g_heap.fork_child(t_heap);
  trace::reset_module_lock();
  trace::after_fork_in_child();
}

void on_exit_status(int status, void*) { trace::process_ends(status); }

void load_unwinder(trace::CallScope& scope) {
  trace::LoaderScope loader;
  void* library = g_real.dlopen("libunwind.so.8", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return;
  void* found[std::size(trace::kUnwinderSymbols)];
  for (size_t i = 0; i < std::size(found); ++i) {
    found[i] = dlsym(library, trace::kUnwinderSymbols[i]);
    if (found[i] == nullptr) return;
  }
  // In glibc the handle of a library is its link_map.
  if (!replace_unwinder_io(static_cast<const link_map*>(library), scope)) return;
  trace::Unwinder unwinder;
  unwinder.backtrace = reinterpret_cast<int (*)(void**, int)>(found[0]);
  unwinder.get_context = reinterpret_cast<int (*)(void*)>(found[1]);
  unwinder.init_local = reinterpret_cast<int (*)(void*, void*)>(found[2]);
  unwinder.step = reinterpret_cast<int (*)(void*)>(found[3]);
  unwinder.get_register = reinterpret_cast<int (*)(void*, int, uint64_t*)>(found[4]);
  unwinder.get_proc_info = reinterpret_cast<int (*)(void*, void*)>(found[5]);
  unwinder.flush_cache = reinterpret_cast<void (*)(void*, uint64_t, uint64_t)>(found[6]);
  unwinder.local_address_space = static_cast<void**>(found[7]);
  const uintptr_t linker = base::aux_value(AT_BASE);
  trace::set_own_code(
      trace::module_around(g_real.dl_iterate_phdr, reinterpret_cast<uintptr_t>(found[0])),
      trace::module_around(g_real.dl_iterate_phdr, linker));
  trace::set_unwinder(unwinder);
}

// LD_PRELOAD without this library: other preloads stay.
void leave_preload() {
  const char* value = getenv("LD_PRELOAD");
  char kept[PATH_MAX];
  if (value == nullptr || strlen(value) >= sizeof(kept)) return;
  if (without_library(value, kept) == 0) {
    unsetenv("LD_PRELOAD");
  } else {
    setenv("LD_PRELOAD", kept, 1);
  }
}

// Children find the session by the environment, or, with --no-follow, find nothing of ours there.
void prepare_children() {
  if (option_is_set("HEAPLEDGER_NO_FOLLOW")) {
    unsetenv(schema::kSessionVariable);
    leave_preload();
  } else if (g_session[0] != 0) {
    setenv(schema::kSessionVariable, g_session, 1);
  }
}

// In an executable that is not position-independent and takes malloc's address, that address is its
// PLT entry, for everybody: an undefined symbol that has a value. Calls still come to us.
bool is_only_plt_entry(const void* address) {
  Dl_info info{};
  Elf64_Sym* symbol = nullptr;
  return dladdr1(address, &info, reinterpret_cast<void**>(&symbol), RTLD_DL_SYMENT) != 0 &&
         symbol != nullptr && symbol->st_shndx == SHN_UNDEF;
}

// True where the program brings a malloc of its own (a linked-in jemalloc, say): the executable's
// definitions come before ours, and so do those of a preload before us.
bool another_malloc_wins() {
  void* first = dlsym(RTLD_DEFAULT, "malloc");
  const trace::CodeRange own =
      trace::module_around(g_real.dl_iterate_phdr, reinterpret_cast<uintptr_t>(&start_once));
  const auto address = reinterpret_cast<uintptr_t>(first);
  if (first == nullptr || own.end == 0 || (address >= own.start && address < own.end)) return false;
  return !is_only_plt_entry(first);
}

// A malloc before ours may be another preload's that counts calls and hands them on, to us. Tried
// out, since no name tells.
bool first_malloc_comes_here() {
  const trace::OwnWork own;
  auto* const first_malloc = reinterpret_cast<void* (*)(size_t)>(dlsym(RTLD_DEFAULT, "malloc"));
  auto* const first_free = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_DEFAULT, "free"));
  if (first_malloc == nullptr || first_free == nullptr) return false;
  void* block = first_malloc(64);
  const bool ours = is_own_block(block);
  first_free(block);
  return ours;
}

// Such an allocator's mmap calls reach us under its own locks, where libunwind could call it
// (its thread-local storage comes from malloc): libunwind is not loaded, and stacks are what the
// recorder's own walk finds.
void respect_other_malloc(trace::CallScope& scope) {
  constexpr char kText[] =
      "the program has a malloc of its own: its calls are not recorded, its system calls are";
  trace::note_gap(schema::kGapOwnMalloc);
  scope.on_text(schema::EventKind::kNote, kText, false);
  if (!option_is_set("HEAPLEDGER_QUIET")) base::warn(kText);
}

// Has libunwind make its first allocations.
void warm_up_unwinder() {
  std::atomic<uint32_t> busy{0};
  uintptr_t frames[8 + trace::kOwnFramesMax];
  trace::unwind_stack(frames, 8, reinterpret_cast<uintptr_t>(__builtin_return_address(0)), &busy);
}

__attribute__((constructor)) void on_load() {
  start_once();
  if (pthread_key_create(&g_end_key, on_thread_end) == 0) {
    g_end_key_ready = true;
    arm_thread_end();
  }
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  hide_session();
  // What failed here would fail in each child again, with a line on stderr from each.
  if (g_collector_failed) setenv("HEAPLEDGER_RECORD", "off", 1);
  if (g_mode.load(std::memory_order_relaxed) != Mode::kTraced) return;
  {
    trace::CallScope scope(__builtin_return_address(0));
    const bool other_malloc =
        g_other_malloc.load(std::memory_order_relaxed) && !first_malloc_comes_here();
    {
      const trace::OwnWork own;
      if (!other_malloc) load_unwinder(scope);
      on_exit(on_exit_status, nullptr);
      prepare_children();
    }
    if (other_malloc) {
      respect_other_malloc(scope);
    } else {
      warm_up_unwinder();
    }
    scope.flush();
    trace::scan_modules(g_real.dl_iterate_phdr, scope);  // libunwind has come.
  }
}

}  // namespace

const Real& real() noexcept {
  if (__builtin_expect(!g_real_ready, 0)) resolve_all();
  return g_real;
}

void arm_thread_end() noexcept {
  if (!g_end_key_ready || trace::t_local.armed != kUnarmed) return;
  trace::t_local.armed = kArmed;
  const trace::OwnWork own;
  pthread_setspecific(g_end_key, reinterpret_cast<void*>(uintptr_t{1}));
}

void start_once() noexcept {
  Mode expected = Mode::kNew;
  if (!g_mode.compare_exchange_strong(expected, Mode::kStarting)) return;
  resolve_all();
  g_other_malloc.store(another_malloc_wins(), std::memory_order_relaxed);
  Mode mode = Mode::kPlain;
  const char* record = base::env_lookup("HEAPLEDGER_RECORD");
  const bool off = record != nullptr && strcmp(record, "off") == 0;
  if (!off && !base::is_secure()) {
    if (const char* why = begin_recording()) {
      if (why != trace::kRecordingEnded) warn_untraced(why);
    } else {
      mode = Mode::kTraced;
      base::set_fatal_hook(trace::note_fatal);
    }
  }
  // Release: the region and all else is in place for whoever sees the mode.
  g_mode.store(mode, std::memory_order_release);
  if (mode != Mode::kTraced) return;
  trace::CallScope scope(__builtin_return_address(0));
  trace::scan_modules(g_real.dl_iterate_phdr, scope);
}

void* find_cxx_function(const char* mangled) noexcept {
  if (void* found = dlsym(RTLD_NEXT, mangled)) return found;
  void* library = g_real.dlopen("libstdc++.so.6",
                                RTLD_LAZY | RTLD_NOLOAD);  // Loaded by dlopen, out of our scope.
  return library == nullptr ? nullptr : dlsym(library, mangled);
}

namespace {

// libc's own heap sleeps in this process: it must not wake, since it would move the break behind
// ours. What its free can do with a block of another namespace's libc is to unmap a mapping;
// otherwise the block stays allocated, as far as that libc knows. A real allocator behind us gets
// its blocks back.
bool next_free_takes(const void* block) {
  const trace::CodeRange libc = trace::module_around(
      real().dl_iterate_phdr, reinterpret_cast<uintptr_t>(&gnu_get_libc_version));
  const auto next = reinterpret_cast<uintptr_t>(real().free);
  if (next < libc.start || next >= libc.end) return true;
  constexpr size_t kIsMapped = 2;  // In glibc's size word.
  size_t word = 0;
  memcpy(&word, static_cast<const char*>(block) - sizeof(word), sizeof(word));
  return (word & kIsMapped) != 0;
}

}  // namespace

void release_foreign(void* block) noexcept {
  expect_foreign(heap::Use::kFree);
  if (next_free_takes(block)) real().free(block);
}

void* resize_foreign(void* block, size_t size) noexcept {
  expect_foreign(heap::Use::kRealloc);
  void* fresh = nullptr;
  if (size != 0) {
    fresh = g_heap.allocate(t_heap, size);
    if (fresh == nullptr) return nullptr;
    const size_t held = real().malloc_usable_size(block);
    memcpy(fresh, block, held < size ? held : size);
  }
  release_foreign(block);
  return fresh;
}

}  // namespace heapledger

#define HL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {
[[noreturn]] void end_process(int status) {
  if (heapledger::traced()) heapledger::trace::process_ends(status);
  heapledger::real().exit_now(status);
  __builtin_unreachable();
}
}  // namespace

HL_EXPORT void _exit(int status) { end_process(status); }
HL_EXPORT void _Exit(int status) noexcept { end_process(status); }

// Runs the at_quick_exit handlers, then libc's own _exit, which does not come by here.
HL_EXPORT void quick_exit(int status) noexcept {
  if (heapledger::traced()) heapledger::trace::process_ends(status);
  heapledger::real().quick_exit(status);
  __builtin_unreachable();
}

HL_EXPORT void heapledger_mark(const char* text) {
  if (!heapledger::traced() || text == nullptr) return;
  {
    heapledger::trace::CallScope scope(__builtin_return_address(0));
    scope.on_text(heapledger::schema::EventKind::kMark, text, true);
  }
  heapledger::trace::request_snapshot(1'000'000'000);
}
