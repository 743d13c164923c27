// SPDX-License-Identifier: Apache-2.0
// Traces for tests, written through schema_db in a small language:
//
//     TraceBuilder trace;
//     const auto cache = trace.stack({"load cache.cc:88", "main main.cc:10"});
//     trace.grow(0x10000).alloc(0x1010, 64, cache).fault(0x1010).free(0x1010).write(path);
//
// Time begins at 0 and goes on by a microsecond with every step; at() sets it. The heap begins at
// kHeap. Ids are given here: free() and realloc() name blocks by address.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "analyzer/replay/memory_map.h"
#include "schema/event_batch.h"
#include "schema/fault_batch.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

inline constexpr uint64_t kHeap = 0x100000;

class TraceBuilder {
 public:
  TraceBuilder();

  // "function file.cc:12", innermost first. The same names are the same stack.
  uint32_t stack(std::initializer_list<const char*> frames);

  TraceBuilder& at(int64_t time_ns);
  TraceBuilder& process(int64_t pid);  // A new image; it becomes the current process.
  TraceBuilder& fork(int64_t pid);     // A child of the current process, and the current one now.
  TraceBuilder& not_recorded(int64_t pid, const std::string& reason);
  TraceBuilder& thread(int number);  // Of the current process.
  TraceBuilder& set(const std::string& process_column, int64_t value);
  TraceBuilder& meta(const std::string& key, const std::string& value);

  // `usable` 0: by the rule.
  TraceBuilder& alloc(uint64_t address, uint64_t size, uint32_t stack,
                      schema::EventKind kind = schema::EventKind::kMalloc, uint64_t usable = 0);
  TraceBuilder& failed_alloc(uint64_t size, uint32_t stack);
  TraceBuilder& free(uint64_t address);
  TraceBuilder& realloc(uint64_t old_address, uint64_t address, uint64_t size, uint32_t stack);

  // System calls of the allocator; each lasts 500 ns.
  TraceBuilder& grow(uint64_t bytes, uint32_t stack = 0);
  TraceBuilder& trim(uint64_t bytes, uint32_t stack = 0);
  TraceBuilder& map(uint64_t address, uint64_t bytes, uint32_t stack = 0);
  TraceBuilder& unmap(uint64_t address, uint64_t bytes, uint32_t stack = 0);
  TraceBuilder& remap(uint64_t old_address, uint64_t old_bytes, uint64_t address, uint64_t bytes);
  TraceBuilder& drop_pages(uint64_t address, uint64_t bytes);
  // The program's own.
  TraceBuilder& program_map(uint64_t address, uint64_t bytes, uint32_t stack = 0);
  TraceBuilder& program_grow(int64_t bytes);  // sbrk

  TraceBuilder& fault(uint64_t address, uint64_t ip = 0);
  // Pages from `address` on, one fault each.
  TraceBuilder& touch(uint64_t address, uint64_t bytes);
  // The heap's first pages are resident.
  TraceBuilder& snapshot(const std::string& reason, uint64_t start, uint64_t resident_pages);
  // Those pages of the brk heap are that were touched since they were got.
  TraceBuilder& snapshot(const std::string& reason);
  // These and those touched of an arena's heap at each of these addresses, 4 MiB long.
  TraceBuilder& snapshot(const std::string& reason, const std::vector<uint64_t>& heaps);
  TraceBuilder& policy(const std::string& kind, int64_t old_value, int64_t new_value);

  int64_t now() const { return now_; }
  uint64_t break_end() const { return processes_.back().break_end; }
  // Writes the trace; `events_per_batch` small makes many batches.
  void write(const std::string& path, size_t events_per_batch = schema::kBatchEvents) const;

  // Any call, of whomever.
  TraceBuilder& syscall(schema::SyscallName name, const std::string& cause, int64_t result,
                        std::initializer_list<uint64_t> args, uint32_t stack,
                        schema::Origin origin = schema::Origin::kAllocator);

 private:
  struct Process {
    int64_t pid = 0;
    int64_t parent = 0;
    bool forked = false, recorded = true;
    int64_t image = 0;
    std::string reason;
    int64_t start_ns = 0, end_ns = 0;
    uint64_t break_end = kHeap;
    std::set<uint64_t> touched;        // Pages.
    std::map<uint64_t, uint64_t> ids;  // Live blocks by address.
    std::map<std::string, int64_t> columns;
    std::vector<schema::CallRow> calls;
    std::vector<schema::FaultRow> faults;
  };
  struct Snapshot {
    int64_t process, time_ns;
    std::string reason;
    uint64_t start, end;
    std::set<uint64_t> pages;     // Resident.
    std::vector<uint64_t> heaps;  // Of arenas.
  };
  struct Policy {
    int64_t process, time_ns;
    std::string kind;
    int64_t old_value, new_value;
  };
  struct Call {
    int64_t process;
    SyscallRow row;
  };

  Process& current() { return processes_.back(); }
  int64_t tick();
  uint32_t thread_id() const;
  void write_process(schema::Database& db, const Process& process, int64_t id,
                     size_t events_per_batch) const;
  void write_stacks(schema::Database& db) const;
  void write_rare(schema::Database& db) const;

  int64_t now_ = 0;
  int thread_ = 1;
  uint64_t next_id_ = 1;
  std::vector<Process> processes_;
  std::vector<Call> syscalls_;
  std::vector<Snapshot> snapshots_;
  std::vector<Policy> policies_;
  std::map<std::string, std::string> meta_;
  std::map<std::string, uint32_t> frames_;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> stacks_;  // (parent, frame) -> id.
};

}  // namespace heapledger::analyzer
