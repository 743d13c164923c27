// SPDX-License-Identifier: Apache-2.0
// Recorder: from the bytes of a ring to rows.
#include <fmt/format.h>

#include <algorithm>

#include "interposer/collector/proc_files.h"
#include "interposer/collector/recorder.h"

namespace heapledger::collector {
namespace {

using schema::EventKind;

// How far behind or before its window an event's stamp may lie; what is farther is damage. A thread
// may sleep for long between its stamp and its ring, but not before time 0.
constexpr int64_t kFutureNs = 1'000'000'000;
// By so much the first events of a program that started the collector itself may be earlier than
// the collector's first moment, at which the trace begins.
constexpr int64_t kBeforeNs = 10'000'000'000;

std::string hex(const uint8_t* bytes, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += fmt::format("{:02x}", bytes[i]);
  return text;
}

Module module_of(const WireEvent& event, int64_t time_ns) {
  const auto fixed = event.as<schema::ModuleEvent>();
  Module module;
  module.path = event.text.empty() ? "[vdso]" : std::string(event.text);
  module.build_id =
      hex(fixed.build_id, std::min<size_t>(fixed.build_id_bytes, schema::kBuildIdBytesMax));
  module.base = fixed.base;
  module.start = fixed.start;
  module.end = fixed.end;
  module.start_ns = time_ns;
  return module;
}

schema::CallRow row_of(const WireEvent& event, char role) {
  schema::CallRow row;
  if (role == 'f') {
    const auto fixed = event.as<schema::FreeEvent>();
    row.address = fixed.address;
    row.ended_id = fixed.ended_id;
    return row;
  }
  if (role == 'a') {
    const auto fixed = event.as<schema::AllocEvent>();
    row.address = fixed.address;
    row.size = fixed.size;
    row.id = fixed.id;
  } else {
    const auto fixed = event.as<schema::ReallocEvent>();
    row.address = fixed.address;
    row.size = fixed.size;
    row.id = fixed.id;
    row.old_address = fixed.old_address;
    row.ended_id = fixed.ended_id;
  }
  row.alignment = event.alignment;
  const bool began = !event.has(schema::kFailed) && row.address != 0;
  if (began) {
    row.usable = event.has(schema::kHasUsable) ? event.usable : schema::usable_by_rule(row.size);
  }
  return row;
}

char role_of(EventKind kind) {
  if (kind < EventKind::kFree) return 'a';
  return kind < EventKind::kRealloc ? 'f' : 'r';
}

}  // namespace

// Learns of modules before any event of the window is decoded. Loads take effect at once; of
// processes with unloads the addresses are resolved by time in this window.
bool Recorder::scan_modules(const RingPiece& piece, std::span<const std::byte> bytes) {
  bool found = false;
  Image* image = image_of(piece.region.get());
  if (image == nullptr) return false;
  Process* owner = ring_of(*image, piece.slot).owner;
  WireReader reader(bytes);
  for (WireEvent event;;) {
    reader.pass_calls();
    if (!reader.next(event)) break;
    if (event.head.kind == EventKind::kThreadStart) {
      const auto fixed = event.as<schema::ThreadStartEvent>();
      owner = process_of_slot(*image, fixed.process_slot);
    }
    const bool loads = event.head.kind == EventKind::kModuleLoad;
    if (owner == nullptr || (!loads && event.head.kind != EventKind::kModuleUnload)) continue;
    on_module(*owner, event);
    found = true;
    const bool listed = std::find(changing_.begin(), changing_.end(), owner) != changing_.end();
    if (!loads && !listed) changing_.push_back(owner);
  }
  return found;
}

int64_t Recorder::event_ns(uint64_t tick) const {
  const int64_t time_ns = trace_ns(clock_.to_ns(tick));
  return time_ns < 0 && time_ns >= -kBeforeNs ? 0 : time_ns;
}

void Recorder::on_module(Process& process, const WireEvent& event) {
  const int64_t time_ns = event_ns(event.head.tick);
  if (event.head.kind == EventKind::kModuleLoad) {
    Module module = module_of(event, time_ns);
    module.process = process.id;
    if (module.end <= module.start) return;
    if (const Module* row = process.space->load(std::move(module))) writer_.module(*row);
    return;
  }
  const auto fixed = event.as<schema::ModuleEvent>();
  const Module* row = process.space->unload(fixed.start, fixed.end, time_ns);
  // A module that a fork inherited goes on in its parent.
  if (row != nullptr && row->process == process.id) writer_.module_end(*row);
}

void Recorder::decode_piece(const RingPiece& piece, std::span<const std::byte> bytes) {
  Image* image = image_of(piece.region.get());
  if (image == nullptr) return;
  Ring& ring = ring_of(*image, piece.slot);
  ring.position += bytes.size();
  if (piece.broken && !ring.broken) {
    ring.broken = true;
    if (ring.owner == nullptr && !adopt(*image, ring, piece.slot)) return;
    ++ring.owner->events_lost;
    ++counters_.lost;
    writer_.mark(now_ns_, ring.owner->id, ring.thread->id, "note",
                 "the program wrote over a ring of the recorder: the rest of it is lost");
  }
  WireReader reader(bytes);
  CallRun::Times times{ClockMap::Cursor(clock_), origin_raw_ns_, now_ns_ + kFutureNs};
  for (WireEvent event;;) {
    if (ring.thread != nullptr && decode_calls(ring, reader, times)) continue;
    if (!reader.next(event)) break;
    decode_event(*image, ring, piece.slot, event);
  }
  ring.events += reader.events() + reader.unknown();
  if (reader.damaged() != 0 && ring.owner != nullptr) ring.owner->changed = true;
}

// As many calls as follow each other, up to a run. False: there are none.
bool Recorder::decode_calls(Ring& ring, WireReader& reader, CallRun::Times& times) {
  const size_t bytes = run_.read(reader.rest(), times, ring.thread->id);
  const size_t count = run_.calls().count;
  if (count == 0) return false;
  reader.pass(bytes, count);
  Process& process = *ring.owner;
  run_.find_stacks(ring.stack, tree_, *process.space);
  process.incomplete_stacks += run_.incomplete_stacks();
  add_calls(ring, run_.calls(), count);
  return true;
}

template <typename Calls>
void Recorder::add_calls(Ring& ring, const Calls& calls, size_t count) {
  Process& process = *ring.owner;
  process.events += count;
  process.changed = true;
  counters_.events += count;
  process.calls.add(&ring, calls, encoders_,
                    [&](const auto& batch) { writer_.calls(process.id, batch); });
}

void Recorder::decode_event(Image& image, Ring& ring, uint32_t slot, const WireEvent& event) {
  const int64_t time_ns = event_ns(event.head.tick);
  if (event.head.kind == EventKind::kThreadStart) {
    start_thread(image, ring, event, time_ns);
    return;
  }
  const bool sane = time_ns >= 0 && time_ns <= now_ns_ + kFutureNs;
  if (!sane || (ring.owner == nullptr && !adopt(image, ring, slot))) {
    if (ring.owner != nullptr) ++ring.owner->events_lost;
    ++counters_.lost;
    return;
  }
  if (schema::is_call(event.head.kind)) {
    decode_call(ring, event, time_ns);
    return;
  }
  switch (event.head.kind) {
    case EventKind::kSyscall:
      decode_syscall(ring, event, time_ns);
      break;
    case EventKind::kPolicy:
      writer_.policy(time_ns, ring.owner->id, ring.thread->id, event.as<schema::PolicyEvent>(),
                     stack_of(ring, event, time_ns));
      break;
    case EventKind::kThreadEnd:
      ring.ended = true;
      ended_rings_.push_back({image.region.get(), slot});
      ring.thread->end_ns = std::max(ring.thread->end_ns.value_or(0), time_ns);
      ring.thread->changed = true;
      break;
    case EventKind::kMark:
      writer_.mark(time_ns, ring.owner->id, ring.thread->id, "mark", event.text,
                   stack_of(ring, event, time_ns));
      break;
    case EventKind::kNote:
      writer_.mark(time_ns, ring.owner->id, ring.thread->id, "note", event.text,
                   stack_of(ring, event, time_ns));
      break;
    case EventKind::kExec:
    case EventKind::kExecFailed:
      on_exec(image, ring, event, time_ns);
      break;
    case EventKind::kModuleLoad:
    case EventKind::kModuleUnload:
      if (modules_in_order_) on_module(*ring.owner, event);  // Else it was seen to before.
      break;
    default:
      break;
  }
}

void Recorder::decode_call(Ring& ring, const WireEvent& event, int64_t time_ns) {
  schema::CallRow row = row_of(event, role_of(event.head.kind));
  Process& process = *ring.owner;
  row.time_ns = time_ns;
  row.ended_ns = time_ns;
  if (event.head.kind >= EventKind::kRealloc) {
    const auto fixed = event.as<schema::ReallocEvent>();
    row.ended_ns = std::min(time_ns, trace_ns(clock_.to_ns(fixed.ended_tick)));
  }
  row.thread = ring.thread->id;
  row.kind = event.head.kind;
  row.flags = event.head.flags & schema::kStoredFlags;
  row.stack = stack_of(ring, event, time_ns);
  if (event.has(schema::kHasStack) && event.has(schema::kStackIncomplete)) {
    ++process.incomplete_stacks;
  }
  // Of the thread's own ring: what it interrupted is not told of before it returns.
  if (!event.has(schema::kNested)) ring.thread->events_until_ns = time_ns;
  add_calls(ring, row, 1);
}

void Recorder::decode_syscall(Ring& ring, const WireEvent& event, int64_t time_ns) {
  SyscallRow row{};
  row.call = event.as<schema::SyscallEvent>();
  row.time_ns = time_ns;
  row.duration_ns = clock_.duration_ns(row.call.duration_ticks);
  row.process = ring.owner->id;
  row.thread = ring.thread->id;
  row.stack = stack_of(ring, event, time_ns);
  if (row.call.origin == schema::Origin::kAllocator) {
    apply_mapping_call(ring.owner->allocator_ranges, row.call);
  }
  if (sees_kernel_calls()) {
    join_.wrapped(*ring.owner, *ring.thread, row);
  } else {
    writer_.syscall(row);
  }
}

uint32_t Recorder::stack_of(Ring& ring, const WireEvent& event, int64_t time_ns) {
  if (!event.has(schema::kHasStack)) return 0;
  AddressSpace& space = *ring.owner->space;
  uint32_t node = 0;
  ring.stack.apply(
      tree_, event.head.keep, event.head.fresh, event.has(schema::kStackIncomplete),
      [&](size_t index) { return space.key(event.frame(index), time_ns); }, node);
  return node;
}

void Recorder::start_thread(Image& image, Ring& ring, const WireEvent& event, int64_t time_ns) {
  const auto fixed = event.as<schema::ThreadStartEvent>();
  ring.stack.clear();
  ring.ended = false;
  ring.owner = process_of_slot(image, fixed.process_slot);
  ring.thread = nullptr;
  if (ring.owner == nullptr) return;  // The next event tries by the slot's own fields.
  const pid_t tid = image.pids.tid_named_by(ring.owner->slot, fixed.tid);
  Thread& thread = begin_thread(*ring.owner, tid, time_ns, processes_.next_thread_id());
  thread.start_ns = std::min(thread.start_ns.value_or(time_ns), time_ns);
  ring.thread = &thread;
}

// The ring has no owner that was read: its kThreadStart was damaged. The slot has the same facts.
bool Recorder::adopt(Image& image, Ring& ring, uint32_t slot) {
  const schema::RingSlot& fields = image.region->ring_slot(slot);
  ring.owner = process_of_slot(image, fields.process_slot.load(std::memory_order_relaxed));
  if (ring.owner == nullptr) ring.owner = process_of_slot(image, 0);
  if (ring.owner == nullptr) return false;
  const pid_t tid =
      image.pids.tid_named_by(ring.owner->slot, fields.tid.load(std::memory_order_relaxed));
  ring.thread = &thread_of(*ring.owner, tid, now_ns_, processes_.next_thread_id());
  return true;
}

void Recorder::on_exec(Image& image, Ring& ring, const WireEvent& event, int64_t time_ns) {
  const auto fixed = event.as<schema::ExecEvent>();
  const pid_t pid = image.pids.pid_named_by(ring.owner->slot, fixed.pid);
  if (pid <= 0) return;
  if (event.head.kind == EventKind::kExecFailed) {
    processes_.exec_failed(pid);
    return;
  }
  const size_t path = std::min<size_t>(fixed.path_bytes, event.text.size());
  processes_.exec_announced(pid, *ring.owner, std::string(event.text.substr(0, path)),
                            quote_arguments(event.text.substr(path)), time_ns);
}

}  // namespace heapledger::collector
