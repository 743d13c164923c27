// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/address_space.h"

#include "interposer/collector/call_tree.h"

namespace heapledger::collector {

FrameTable::FrameTable() {
  // Frame 1 is "[incomplete]": in no module, at no offset.
  count_ = kIncompleteFrame;
  fresh_.push_back({kIncompleteFrame, 0, 0});
}

uint32_t FrameTable::frame(uint32_t module, uint64_t offset) {
  uint32_t& id = ids_[{module, offset}];
  if (id == 0) {
    id = ++count_;
    fresh_.push_back({id, module, offset});
  }
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
  known_.clear();  // Addresses that were in no module may be in this one.
  return &modules_.back();
}

const Module* AddressSpace::unload(uint64_t start, uint64_t end, int64_t time_ns) {
  for (Module& module : modules_) {
    if (module.start != start || module.end != end || module.end_ns <= time_ns) continue;
    module.end_ns = time_ns;
    known_.clear();
    return &module;
  }
  return nullptr;
}

void AddressSpace::set_changing(bool changing) {
  if (changing_ != changing) known_.clear();
  changing_ = changing;
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

uint32_t AddressSpace::resolve(uint64_t pc, int64_t time_ns) {
  const Module* module = module_at(pc, time_ns);
  return module == nullptr ? frames_->frame(0, pc) : frames_->frame(module->id, pc - module->base);
}

}  // namespace heapledger::collector
