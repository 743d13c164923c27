// SPDX-License-Identifier: Apache-2.0
// Recorder: system calls as the kernel sees them.
#include <algorithm>
#include <cstring>

#include "interposer/collector/packer.h"
#include "interposer/collector/recorder.h"

namespace heapledger::collector {
namespace {

using schema::Origin;

bool is_recorders(const Module& module) { return module.path.ends_with("/libheapledger.so"); }

bool is_loader(const Module& module) {
  const size_t slash = module.path.rfind('/');
  const std::string_view name = std::string_view(module.path).substr(slash + 1);
  return name.starts_with("ld-linux") || (name.starts_with("ld-") && name.ends_with(".so"));
}

}  // namespace

// Who made a call that nothing in the program told of.
struct Recorder::Caller {
  Origin origin = Origin::kProgram;
  uint64_t returns_to = 0;  // 0: not known.
};

// The recorder's are those that its code makes, but for its syscall(), which passes on what the
// program asks; and those that libunwind makes through its mmap and munmap.
Recorder::Caller Recorder::caller_of(const Process& process, const KernelCall& call) {
  Caller caller;
  if (process.space == nullptr) return caller;
  const Module* code = process.space->module_at(call.ip, call.entered_ns);
  const Module* above = process.space->module_at(call.top, call.entered_ns);
  if (above != nullptr && return_sites_.is_return_site(*above, call.top)) {
    caller.returns_to = call.top;
  }
  if (code != nullptr && is_loader(*code)) {
    caller.origin = Origin::kLoader;
  } else if (caller.returns_to != 0 ? is_recorders(*above)
                                    : code != nullptr && is_recorders(*code)) {
    caller.origin = Origin::kRecorder;
  }
  return caller;
}

SyscallJoin::Sink Recorder::join_sink() {
  return {[this](const SyscallRow& row) { writer_.syscall(row); },
          [this](Process& process, const Thread& thread, const KernelCall& call) {
            return write_kernel_call(process, thread, call);
          },
          [this](const Process& process, const KernelCall& call) {
            return caller_of(process, call).origin == Origin::kRecorder;
          }};
}

void Recorder::decode_kernel(const std::byte* data, size_t bytes) {
  const size_t tasks = perf_records_.size();
  kernel_->decode(data, bytes, kernel_records_, perf_records_);
  // Both tell of tasks where both are attached.
  if (perf_.active()) perf_records_.resize(tasks);
}

void Recorder::apply_kernel(int64_t until_raw_ns) {
  if (kernel_records_.empty()) return;
  join_.set_since(kernel_->since_raw_ns() == 0 ? INT64_MIN : trace_ns(kernel_->since_raw_ns()));
  sort_runs(kernel_records_,
            [](const KernelRecord& a, const KernelRecord& b) { return a.raw_ns < b.raw_ns; });
  size_t done = 0;
  for (; done < kernel_records_.size() && kernel_records_[done].raw_ns < until_raw_ns; ++done) {
    const KernelRecord& record = kernel_records_[done];
    if (record.entry) {
      open_calls_[record.tid] = record;
      continue;
    }
    const auto open = open_calls_.find(record.tid);
    if (open == open_calls_.end()) continue;  // It was entered before we looked.
    const KernelRecord entry = open->second;
    open_calls_.erase(open);
    if (entry.name != record.name) continue;  // The records between were lost.
    KernelCall call;
    call.entered_ns = trace_ns(entry.raw_ns);
    call.left_ns = trace_ns(record.raw_ns);
    call.ip = entry.ip;
    call.top = entry.top;
    call.name = entry.name;
    call.result = static_cast<int64_t>(record.words[0]);
    std::memcpy(call.args, entry.words, sizeof call.args);
    normalize_arguments(call.name, call.args);
    Process& process = processes_.at(static_cast<pid_t>(entry.pid), call.entered_ns);
    join_.called(process,
                 thread_of(process, static_cast<pid_t>(entry.tid), call.entered_ns,
                           processes_.next_thread_id()),
                 call);
  }
  kernel_records_.erase(kernel_records_.begin(),
                        kernel_records_.begin() + static_cast<std::ptrdiff_t>(done));
}

// Its stack is what is known of it: one frame or two.
bool Recorder::write_kernel_call(Process& process, const Thread& thread, const KernelCall& call) {
  if (process.id == 0) return false;
  const Caller caller = caller_of(process, call);
  SyscallRow row{};
  row.call.name = call.name;
  row.call.result = call.result;
  std::memcpy(row.call.args, call.args, sizeof call.args);
  row.call.origin = caller.origin;
  row.time_ns = call.entered_ns;
  row.duration_ns = call.left_ns - call.entered_ns;
  row.process = process.id;
  row.thread = thread.id;
  CallTree::Place place = tree_.child({}, kIncompleteFrame);
  for (const uint64_t pc : {caller.returns_to, call.ip}) {
    if (pc == 0) continue;
    const FrameKey key =
        process.space != nullptr ? process.space->key(pc, call.entered_ns) : frames_.key(0, pc);
    place = tree_.child(place, key);
  }
  row.stack = place.node;
  writer_.syscall(row);
  return true;
}

void Recorder::write_syscall_totals(uint64_t kernel_lost) {
  if (!sees_kernel_calls()) return;
  counters_.lost += kernel_lost;
  writer_.meta("syscalls_lost", static_cast<int64_t>(kernel_lost));
  writer_.meta("syscalls_unmatched", static_cast<int64_t>(join_.unmatched()));
}

}  // namespace heapledger::collector
