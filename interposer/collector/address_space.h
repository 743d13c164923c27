// SPDX-License-Identifier: Apache-2.0
// Which ELF file is where in a process, and what a code address is called: frames.
//
// A frame is (module, offset), so it survives address space randomisation between processes that
// fork from each other, and is what symbols are looked up by. Modules come and go (dlopen,
// dlclose), and another may appear at the same address: every mapping has the time from when to
// when it was there, and addresses are resolved by time while a window holds an unloading.
//
// While stacks are looked up a frame goes by its *key*, which an addition makes of an address that
// lies in the same module as the one before it; the number that the trace knows it by is looked up
// when a new stack is written. Equal frames have equal keys, in all processes.
//
// A forked child starts with a copy of its parent's address space, and so shares its module rows.
// Thread safety: none (writer thread). Cost: key() is two comparisons for addresses in the module
// that was last seen; a table's entry more for others.
#pragma once

#include <array>
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

// What a frame is called while stacks are looked up: its module's id above 40 bits of its offset;
// or, for frames that do not fit into that (in no known module), their id. Never 0.
using FrameKey = uint64_t;

// The frames of the whole trace.
class FrameTable {
 public:
  static constexpr int kOffsetBits = 40;
  static constexpr uint64_t kOffsetEnd = uint64_t{1} << kOffsetBits;
  static constexpr uint32_t kModuleEnd = 1U << (64 - kOffsetBits);

  FrameTable();
  FrameKey key(uint32_t module, uint64_t offset);
  // The id of a key's frame: a fresh one where it was not asked for before.
  uint32_t frame(FrameKey key);
  uint32_t next_module_id() { return ++modules_; }

  const std::vector<Frame>& fresh() const { return fresh_; }
  void clear_fresh() { fresh_.clear(); }

 private:
  struct Odd {
    uint32_t module;
    uint64_t offset;
    friend bool operator==(const Odd&, const Odd&) = default;
  };
  struct OddHash {
    size_t operator()(const Odd& odd) const {
      return std::hash<uint64_t>()(odd.offset * 0x9E3779B97F4A7C15U + odd.module);
    }
  };
  struct Recent {
    FrameKey key = 0;
    uint32_t id = 0;
  };
  static constexpr int kRecentBits = 10;

  uint32_t add(uint32_t module, uint64_t offset);

  std::array<Recent, size_t{1} << kRecentBits> recent_{};  // Of ids_.
  FlatMap ids_;                                            // By key.
  std::unordered_map<Odd, uint32_t, OddHash> odd_ids_;     // Of frames whose key is their id.
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

  // Of the frame that a return address is in.
  FrameKey key(uint64_t pc, int64_t time_ns) {
    if (last_.contains(pc)) return pc + last_.to_key;
    return key_elsewhere(pc, time_ns);
  }
  // The module of a return address; nullptr: none that is known.
  const Module* module_at(uint64_t pc, int64_t time_ns) const;

 private:
  // Return addresses in one module.
  struct Range {
    uint64_t first = 0;
    uint64_t count = 0;
    uint64_t to_key = 0;  // To be added.
    bool contains(uint64_t pc) const { return pc - first < count; }
  };
  static constexpr size_t kRanges = 64;

  FrameKey key_elsewhere(uint64_t pc, int64_t time_ns);
  void forget();
  Range& range_near(uint64_t pc) { return near_[(pc >> 16) % kRanges]; }

  FrameTable* frames_;
  std::vector<Module> modules_;
  Range last_;
  std::array<Range, kRanges> near_{};  // By where in memory.
  FlatMap known_;                      // Addresses in no module: their frames.
  bool changing_ = false;
};

}  // namespace heapledger::collector
