// SPDX-License-Identifier: Apache-2.0
// Recorder: the slots of the shared regions, from claim to release.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "interposer/collector/proc_files.h"
#include "interposer/collector/recorder.h"

namespace heapledger::collector {
namespace {

using schema::ProcessState;
using schema::RingState;

constexpr uint64_t kSaneTicks = uint64_t{1} << 48;
constexpr uint64_t kSmallestEvent = sizeof(schema::PlainEvent);
// A forked child claims its slot within microseconds of the fork; this long after the last process
// of an image has ended, none is coming.
constexpr int64_t kRetireAfterNs = 500'000'000;
constexpr size_t kClosedKept = 1024;
constexpr char kNoSlot[] = "more processes of one program were alive than can be recorded at once";

}  // namespace

Recorder::Image* Recorder::image_of(const Region* region) {
  const auto found = images_.find(region);
  return found == images_.end() ? nullptr : found->second.get();
}

Recorder::Ring& Recorder::ring_of(Image& image, uint32_t slot) {
  if (image.rings.size() <= slot) image.rings.resize(slot + 1);
  if (image.rings[slot] == nullptr) image.rings[slot] = std::make_unique<Ring>();
  return *image.rings[slot];
}

// Whose fork it is. The parent may have ended, and its slot may be another's by now; or it was not
// noticed yet.
Process* Recorder::parent_of(Image& image, const schema::ProcessSlot& fields) {
  const auto known = image.begun.find(fields.parent_start_tick);
  if (known != image.begun.end()) return known->second;
  const uint32_t slot = fields.parent_slot;
  if (slot >= image.processes.size()) return nullptr;
  const uint64_t holder_start = image.region->process_slot(slot).start_tick;
  const bool holds_it = holder_start == fields.parent_start_tick;
  // A parent is older: damaged slots make no loop.
  return holds_it && holder_start < fields.start_tick ? process_of_slot(image, slot) : nullptr;
}

// The process that holds this slot; takes notice of it if it is new. Null: nobody does.
Process* Recorder::process_of_slot(Image& image, uint32_t slot) {
  if (slot >= image.processes.size()) return nullptr;
  const schema::ProcessSlot& fields = image.region->process_slot(slot);
  Process* process = image.processes[slot];
  // Acquire: pairs with the program's release after it filled the slot.
  const ProcessState state = fields.state.load(std::memory_order_acquire);
  const bool filled = state == ProcessState::kLive || state == ProcessState::kEnded;
  if (process == nullptr) {
    if (!filled) return nullptr;
    const pid_t pid = image.pids.pid_of_slot(slot);
    if (pid == 0) return nullptr;
    Process* parent = parent_of(image, fields);
    int64_t start_ns = trace_ns(clock_.to_ns(fields.parent_fork_tick));
    // now_ns_ is the time of this round's begin: forks may be later than that.
    const int64_t now_ns = trace_ns(raw_now_ns());
    if (start_ns < 0 || start_ns > now_ns) start_ns = now_ns;
    process = &processes_.forked(image.region, slot, pid, parent, start_ns);
    process->start_ns = std::min(process->start_ns.value_or(start_ns), start_ns);
    image.processes[slot] = process;
    image.empty_since_ns = 0;
    if (process->reopened) open_.push_back(process);
    process->reopened = false;
    notice_processes();
  }
  if (filled && !process->settings) {
    read_start(*process, fields);
    image.begun[fields.start_tick] = process;
  }
  return process;
}

// Forked children that found no slot.
void Recorder::look_for_refused(Image& image) {
  const schema::ControlPage& control = image.region->control();
  const uint32_t count =
      std::min(control.refused_count.load(std::memory_order_relaxed), schema::kRefusedKept);
  while (image.refused.size() < count) {
    const schema::RefusedProcess& entry = control.refused[image.refused.size()];
    // Acquire: pairs with the program's release after it filled the entry.
    const uint32_t own_pid = entry.pid.load(std::memory_order_acquire);
    if (own_pid == 0) return;
    const auto known = image.begun.find(entry.parent_start_tick);
    Process* parent = known != image.begun.end() ? known->second : nullptr;
    const bool has_parent = parent != nullptr && parent->slot < image.processes.size();
    const pid_t pid = has_parent ? image.pids.pid_named_by(entry.parent_slot, own_pid)
                                 : static_cast<pid_t>(own_pid);
    const int64_t now_ns = trace_ns(raw_now_ns());
    int64_t start_ns = trace_ns(clock_.to_ns(entry.start_tick));
    if (start_ns < 0 || start_ns > now_ns) start_ns = now_ns;
    image.refused.push_back(&processes_.refused(pid, parent, kNoSlot, start_ns));
  }
}

// Charges them what they count.
void Recorder::close_refused(Image& image) {
  look_for_refused(image);
  const schema::ControlPage& control = image.region->control();
  for (size_t i = 0; i < image.refused.size(); ++i) {
    const uint64_t lost = control.refused[i].events_lost.load(std::memory_order_relaxed);
    if (lost >= kSaneTicks) continue;
    Process& process = *image.refused[i];
    process.events_lost += lost;
    counters_.lost += lost;
    process.changed = true;
    write_row(process);
  }
  const uint32_t count = control.refused_count.load(std::memory_order_relaxed);
  const uint64_t lost = control.refused_events.load(std::memory_order_relaxed);
  if (count <= schema::kRefusedKept || image.refused.empty() || lost >= kSaneTicks) return;
  Process& last = *image.refused.back();
  last.events_lost += lost;
  counters_.lost += lost;
  last.changed = true;
  write_row(last);
  writer_.mark(now_ns_, last.id, 0, "note",
               fmt::format("{} more processes were not recorded, their lost events are charged to "
                           "this one: {}",
                           count - schema::kRefusedKept, kNoSlot));
}

void Recorder::look_for_forks() {
  now_ns_ = trace_ns(raw_now_ns());
  for (auto& [region, image] : images_) {
    look_for_refused(*image);
    const uint32_t used = region->process_slots_used();
    for (uint32_t slot = 0; slot < used; ++slot) {
      const Process* process = image->processes[slot];
      if (process == nullptr || !process->settings) process_of_slot(*image, slot);
    }
  }
}

// Settles what the ring's owner owes: events that were written and not read, time it waited.
void Recorder::charge_ring(Image& image, uint32_t slot) {
  Ring& ring = ring_of(image, slot);
  const schema::RingSlot& fields = image.region->ring_slot(slot);
  const uint64_t written = fields.events.load(std::memory_order_acquire);
  // No more events than bytes were written, or the count itself was written over.
  const uint64_t bytes = over_ ? fields.head.load(std::memory_order_acquire) : ring.position;
  const bool plausible = !ring.broken && written <= bytes / kSmallestEvent + 1;
  uint64_t lost = plausible && written > ring.events ? written - ring.events : 0;
  // A thread that was killed may have counted the event it was about to publish.
  if (lost == 1 && !ring.ended) lost = 0;
  if (plausible) ring.events = std::max(ring.events, written);
  const uint64_t stalled = fields.stall_ticks.load(std::memory_order_relaxed);
  const uint64_t stall_ticks = stalled > ring.stall_ticks ? stalled - ring.stall_ticks : 0;
  ring.stall_ticks = std::max(ring.stall_ticks, stalled);
  const uint64_t stalls = fields.stalls.load(std::memory_order_relaxed);
  if (stalls > ring.stalls && stalls < kSaneTicks) stalls_ += stalls - ring.stalls;
  ring.stalls = std::max(ring.stalls, stalls);
  if (ring.owner == nullptr) return;
  ring.owner->events_lost += lost;
  counters_.lost += lost;
  if (stall_ticks < kSaneTicks) {
    const int64_t stall_ns = clock_.duration_ns(stall_ticks);
    ring.owner->stall_ns += stall_ns;
    if (ring.thread != nullptr) {
      ring.thread->stall_ns += stall_ns;
      ring.thread->changed = true;
    }
  }
  ring.owner->changed = true;
}

// Rings whose beginning was not read any more, so that what they hold can be charged to somebody.
void Recorder::adopt_unread_rings() {
  for (auto& [region, image] : images_) {
    for (uint32_t slot = 0; slot < region->ring_slots_used(); ++slot) {
      Ring& ring = ring_of(*image, slot);
      const uint64_t written = region->ring_slot(slot).events.load(std::memory_order_acquire);
      if (ring.owner == nullptr && written > ring.events) adopt(*image, ring, slot);
    }
  }
}

// Frees a ring whose thread is gone, if all of it was decoded.
bool Recorder::release_ring(Image& image, uint32_t slot) {
  const Ring& ring = ring_of(image, slot);
  const uint64_t head = image.region->ring_slot(slot).head.load(std::memory_order_acquire);
  if (!ring.broken && head != ring.position) return false;
  free_ring(image, slot);
  return true;
}

void Recorder::free_ring(Image& image, uint32_t slot) {
  Ring& ring = ring_of(image, slot);
  charge_ring(image, slot);
  image.region->drop_ring_pages(slot);
  ring.owner = nullptr;
  ring.thread = nullptr;
  ring.stack.clear();
  ring.ended = false;
  // Release: the pages are dropped before the next owner writes into them.
  image.region->ring_slot(slot).state.store(RingState::kFree, std::memory_order_release);
}

void Recorder::release_ended_rings() {
  std::erase_if(ended_rings_, [this](const EndedRing& ended) {
    Image* image = image_of(ended.region);
    if (image == nullptr || !ring_of(*image, ended.slot).ended) return true;
    const schema::RingSlot& fields = image->region->ring_slot(ended.slot);
    return fields.state.load(std::memory_order_acquire) == RingState::kEnded &&
           release_ring(*image, ended.slot);
  });
}

// Threads that ended without a word (a raw exit, a cancelled thread).
void Recorder::release_dead_rings() {
  for (auto& [region, image] : images_) {
    for (uint32_t slot = 0; slot < image->rings.size(); ++slot) {
      const Ring* ring = image->rings[slot].get();
      if (ring == nullptr || ring->thread == nullptr || ring->owner->over) continue;
      const RingState state = region->ring_slot(slot).state.load(std::memory_order_acquire);
      if (state != RingState::kLive) continue;
      const std::string tasks = proc_path(ring->owner->pid, "task/");
      const bool gone = access((tasks + std::to_string(ring->thread->tid)).c_str(), F_OK) != 0;
      // A process that is gone as a whole is closed elsewhere.
      if (gone && access(tasks.c_str(), F_OK) == 0) release_ring(*image, slot);
    }
  }
}

// Processes whose pid was not found: their own word that they end must do.
void Recorder::end_unwatched() {
  std::vector<pid_t> ended;
  for (const Process* process : open_) {
    if (process->pid >= 0 || process->region == nullptr) continue;
    const schema::ProcessSlot& fields = process->region->process_slot(process->slot);
    if (fields.end_tick.load(std::memory_order_acquire) != 0) ended.push_back(process->pid);
  }
  for (const pid_t pid : ended) processes_.gone(pid, {}, now_ns_);
  if (!ended.empty()) notice_processes();
}

void Recorder::close_processes(int64_t drained_until_raw_ns) {
  std::erase_if(closing_, [&](const Closing& closing) {
    if (closing.seen_raw_ns >= drained_until_raw_ns) return false;
    close_process(*closing.process);
    return true;
  });
}

void Recorder::close_stack_check(Process& process, const schema::ProcessSlot& fields) {
  read_stack_check(process, fields);
  const std::string& text = process.stack_check->first_mismatch;
  if (!text.empty()) writer_.mark(now_ns_, process.id, 0, "note", text, 0);
}

// Everything it wrote is decoded: counts it, frees its slots, writes it.
void Recorder::close_process(Process& process) {
  Image* image = process.region != nullptr ? image_of(process.region.get()) : nullptr;
  if (image != nullptr && image->processes[process.slot] == &process) {
    schema::ProcessSlot& fields = image->region->process_slot(process.slot);
    for (uint32_t slot = 0; slot < image->rings.size(); ++slot) {
      if (image->rings[slot] == nullptr || image->rings[slot]->owner != &process) continue;
      if (process.over) {
        free_ring(*image, slot);
      } else {
        charge_ring(*image, slot);
      }
    }
    const uint64_t lost_before = process.events_lost;
    read_counters(process, fields);
    counters_.lost += process.events_lost - lost_before;
    if (image->region->control().verify_stacks != 0) close_stack_check(process, fields);
    const uint32_t status = fields.exit_status.load(std::memory_order_relaxed);
    if (process.over && process.ended_by == nullptr && status > 0 && status <= 256) {
      process.ended_by = "exit";
      process.exit_status = static_cast<int>(status - 1);
    }
    if (process.over) {
      image->processes[process.slot] = nullptr;
      fields.end_minor_faults.store(0);
      fields.end_major_faults.store(0);
      fields.end_tick.store(0);
      fields.exit_status.store(0);
      fields.gaps.store(0);
      fields.events_lost.store(0);
      fields.recorder_syscalls.store(0);
      fields.mismatch_at.store(0);
      fields.mismatch_inner.store(0);
      fields.stacks_compared.store(0);
      fields.stacks_mismatched.store(0);
      fields.stacks_incomparable.store(0);
      fields.snapshot_done.store(fields.snapshot_wanted.load());
      // Release: whoever claims it next sees the counters at zero.
      fields.state.store(ProcessState::kFree, std::memory_order_release);
    }
  }
  join_.close(process);
  process.region.reset();
  flush(process);
  write_row(process);
  forget_late(process);
}

// A fork that was made at the process' very end inherits its modules and its heap, and may be
// noticed after it.
void Recorder::forget_late(Process& process) {
  closed_.push_back(&process);
  if (closed_.size() <= kClosedKept) return;
  closed_.front()->space.reset();
  closed_.front()->allocator_ranges.clear();
  closed_.pop_front();
}

void Recorder::retire_images(int64_t now_raw_ns) {
  std::erase_if(images_, [&](auto& entry) {
    Image& image = *entry.second;
    const auto lives = [](const Process* process) { return process != nullptr; };
    const auto runs = [](const Process* process) { return !process->over; };
    if (std::any_of(image.processes.begin(), image.processes.end(), lives) ||
        std::any_of(image.refused.begin(), image.refused.end(), runs)) {
      image.empty_since_ns = 0;
      return false;
    }
    if (image.empty_since_ns == 0) image.empty_since_ns = now_raw_ns;
    if (now_raw_ns - image.empty_since_ns < kRetireAfterNs) return false;
    close_refused(image);
    image.region->control().recording.store(0, std::memory_order_release);
    image.region->retired.store(true, std::memory_order_release);
    return true;
  });
}

}  // namespace heapledger::collector
