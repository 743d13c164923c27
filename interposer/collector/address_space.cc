// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/address_space.h"

#include "interposer/collector/call_tree.h"

namespace heapledger::collector {

FrameTable::FrameTable() {
  // Frame 1 is "[incomplete]": in no module, at no offset.
  count_ = kIncompleteFrame;
  fresh_.push_back({kIncompleteFrame, 0, 0});
}

uint32_t FrameTable::add(uint32_t module, uint64_t offset) {
  fresh_.push_back({++count_, module, offset});
  return count_;
}

FrameKey FrameTable::key(uint32_t module, uint64_t offset) {
  if (module != 0 && module < kModuleEnd && offset < kOffsetEnd) {
    return uint64_t{module} << kOffsetBits | offset;
  }
  uint32_t& id = odd_ids_[{module, offset}];
  if (id == 0) id = add(module, offset);
  return id;
}

uint32_t FrameTable::frame(FrameKey key) {
  if (key < kOffsetEnd) return static_cast<uint32_t>(key);
  Recent& recent = recent_[key * 0x9E3779B97F4A7C15U >> (64 - kRecentBits)];
  if (recent.key == key) return recent.id;
  uint32_t& id = ids_.at(key);
  if (id == 0) id = add(static_cast<uint32_t>(key >> kOffsetBits), key % kOffsetEnd);
  recent = {key, id};
  return id;
}

const Module* AddressSpace::load(Module module) {
  for (Module& other : modules_) {
    const bool live = other.end_ns > module.start_ns;
    if (!live || other.end <= module.start || other.start >= module.end) continue;
    if (other.path == module.path && other.base == module.base && other.start == module.start) {
      return nullptr;
    }
    other.end_ns = module.start_ns;  // Its unloading was not seen.
  }
  module.id = frames_->next_module_id();
  modules_.push_back(std::move(module));
  forget();  // Addresses that were in no module may be in this one.
  return &modules_.back();
}

const Module* AddressSpace::unload(uint64_t start, uint64_t end, int64_t time_ns) {
  for (Module& module : modules_) {
    if (module.start != start || module.end != end || module.end_ns <= time_ns) continue;
    module.end_ns = time_ns;
    forget();
    return &module;
  }
  return nullptr;
}

void AddressSpace::set_changing(bool changing) {
  if (changing_ != changing) forget();
  changing_ = changing;
}

void AddressSpace::forget() {
  known_.clear();
  last_ = {};
  near_.fill({});
}

const Module* AddressSpace::module_at(uint64_t pc, int64_t time_ns) const {
  const Module* best = nullptr;
  for (const Module& module : modules_) {
    // A return address may be one past the end of a function at a module's very end.
    if (pc - 1 < module.start || pc - 1 >= module.end) continue;
    if (time_ns > module.end_ns) continue;
    // Of those that were there, and where none was yet (its event came late), the latest.
    if (best == nullptr || module.start_ns <= time_ns) best = &module;
  }
  return best;
}

FrameKey AddressSpace::key_elsewhere(uint64_t pc, int64_t time_ns) {
  if (pc == 0) pc = 1;  // No key of a map; and no code either.
  if (!changing_) {
    if (const Range& range = range_near(pc); range.contains(pc)) {
      last_ = range;
      return pc + range.to_key;
    }
    if (const uint32_t id = known_.value(pc)) return id;
  }
  const Module* module = module_at(pc, time_ns);
  if (module == nullptr) {
    const FrameKey key = frames_->key(0, pc);
    if (!changing_) known_.at(pc) = static_cast<uint32_t>(key);
    return key;
  }
  const bool fits = module->id < FrameTable::kModuleEnd && module->base <= module->start &&
                    module->end - module->base < FrameTable::kOffsetEnd;
  if (fits && !changing_ && module->end_ns == INT64_MAX) {
    last_ = {module->start + 1, module->end - module->start,
             (uint64_t{module->id} << FrameTable::kOffsetBits) - module->base};
    range_near(pc) = last_;
  }
  return frames_->key(module->id, pc - module->base);
}

}  // namespace heapledger::collector
