// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/perf_ring.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "interposer/collector/proc_files.h"

namespace heapledger::collector {
namespace {

constexpr uint64_t kPage = 4096;
// Of a record that is no sample: header, one word, and the trailer of tid, time and id.
constexpr size_t kTrailerBytes = 24;
constexpr size_t kRecordBytesMin = sizeof(perf_event_header) + 8 + kTrailerBytes;

}  // namespace

bool PerfRing::map(int fd, uint64_t data_bytes) {
  void* address = mmap(nullptr, data_bytes + kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return false;
  page_ = static_cast<perf_event_mmap_page*>(address);
  bytes_ = data_bytes;
  return true;
}

void PerfRing::unmap() {
  if (page_ != nullptr) munmap(page_, bytes_ + kPage);
  page_ = nullptr;
}

void PerfRing::drain(RawBytes& raw, std::vector<PerfPiece>& pieces, bool syscalls) {
  // Acquire: pairs with the kernel's barrier before it moves data_head.
  const uint64_t head = std::atomic_ref(page_->data_head).load(std::memory_order_acquire);
  const uint64_t tail = page_->data_tail;
  const uint64_t fresh = head - tail;
  if (fresh == 0 || fresh > bytes_) return;
  const auto* data = reinterpret_cast<const std::byte*>(page_) + kPage;
  const uint64_t start = tail % bytes_;
  const size_t part = std::min(fresh, bytes_ - start);
  const size_t offset = raw.size();
  std::byte* place = raw.extend(fresh);
  std::memcpy(place, data + start, part);
  std::memcpy(place + part, data, fresh - part);
  pieces.push_back({offset, fresh, syscalls});
  // Release: the kernel may overwrite what was copied.
  std::atomic_ref(page_->data_tail).store(head, std::memory_order_release);
}

int perf_open(perf_event_attr& attr, pid_t tid, int cpu) {
  long fd = syscall(SYS_perf_event_open, &attr, tid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
  if (fd < 0 && errno == EINVAL && attr.read_format != 0) {
    attr.read_format = 0;
    fd = syscall(SYS_perf_event_open, &attr, tid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
  }
  return static_cast<int>(fd);
}

bool attach_threads(pid_t pid, std::string& why, const std::function<bool(pid_t)>& attach) {
  const std::vector<pid_t> tids = proc_tids(pid);
  if (tids.empty()) why = proc_path(pid, "task") + ": " + std::strerror(errno);
  return std::count_if(tids.begin(), tids.end(), attach) != 0;
}

uint64_t perf_lost(int fd) {
  uint64_t values[2] = {};  // Count, lost.
  return read(fd, values, sizeof values) == sizeof values ? values[1] : 0;
}

bool PerfBytes::next() {
  if (bytes - at < sizeof header) return false;
  std::memcpy(&header, data + at, sizeof header);
  if (header.size < kRecordBytesMin || header.size % 8 != 0 || header.size > bytes - at) {
    return false;
  }
  body = data + at + sizeof header;
  body_bytes = header.size - sizeof header;
  at += header.size;
  return true;
}

bool decode_task_record(const PerfBytes& bytes, PerfRecord& record) {
  const std::byte* body = bytes.body;
  const std::byte* trailer = body + bytes.body_bytes - kTrailerBytes;
  record.raw_ns = static_cast<int64_t>(perf_word(trailer + 8));
  record.pid = low_half(perf_word(body));
  record.tid = high_half(perf_word(body));
  switch (bytes.header.type) {
    case PERF_RECORD_COMM:
      record.kind =
          (bytes.header.misc & PERF_RECORD_MISC_COMM_EXEC) != 0 ? PerfKind::kExec : PerfKind::kName;
      std::memcpy(record.name, body + 8,
                  std::min(sizeof record.name - 1, static_cast<size_t>(trailer - body) - 8));
      return true;
    case PERF_RECORD_FORK:
    case PERF_RECORD_EXIT:
      record.kind = bytes.header.type == PERF_RECORD_FORK ? PerfKind::kFork : PerfKind::kExit;
      record.parent_pid = high_half(perf_word(body));
      record.tid = low_half(perf_word(body + 8));
      return true;
    case PERF_RECORD_LOST:
      record.kind = PerfKind::kLost;
      record.lost = perf_word(body + 8);
      record.pid = low_half(perf_word(trailer));
      record.tid = high_half(perf_word(trailer));
      return true;
    default:
      return false;
  }
}

}  // namespace heapledger::collector
