// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "schema/error.h"

namespace heapledger::collector {
namespace {

constexpr uint64_t kPage = 4096;

uint64_t page_up(uint64_t bytes) { return (bytes + kPage - 1) & ~(kPage - 1); }

schema::Error region_error() {
  return schema::Error("cannot make the shared region", std::strerror(errno));
}

}  // namespace

uint64_t RegionLayout::slot_offset() const {
  return page_up(process_offset() + uint64_t{process_slots} * sizeof(schema::ProcessSlot));
}

uint64_t RegionLayout::data_offset() const {
  return page_up(slot_offset() + uint64_t{ring_slots} * sizeof(schema::RingSlot));
}

RegionLayout layout_within(uint64_t address_space_bytes) {
  RegionLayout layout;
  // An eighth of what the program may map: the recorder must not be what exhausts it.
  const uint64_t budget = address_space_bytes / 8;
  while (layout.region_bytes() > budget && layout.ring_slots > 16) layout.ring_slots /= 2;
  while (layout.region_bytes() > budget && layout.ring_bytes > (64U << 10)) layout.ring_bytes /= 2;
  return layout;
}

Region::Region(uint32_t image, const RegionLayout& layout, const RegionSettings& settings)
    : image_(image),
      layout_(layout),
      fd_(memfd_create("heapledger", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
  const uint64_t bytes = layout_.region_bytes();
  if (!fd_ || ftruncate(fd_.get(), static_cast<off_t>(bytes)) != 0) throw region_error();
  struct stat status {};
  if (fstat(fd_.get(), &status) != 0) throw region_error();
  inode_ = status.st_ino;
  // A program that shrank the file would kill both sides with SIGBUS.
  fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  void* address =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_.get(), 0);
  if (address == MAP_FAILED) throw region_error();
  base_ = static_cast<std::byte*>(address);

  schema::ControlPage& page = control();
  page.magic = schema::kRegionMagic;
  page.wire_version = schema::kWireVersion;
  page.clock = settings.clock;
  page.region_bytes = bytes;
  page.process_offset = layout_.process_offset();
  page.slot_offset = layout_.slot_offset();
  page.data_offset = layout_.data_offset();
  page.ring_bytes = layout_.ring_bytes;
  page.process_slots = layout_.process_slots;
  page.ring_slots = layout_.ring_slots;
  page.stack_depth = settings.stack_depth;
  page.free_stacks = settings.free_stacks ? 1 : 0;
  page.verify_stacks = settings.verify_stacks ? 1 : 0;
  page.collector_pid = static_cast<uint32_t>(getpid());
  page.recording.store(1, std::memory_order_release);
}

Region::~Region() {
  if (base_ != nullptr) munmap(base_, layout_.region_bytes());
}

schema::ControlPage& Region::control() const {
  return *reinterpret_cast<schema::ControlPage*>(base_);
}

schema::ProcessSlot& Region::process_slot(uint32_t index) const {
  return reinterpret_cast<schema::ProcessSlot*>(base_ + layout_.process_offset())[index];
}

schema::RingSlot& Region::ring_slot(uint32_t index) const {
  return reinterpret_cast<schema::RingSlot*>(base_ + layout_.slot_offset())[index];
}

const std::byte* Region::ring_data(uint32_t index) const {
  return base_ + layout_.data_offset() + uint64_t{index} * layout_.ring_bytes;
}

uint32_t Region::process_slots_used() const {
  return std::min(control().process_slots_used.load(std::memory_order_acquire),
                  layout_.process_slots);
}

uint32_t Region::ring_slots_used() const {
  return std::min(control().ring_slots_used.load(std::memory_order_acquire), layout_.ring_slots);
}

void Region::drop_ring_pages(uint32_t index) const {
  const uint64_t offset = layout_.data_offset() + uint64_t{index} * layout_.ring_bytes;
  fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
            static_cast<off_t>(layout_.ring_bytes));
}

}  // namespace heapledger::collector
