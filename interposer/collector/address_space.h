// SPDX-License-Identifier: Apache-2.0
// Which ELF file is where in a process, and what a code address is called: frames.
//
// A frame is (module, offset), so it survives address space randomisation between processes that
// fork from each other, and is what symbols are looked up by. Modules come and go (dlopen,
// dlclose), and another may appear at the same address: every mapping has the time from when to
// when it was there, and addresses are resolved by time while a window holds an unloading.
//
// A forked child starts with a copy of its parent's address space, and so shares its module rows.
// Thread safety: none (writer thread). Cost: frame() is one hash lookup for known addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "interposer/collector/flat_map.h"

namespace heapledger::collector {

struct Module {
  uint32_t id = 0;
  uint32_t process = 0;  // Row of the process that mapped it.
  std::string path;
  std::string build_id;  // Lower-case hex; empty: none.
  uint64_t base = 0;
  uint64_t start = 0;
  uint64_t end = 0;
  int64_t start_ns = 0;
  int64_t end_ns = INT64_MAX;
};

struct Frame {
  uint32_t id;
  uint32_t module;  // 0: in no known module.
  uint64_t offset;
};

// The frames of the whole trace.
class FrameTable {
 public:
  FrameTable();
  uint32_t frame(uint32_t module, uint64_t offset);
  uint32_t next_module_id() { return ++modules_; }

  const std::vector<Frame>& fresh() const { return fresh_; }
  void clear_fresh() { fresh_.clear(); }

 private:
  struct Key {
    uint32_t module;
    uint64_t offset;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const {
      return std::hash<uint64_t>()(key.offset * 0x9E3779B97F4A7C15U + key.module);
    }
  };
  std::unordered_map<Key, uint32_t, KeyHash> ids_;
  std::vector<Frame> fresh_;
  uint32_t count_ = 0;
  uint32_t modules_ = 0;
};

class AddressSpace {
 public:
  explicit AddressSpace(FrameTable& frames) : frames_(&frames) {}

  // A module was mapped. Returns its row if it is a new one; nullptr if it was known already.
  const Module* load(Module module);
  // Returns the row that ended, or nullptr.
  const Module* unload(uint64_t start, uint64_t end, int64_t time_ns);
  // While true, addresses are resolved by time and not remembered.
  void set_changing(bool changing);

  uint32_t frame(uint64_t pc, int64_t time_ns) {
    if (pc == 0) pc = 1;  // Not a key; and no code either.
    if (changing_) return resolve(pc, time_ns);
    const uint32_t known = known_.value(pc);
    return known != 0 ? known : (known_.at(pc) = resolve(pc, time_ns));
  }
  // The module of a return address; nullptr: none that is known.
  const Module* module_at(uint64_t pc, int64_t time_ns) const;

 private:
  uint32_t resolve(uint64_t pc, int64_t time_ns);

  FrameTable* frames_;
  std::vector<Module> modules_;
  FlatMap known_;  // pc -> frame
  bool changing_ = false;
};

}  // namespace heapledger::collector
