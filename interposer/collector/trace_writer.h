// SPDX-License-Identifier: Apache-2.0
// The trace file, written: one prepared statement per table, large transactions.
//
// The file opens at any time: a killed collector leaves a journal, which SQLite rolls back to the
// last commit (about a second before). Nothing is synced: the file need not survive the machine.
//
// Every function throws schema::Error when SQLite does; the recording then ends.
// Thread safety: one thread (writer) after the constructor.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "interposer/collector/address_space.h"
#include "interposer/collector/process.h"
#include "interposer/collector/snapshot.h"
#include "interposer/collector/unique_fd.h"
#include "schema/event_batch.h"
#include "schema/stack_batch.h"
#include "schema/trace_db.h"

namespace heapledger::collector {

struct SyscallRow {
  int64_t time_ns;
  int64_t duration_ns;
  uint32_t process;
  uint32_t thread;
  uint32_t stack;
  schema::SyscallEvent call;
};

class TraceWriter {
 public:
  TraceWriter(const std::string& path, bool overwrite);

  void meta(std::string_view key, int64_t value);
  void meta(std::string_view key, std::string_view text);

  void process(const Process& row);  // Inserts, or updates the row that is there.
  void thread(uint32_t process, const Thread& row);
  void module(const Module& row);
  void module_end(const Module& row);
  void frame(const Frame& row);
  // With consecutive ids from `first` on, kBatchStacks at most. Events are of use only with their
  // stacks: all that are known must be written before a commit.
  void nodes(uint32_t first, std::span<const schema::StackRow> rows);
  void syscall(const SyscallRow& row);
  void policy(int64_t time_ns, uint32_t process, uint32_t thread, const schema::PolicyEvent& event,
              uint32_t stack);
  void mark(int64_t time_ns, uint32_t process, uint32_t thread, std::string_view kind,
            std::string_view text, uint32_t stack = 0);
  void calls(uint32_t process, std::span<const schema::CallRow> rows);
  void calls(uint32_t process, const PackedCalls& batch);
  void faults(uint32_t process, std::span<const schema::FaultRow> rows);
  // `origin_ns`: CLOCK_MONOTONIC_RAW at trace time 0. `ranges` tell blocks from other mappings.
  void snapshot(uint32_t process, const Snapshot& snapshot, int64_t origin_ns,
                const MappedRanges& ranges);

  // No more pages than this: what does not fit is an error, as if the disk were full.
  void limit_file_pages(uint64_t pages);
  void limit_file_bytes(uint64_t bytes);
  // With what the open transaction has added.
  uint64_t file_bytes();

  // The last commit is a second ago, or so many bytes that a full disk, which takes back what was
  // not committed, should not take them.
  bool is_commit_due() const;
  void commit();
  // The open transaction, if there is one. Also frees the room that was kept on the disk, so that
  // something can be written after all: why the recording ended.
  void roll_back();
  // After a roll-back: counts in the process rows as lost what is not in the file. Returns the
  // calls that are.
  uint64_t count_what_was_kept();
  void close();

 private:
  void begin();

  schema::Database db_;
  schema::CallEncoder encoder_;
  schema::Statement process_, thread_, module_, module_end_, frame_, nodes_, syscall_, policy_,
      mark_, calls_, faults_, snapshot_, region_, residency_;
  UniqueFd ballast_;           // A file without a name that holds room on the disk.
  bool open_ = false;          // A transaction.
  uint64_t packed_bytes_ = 0;  // Batches in it.
  std::chrono::steady_clock::time_point begun_;
};

}  // namespace heapledger::collector
