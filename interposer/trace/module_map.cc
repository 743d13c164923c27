// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/module_map.h"

#include <sys/mman.h>

#include <cstring>

#include "interposer/base/bits.h"
#include "interposer/base/lock.h"
#include "interposer/base/sys.h"
#include "interposer/trace/own_calls.h"
#include "interposer/trace/recipe_table.h"
#include "interposer/trace/stack_capture.h"

namespace heapledger::trace {
namespace {

namespace sys = base::sys;
using schema::EventKind;
using schema::ModuleEvent;

constexpr size_t kModulesMax = 8192;
constexpr size_t kPathMax = 1024;  // Longer paths are cut.

struct Module {
  ModuleEvent event;  // As reported; start 0: this place is free.
  bool seen;
  bool reported;
  bool at_start;  // Was there before the program's first instruction: it never goes.
  bool unloaded;  // Its range stays on record: code may come to lie there again.
  char path[kPathMax];
};

struct Table {
  Module* modules = nullptr;  // kModulesMax, reserved; pages come as they are used.
  size_t count = 0;
  bool scanned = false;  // At least once.
};

// The smallest range that covers several.
struct Hull {
  uintptr_t start = UINTPTR_MAX;
  uintptr_t end = 0;

  void add(const ModuleEvent& module) {
    if (module.start < start) start = module.start;
    if (module.end > end) end = module.end;
  }
};

constinit base::Lock g_lock;
constinit Table g_table;

bool allocate_table() {
  if (g_table.modules != nullptr) return true;
  const size_t bytes = kModulesMax * sizeof(Module);
  if (mapping_allowance(bytes) < bytes) return false;
  void* memory = own_memory(bytes);
  if (memory == nullptr) return false;
  own_madvise(memory, bytes, MADV_DONTDUMP);
  g_table.modules = static_cast<Module*>(memory);
  return true;
}

// Finds the GNU build id among the notes of one segment.
void read_build_id(const dl_phdr_info& info, const ElfW(Phdr) & segment, ModuleEvent* event) {
  const auto* at = reinterpret_cast<const std::byte*>(info.dlpi_addr + segment.p_vaddr);
  const size_t alignment = segment.p_align == 8 ? 8 : 4;
  size_t left = segment.p_memsz;
  while (left >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) note;
    memcpy(&note, at, sizeof(note));
    const size_t name_bytes = base::align_up(note.n_namesz, alignment);
    const size_t text_bytes = base::align_up(note.n_descsz, alignment);
    const size_t bytes = sizeof(note) + name_bytes + text_bytes;
    if (bytes > left) return;
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
        memcmp(at + sizeof(note), "GNU", 4) == 0 && note.n_descsz <= schema::kBuildIdBytesMax) {
      memcpy(event->build_id, at + sizeof(note) + name_bytes, note.n_descsz);
      event->build_id_bytes = note.n_descsz;
      return;
    }
    at += bytes;
    left -= bytes;
  }
}

ModuleEvent describe(const dl_phdr_info& info) {
  ModuleEvent event{};
  event.base = info.dlpi_addr;
  event.start = UINT64_MAX;
  for (int i = 0; i < info.dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info.dlpi_phdr[i];
    if (segment.p_type == PT_LOAD) {
      const uint64_t start = base::align_down(info.dlpi_addr + segment.p_vaddr, base::kPageBytes);
      const uint64_t end =
          base::align_up(info.dlpi_addr + segment.p_vaddr + segment.p_memsz, base::kPageBytes);
      if (start < event.start) event.start = start;
      if (end > event.end) event.end = end;
    } else if (segment.p_type == PT_NOTE && event.build_id_bytes == 0) {
      read_build_id(info, segment, &event);
    }
  }
  return event;
}

bool same_module(const Module& module, const ModuleEvent& event) {
  return !module.unloaded && module.event.base == event.base && module.event.start == event.start &&
         module.event.end == event.end && module.event.build_id_bytes == event.build_id_bytes &&
         memcmp(module.event.build_id, event.build_id, event.build_id_bytes) == 0;
}

void copy_path(char* to, const char* from) {
  const size_t length = strnlen(from, kPathMax - 1);
  memcpy(to, from, length);
  to[length] = 0;
}

