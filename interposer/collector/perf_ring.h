// SPDX-License-Identifier: Apache-2.0
// What all users of perf share: the buffer of one processor, and the records that tell of tasks.
//
// The kernel writes records at data_head, we read up to it and move data_tail; what finds no room
// is dropped and counted by the kernel. Every event of ours is opened with sample_id_all and with
// PERF_SAMPLE_TID | TIME | ID, so each record that is no sample ends with the same three words.
//
// Thread safety: map() before anyone drains; drain() by one thread; the decoders by any.
#pragma once

#include <linux/perf_event.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "interposer/collector/ring_reader.h"

namespace heapledger::collector {

enum class PerfKind : uint8_t { kFault, kFork, kExit, kExec, kName, kLost };

// One record, decoded.
struct PerfRecord {
  int64_t raw_ns = 0;  // CLOCK_MONOTONIC_RAW
  uint64_t address = 0;
  uint64_t ip = 0;
  uint64_t lost = 0;
  uint32_t pid = 0;  // Of a fork: the child's.
  uint32_t tid = 0;
  uint32_t parent_pid = 0;  // Of a fork.
  PerfKind kind = PerfKind::kFault;
  bool major = false;
  bool kernel = false;  // The kernel was executing.
  char name[16] = {};   // Of an exec or a new name.
};

// Bytes of one buffer inside a window.
struct PerfPiece {
  size_t offset;
  size_t bytes;
  bool syscalls = false;  // KernelSyscalls' buffer; else PerfFaults'.
};

// From when on an attached event counts.
enum class PerfWhen : uint8_t { kNow, kOnExec };

class PerfRing {
 public:
  PerfRing() = default;
  ~PerfRing() { unmap(); }
  PerfRing(const PerfRing&) = delete;
  PerfRing& operator=(const PerfRing&) = delete;

  bool map(int fd, uint64_t data_bytes);  // False: errno says why.
  void unmap();
  // Takes what is there; adds a piece unless that is nothing.
  void drain(RawBytes& raw, std::vector<PerfPiece>& pieces, bool syscalls);

 private:
  perf_event_mmap_page* page_ = nullptr;
  uint64_t bytes_ = 0;
};

// Opens an event, without the kernel's own count of what it dropped where it has none (before 6.0):
// attr.read_format is then 0.
int perf_open(perf_event_attr& attr, pid_t tid, int cpu);
inline constexpr uint64_t kPerfFormatLost = 1U << 4;  // PERF_FORMAT_LOST, since Linux 6.0.
// By the event's own counter; 0 where it has none.
uint64_t perf_lost(int fd);

// `attach` for every thread of a process, as /proc lists them. False: it did so for none; `why` is
// its, or says that there are no threads.
bool attach_threads(pid_t pid, std::string& why, const std::function<bool(pid_t)>& attach);

inline uint64_t perf_word(const std::byte* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}
inline uint32_t low_half(uint64_t word) { return static_cast<uint32_t>(word); }
inline uint32_t high_half(uint64_t word) { return static_cast<uint32_t>(word >> 32); }

// Steps through the records of a piece; false at its end, or where the bytes make no sense.
struct PerfBytes {
  const std::byte* data;
  size_t bytes;
  size_t at = 0;

  perf_event_header header{};
  const std::byte* body = nullptr;
  size_t body_bytes = 0;

  bool next();
};

// A record that is no sample: who was forked, ended, ran a program, got a name, what was lost.
// False: of a kind that we have no use for.
bool decode_task_record(const PerfBytes& bytes, PerfRecord& record);

}  // namespace heapledger::collector
