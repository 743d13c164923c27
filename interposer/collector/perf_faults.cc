// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/perf_faults.h"

#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

namespace heapledger::collector {
namespace {

constexpr uint64_t kBufferBytesMax = uint64_t{8} << 20;
constexpr uint64_t kBufferBytesMin = uint64_t{16} << 10;
// What every record of ours ends with, or, in a sample, consists of; decode() reads by it.
constexpr uint64_t kSampleType =
    PERF_SAMPLE_IP | PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_ADDR | PERF_SAMPLE_ID;

perf_event_attr attributes(bool major, PerfFaults::When when, bool exclude_kernel, bool follow) {
  perf_event_attr attr{};
  attr.size = sizeof attr;
  attr.type = PERF_TYPE_SOFTWARE;
  attr.config = major ? PERF_COUNT_SW_PAGE_FAULTS_MAJ : PERF_COUNT_SW_PAGE_FAULTS_MIN;
  attr.sample_period = 1;
  attr.sample_type = kSampleType;
  attr.sample_id_all = 1;
  attr.read_format = kPerfFormatLost;
  attr.disabled = 1;
  attr.enable_on_exec = when == PerfFaults::When::kOnExec ? 1 : 0;
  attr.inherit = 1;
  attr.inherit_thread = follow ? 0 : 1;
  attr.exclude_kernel = exclude_kernel ? 1 : 0;
  attr.exclude_hv = exclude_kernel ? 1 : 0;
  attr.use_clockid = 1;
  attr.clockid = CLOCK_MONOTONIC_RAW;
  attr.watermark = 1;
  attr.wakeup_watermark = 1U << 30;  // Nobody polls: the drain thread looks by itself.
  attr.task = major ? 0 : 1;
  attr.comm = major ? 0 : 1;
  attr.comm_exec = major ? 0 : 1;
  return attr;
}

}  // namespace

struct PerfFaults::Buffer {
  int cpu = 0;
  UniqueFd minor;
  UniqueFd major;
  PerfRing ring;
  bool counts_lost = true;
};

const char* fault_mode_name(FaultMode mode) {
  switch (mode) {
    case FaultMode::kPerf:
      return "perf";
    case FaultMode::kPerfUser:
      return "perf-user";
    case FaultMode::kGetrusage:
      return "getrusage";
    case FaultMode::kNone:
      break;
  }
  return "none";
}

PerfFaults::PerfFaults() = default;
PerfFaults::~PerfFaults() = default;

bool PerfFaults::attach(pid_t tid, When when) {
  if (!buffers_.empty()) {
    return open_buffers(tid, when, mode_ == FaultMode::kPerfUser);
  }
  if (open_buffers(tid, when, false)) {
    mode_ = FaultMode::kPerf;
    return true;
  }
  if ((errno == EACCES || errno == EPERM) && open_buffers(tid, when, true)) {
    mode_ = FaultMode::kPerfUser;
    return true;
  }
  why_ = std::string("perf_event_open: ") + std::strerror(errno);
  return false;
}

bool PerfFaults::attach_process(pid_t pid) {
  return attach_threads(pid, why_, [this](pid_t tid) { return attach(tid, When::kNow); });
}

// On failure errno says why, and what was opened for the first task is closed again.
bool PerfFaults::open_buffers(pid_t tid, When when, bool exclude_kernel) {
  const bool first = buffers_.empty();
  std::vector<std::unique_ptr<Buffer>> fresh;
  const auto processors = static_cast<int>(sysconf(_SC_NPROCESSORS_CONF));
  for (int cpu = 0; cpu < processors; ++cpu) {
    auto buffer = std::make_unique<Buffer>();
    buffer->cpu = cpu;
    if (!open_pair(*buffer, tid, when, exclude_kernel)) {
      if (errno == ENODEV) continue;  // The processor is offline.
      return false;
    }
    fresh.push_back(std::move(buffer));
  }
  if (fresh.empty()) return false;
  if (first) {
    if (!map_buffers(fresh)) return false;
    buffers_ = std::move(fresh);
    ready_.store(true, std::memory_order_release);
  }
  for (auto& buffer : first ? buffers_ : fresh) {
    const auto own = std::find_if(buffers_.begin(), buffers_.end(),
                                  [&](const auto& other) { return other->cpu == buffer->cpu; });
    if (own == buffers_.end()) continue;
    const int output = (*own)->minor.get();
    if (!first) ioctl(buffer->minor.get(), PERF_EVENT_IOC_SET_OUTPUT, output);
    ioctl(buffer->major.get(), PERF_EVENT_IOC_SET_OUTPUT, output);
    uint64_t id = 0;
    ioctl(buffer->major.get(), PERF_EVENT_IOC_ID, &id);
    const std::lock_guard lock(mutex_);
    major_ids_.push_back(id);
    if (when == When::kNow) {
      ioctl(buffer->minor.get(), PERF_EVENT_IOC_ENABLE, 0);
      ioctl(buffer->major.get(), PERF_EVENT_IOC_ENABLE, 0);
    }
    if (!first) {
      others_.push_back(std::move(buffer->minor));
      others_.push_back(std::move(buffer->major));
    }
  }
  return true;
}

bool PerfFaults::open_pair(Buffer& buffer, pid_t tid, When when, bool exclude_kernel) {
  perf_event_attr attr = attributes(false, when, exclude_kernel, follow_);
  buffer.minor = UniqueFd(perf_open(attr, tid, buffer.cpu));
  if (!buffer.minor) return false;
  attr = attributes(true, when, exclude_kernel, follow_);
  buffer.major = UniqueFd(perf_open(attr, tid, buffer.cpu));
  buffer.counts_lost = attr.read_format != 0;
  return static_cast<bool>(buffer.major);
}

// The same size for every processor: the first must not eat the budget of the others.
bool PerfFaults::map_buffers(std::vector<std::unique_ptr<Buffer>>& buffers) {
  for (uint64_t bytes = kBufferBytesMax; bytes >= kBufferBytesMin; bytes /= 2) {
    const bool all = std::all_of(buffers.begin(), buffers.end(), [&](auto& buffer) {
      return buffer->ring.map(buffer->minor.get(), bytes);
    });
    if (all) {
      buffer_bytes_ = bytes;
      return true;
    }
    const int why = errno;
    for (auto& buffer : buffers) buffer->ring.unmap();
    if (why != EPERM && why != ENOMEM) {
      errno = why;
      return false;
    }
  }
  return false;
}

void PerfFaults::drain(RawBytes& raw, std::vector<PerfPiece>& pieces) {
  if (!ready_.load(std::memory_order_acquire)) return;
  for (const auto& buffer : buffers_) buffer->ring.drain(raw, pieces, false);
}

void PerfFaults::decode(const std::byte* data, size_t bytes,
                        std::vector<PerfRecord>& records) const {
  const std::lock_guard lock(mutex_);
  for (PerfBytes from{data, bytes}; from.next();) {
    PerfRecord record;
    if (from.header.type != PERF_RECORD_SAMPLE) {
      if (decode_task_record(from, record)) records.push_back(record);
      continue;
    }
    if (from.body_bytes < 40) continue;
    const std::byte* body = from.body;
    record.ip = perf_word(body);
    record.pid = low_half(perf_word(body + 8));
    record.tid = high_half(perf_word(body + 8));
    record.raw_ns = static_cast<int64_t>(perf_word(body + 16));
    record.address = perf_word(body + 24);
    const uint64_t id = perf_word(body + 32);
    record.major = std::find(major_ids_.begin(), major_ids_.end(), id) != major_ids_.end();
    record.kernel = (from.header.misc & PERF_RECORD_MISC_CPUMODE_MASK) == PERF_RECORD_MISC_KERNEL;
    records.push_back(record);
  }
}

uint64_t PerfFaults::lost_total() const {
  uint64_t total = 0;
  const std::lock_guard lock(mutex_);
  for (const auto& buffer : buffers_) {
    if (!buffer->counts_lost) continue;
    total += perf_lost(buffer->minor.get()) + perf_lost(buffer->major.get());
  }
  return total;
}

}  // namespace heapledger::collector