// The loader names the program itself "" and the vDSO by a name that is no file.
void name_module(Module* module, const char* name, bool first) {
  if (strncmp(name, "linux-vdso", 10) == 0) {
    module->path[0] = 0;
  } else if (name[0] == 0 && first) {
    const long length = sys::readlink("/proc/self/exe", module->path, kPathMax - 1);
    module->path[length > 0 ? length : 0] = 0;
    count_recorder_syscalls(1);
  } else {
    copy_path(module->path, name);
  }
}

int on_module(dl_phdr_info* info, size_t, void*) {
  const ModuleEvent event = describe(*info);
  if (event.end == 0) return 0;
  bool reuses_range = false;
  for (size_t i = 0; i < g_table.count; ++i) {
    Module& known = g_table.modules[i];
    if (same_module(known, event)) {
      known.seen = true;
      return 0;
    }
    reuses_range |=
        known.unloaded && event.start < known.event.end && known.event.start < event.end;
  }
  if (g_table.count == kModulesMax) return 1;
  if (reuses_range) {
    distrust_fast_walk();
    flush_unwinder();
  }
  // An unload that nobody told us of may have left recipes here (libc unloads its own gconv files).
  forget_code_if_known(event.start, event.end);
  Module& added = g_table.modules[g_table.count];
  added.event = event;
  added.seen = true;
  added.reported = added.unloaded = false;
  added.at_start = !g_table.scanned;
  name_module(&added, info->dlpi_name, g_table.count == 0);
  ++g_table.count;
  return 0;
}

// Before the events are written, which takes stacks. Even where no recipe is left of what went,
// walks that led through it must not be built upon: the generation has to rise.
void forget_unloaded() {
  Hull gone;
  for (size_t i = 0; i < g_table.count; ++i) {
    const Module& module = g_table.modules[i];
    if (!module.unloaded && !module.seen) gone.add(module.event);
  }
  if (gone.end == 0) return;
  forget_code(gone.start, gone.end);
  flush_unwinder();
}

}  // namespace

UnloadScope::UnloadScope() noexcept {
  hold_recipes();
  base::LockGuard guard(g_lock);
  Hull may_go;
  for (size_t i = 0; i < g_table.count; ++i) {
    const Module& module = g_table.modules[i];
    if (!module.unloaded && !module.at_start) may_go.add(module.event);
  }
  if (may_go.end != 0) forget_code_if_known(may_go.start, may_go.end);
}

UnloadScope::~UnloadScope() { allow_recipes(); }

void scan_modules(IterateModules iterate, CallScope& scope) noexcept {
  base::LockGuard guard(g_lock);
  const bool ready = allocate_table();
  write_own_calls(scope);
  if (!ready) return;
  for (size_t i = 0; i < g_table.count; ++i) g_table.modules[i].seen = false;
  iterate(on_module, nullptr);
  g_table.scanned = true;
  forget_unloaded();
  // Written only now: the loader's lock is not held while we wait for room.
  for (size_t i = 0; i < g_table.count; ++i) {
    Module& module = g_table.modules[i];
    if (module.unloaded) continue;
    if (!module.seen) {
      module.unloaded = true;
      scope.on_module(module.event, EventKind::kModuleUnload, module.path);
    }
  }
  for (size_t i = 0; i < g_table.count; ++i) {
    Module& module = g_table.modules[i];
    if (module.reported || module.unloaded) continue;
    module.reported = true;
    scope.on_module(module.event, EventKind::kModuleLoad, module.path);
  }
}

CodeRange module_around(IterateModules iterate, uintptr_t address) noexcept {
  struct Search {
    uintptr_t address;
    CodeRange found;
  } search = {address, {}};
  iterate(
      [](dl_phdr_info* info, size_t, void* data) {
        auto* wanted = static_cast<Search*>(data);
        const ModuleEvent module = describe(*info);
        if (wanted->address < module.start || wanted->address >= module.end) return 0;
        wanted->found = {module.start, module.end};
        return 1;
      },
      &search);
  return search.found;
}

void reset_module_lock() noexcept {
  g_lock.reset();
  reset_recipe_holds();
}

}  // namespace heapledger::trace
