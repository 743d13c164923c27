// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/kernel_syscalls.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "interposer/collector/clock_map.h"

namespace heapledger::collector {
namespace {

// A call makes some 190 bytes, and the fastest ones take a microsecond: 2 MiB hold more than the 5
// ms between two looks of the drain thread.
constexpr uint64_t kBufferBytesMax = uint64_t{2} << 20;
constexpr uint64_t kBufferBytesMin = uint64_t{16} << 10;
// decode() reads by these.
constexpr uint64_t kSampleType =
    PERF_SAMPLE_IP | PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_ID | PERF_SAMPLE_RAW;
constexpr size_t kRawAt = 32;  // In a sample's body: the size, then the record.
constexpr size_t kRecordAt = kRawAt + 4;
constexpr uint32_t kStackBytes = 8;

perf_event_attr attributes(uint32_t tracepoint, bool entry, bool tells_tasks, PerfWhen when,
                           bool follow) {
  perf_event_attr attr{};
  attr.size = sizeof attr;
  attr.type = PERF_TYPE_TRACEPOINT;
  attr.config = tracepoint;
  attr.sample_period = 1;
  attr.sample_type = kSampleType;
  if (entry) {
    attr.sample_type |= PERF_SAMPLE_STACK_USER;
    attr.sample_stack_user = kStackBytes;
  }
  attr.sample_id_all = 1;
  attr.read_format = kPerfFormatLost;
  attr.disabled = 1;
  attr.enable_on_exec = when == PerfWhen::kOnExec ? 1 : 0;
  attr.inherit = 1;
  attr.inherit_thread = follow ? 0 : 1;
  attr.exclude_kernel = 1;
  attr.exclude_hv = 1;
  attr.use_clockid = 1;
  attr.clockid = CLOCK_MONOTONIC_RAW;
  attr.watermark = 1;
  attr.wakeup_watermark = 1U << 30;  // Nobody polls: the drain thread looks by itself.
  attr.task = tells_tasks ? 1 : 0;
  attr.comm = attr.task;
  attr.comm_exec = attr.task;
  return attr;
}

// Behind the raw part: how much was asked for, the bytes, and how much there was.
uint64_t top_of_stack(const PerfBytes& from) {
  uint32_t raw_bytes;
  std::memcpy(&raw_bytes, from.body + kRawAt, sizeof raw_bytes);
  const size_t at = kRecordAt + raw_bytes;
  if (raw_bytes > from.body_bytes || from.body_bytes < at + 24) return 0;
  const bool whole =
      perf_word(from.body + at) == kStackBytes && perf_word(from.body + at + 16) != 0;
  return whole ? perf_word(from.body + at + 8) : 0;
}

std::string first_word(const char* path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// Page faults are many more: an ordinary user's budget is mostly theirs.
uint64_t buffer_bytes_max() {
  if (geteuid() == 0) return kBufferBytesMax;
  const uint64_t budget =
      std::strtoull(first_word("/proc/sys/kernel/perf_event_mlock_kb").c_str(), nullptr, 10) << 10;
  uint64_t bytes = kBufferBytesMin;
  while (bytes * 8 <= budget && bytes < kBufferBytesMax) bytes *= 2;
  return bytes;
}

}  // namespace

struct KernelSyscalls::Buffer {
  int cpu = 0;
  std::vector<UniqueFd> events;  // The first one's buffer is everybody's.
  PerfRing ring;
  bool counts_lost = true;
};

KernelSyscalls::KernelSyscalls() = default;
KernelSyscalls::~KernelSyscalls() = default;

bool KernelSyscalls::attach(pid_t tid, PerfWhen when) {
  if (!found_) {
    const auto points = find_tracepoints(why_);
    if (!points) return false;
    points_ = *points;
    found_ = true;
  }
  if (!open_all(tid, when)) return false;
  if (when == PerfWhen::kNow) since_raw_ns_.store(raw_now_ns());
  return true;
}

bool KernelSyscalls::attach_process(pid_t pid) {
  return attach_threads(pid, why_, [this](pid_t tid) { return attach(tid, PerfWhen::kNow); });
}

// On failure what was opened is closed again.
bool KernelSyscalls::open_all(pid_t tid, PerfWhen when) {
  const bool first = buffers_.empty();
  std::vector<std::unique_ptr<Buffer>> fresh;
  const auto processors = static_cast<int>(sysconf(_SC_NPROCESSORS_CONF));
  for (int cpu = 0; cpu < processors; ++cpu) {
    auto buffer = std::make_unique<Buffer>();
    buffer->cpu = cpu;
    if (open_on(*buffer, tid, when)) {
      fresh.push_back(std::move(buffer));
    } else if (errno != ENODEV) {  // The processor is offline.
      why_ = fmt::format("perf_event_open: {} (perf_event_paranoid {})", std::strerror(errno),
                         first_word("/proc/sys/kernel/perf_event_paranoid"));
      return false;
    }
  }
  if (fresh.empty()) return false;
  if (first && !map_buffers(fresh)) {
    why_ = fmt::format("no memory for perf's buffers: {} (perf_event_mlock_kb {})",
                       std::strerror(errno), first_word("/proc/sys/kernel/perf_event_mlock_kb"));
    return false;
  }
  for (auto& buffer : fresh) {
    const Buffer* owner = buffer.get();
    if (!first) {
      const auto found = std::find_if(buffers_.begin(), buffers_.end(),
                                      [&](const auto& other) { return other->cpu == buffer->cpu; });
      if (found == buffers_.end()) continue;  // It came online meanwhile.
      owner = found->get();
    }
    for (const UniqueFd& event : buffer->events) {
      const int output = owner->events.front().get();
      if (event.get() != output) ioctl(event.get(), PERF_EVENT_IOC_SET_OUTPUT, output);
    }
    if (when != PerfWhen::kNow) continue;
    for (const UniqueFd& event : buffer->events) ioctl(event.get(), PERF_EVENT_IOC_ENABLE, 0);
  }
  if (first) {
    buffers_ = std::move(fresh);
    ready_.store(true, std::memory_order_release);
    return true;
  }
  const std::lock_guard lock(mutex_);
  for (auto& buffer : fresh) {
    std::move(buffer->events.begin(), buffer->events.end(), std::back_inserter(others_));
  }
  return true;
}

bool KernelSyscalls::open_on(Buffer& buffer, pid_t tid, PerfWhen when) {
  for (const CallTracepoints& call : points_) {
    for (const Tracepoint* point : {&call.enter, &call.exit}) {
      perf_event_attr attr =
          attributes(point->id, point == &call.enter, buffer.events.empty(), when, follow_);
      UniqueFd event(perf_open(attr, tid, buffer.cpu));
      if (!event) return false;
      buffer.counts_lost = attr.read_format != 0;
      buffer.events.push_back(std::move(event));
    }
  }
  return true;
}

// The same size for every processor: the first must not eat the budget of the others.
bool KernelSyscalls::map_buffers(std::vector<std::unique_ptr<Buffer>>& buffers) {
  for (uint64_t bytes = buffer_bytes_max(); bytes >= kBufferBytesMin; bytes /= 2) {
    const bool all = std::all_of(buffers.begin(), buffers.end(), [&](auto& buffer) {
      return buffer->ring.map(buffer->events.front().get(), bytes);
    });
    if (all) {
      buffer_bytes_ = bytes;
      return true;
    }
    const int why = errno;
    for (auto& buffer : buffers) buffer->ring.unmap();
    errno = why;
    if (why != EPERM && why != ENOMEM) return false;
  }
  return false;
}

void KernelSyscalls::drain(RawBytes& raw, std::vector<PerfPiece>& pieces) {
  if (!ready_.load(std::memory_order_acquire)) return;
  for (const auto& buffer : buffers_) buffer->ring.drain(raw, pieces, true);
}

void KernelSyscalls::decode(const std::byte* data, size_t bytes, std::vector<KernelRecord>& records,
                            std::vector<PerfRecord>& tasks) const {
  for (PerfBytes from{data, bytes}; from.next();) {
    if (from.header.type != PERF_RECORD_SAMPLE) {
      PerfRecord task;
      if (!decode_task_record(from, task)) continue;
      if (task.kind == PerfKind::kLost) {
        lost_told_ += task.lost;
      } else {
        tasks.push_back(task);
      }
      continue;
    }
    if (from.body_bytes <= kRecordAt + sizeof(uint16_t)) continue;
    const std::byte* raw = from.body + kRecordAt;
    uint16_t id;
    std::memcpy(&id, raw, sizeof id);
    for (size_t i = 0; i < kMemoryCalls; ++i) {
      const bool entry = points_[i].enter.id == id;
      if (!entry && points_[i].exit.id != id) continue;
      const Tracepoint& point = entry ? points_[i].enter : points_[i].exit;
      KernelRecord record;
      record.ip = perf_word(from.body);
      record.pid = low_half(perf_word(from.body + 8));
      record.tid = high_half(perf_word(from.body + 8));
      record.raw_ns = static_cast<int64_t>(perf_word(from.body + 16));
      record.name = static_cast<schema::SyscallName>(i);
      record.entry = entry;
      for (size_t field = 0; field < point.fields; ++field) {
        if (kRecordAt + point.offset[field] + 8 > from.body_bytes) break;
        record.words[field] = perf_word(raw + point.offset[field]);
      }
      if (entry) record.top = top_of_stack(from);
      records.push_back(record);
      break;
    }
  }
}

uint64_t KernelSyscalls::lost_total() const {
  uint64_t total = 0;
  if (!active()) return total;
  for (const auto& buffer : buffers_) {
    if (!buffer->counts_lost) continue;
    for (const UniqueFd& event : buffer->events) total += perf_lost(event.get());
  }
  const std::lock_guard lock(mutex_);
  for (const UniqueFd& event : others_) total += perf_lost(event.get());
  return std::max(total, lost_told_.load());
}

bool can_see_syscalls(std::string& why) {
  KernelSyscalls probe;
  if (probe.attach(getpid(), PerfWhen::kOnExec)) return true;
  why = probe.why();
  return false;
}

}  // namespace heapledger::collector
