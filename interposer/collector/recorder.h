// SPDX-License-Identifier: Apache-2.0
// The writer thread: takes messages, decodes windows into rows, and writes the trace.
//
// Per window: module events of all rings first, if there are several (a thread may call into a
// library that another has just loaded), then each ring's events in its own order, then the
// kernel's records up to the time the window began. Calls and faults wait in their process until a
// batch is full.
//
// When SQLite fails (a full disk), recording ends cleanly: `on_failure` is called once, later
// messages are dropped, what was committed stays readable, and where there is room for it meta and
// the process rows say that it stopped and what is missing.
//
// Recording also ends, in the same way for the program, where the trace comes near the size it may
// have; and the user may want to wait no longer (interrupt()). Then what was packed is closed as a
// whole trace: messages go on, for how and when processes end, but windows are left out, and what
// their rings hold is counted as lost.
//
// Thread safety: handle() by one thread; the counters, interrupt() and is_over() by any.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "interposer/collector/call_run.h"
#include "interposer/collector/call_tree.h"
#include "interposer/collector/clock_map.h"
#include "interposer/collector/kernel_syscalls.h"
#include "interposer/collector/message.h"
#include "interposer/collector/process_table.h"
#include "interposer/collector/return_sites.h"
#include "interposer/collector/slot_pids.h"
#include "interposer/collector/syscall_join.h"
#include "interposer/collector/trace_writer.h"
#include "interposer/collector/wire_reader.h"
#include "schema/error.h"

namespace heapledger::collector {

// For the line of progress and the result.
struct Counters {
  std::atomic<uint64_t> events{0};
  std::atomic<uint64_t> lost{0};
  std::atomic<uint64_t> faults{0};
  std::atomic<uint64_t> processes{0};
};

class Recorder {
 public:
  struct Hooks {
    std::function<void(pid_t)> watch;  // Tell when this pid has ended.
    std::function<void(uint64_t)> on_barrier;
    std::function<void(const std::string&)> on_failure;
  };

  Recorder(TraceWriter& writer, const PerfFaults& perf, ClockMap clock, int64_t origin_raw_ns,
           Hooks hooks);

  // False: forked and executed children are not recorded; their rows say so.
  void set_follow(bool follow) { processes_.set_follow(follow); }

  // Where the kernel's own view of system calls comes from, if it is attached to anything.
  void set_kernel_syscalls(const KernelSyscalls& kernel) { kernel_ = &kernel; }

  void handle(Message&& message);
  // Called when there was no message for a while.
  void idle();
  // The messages cannot be had any more: as if the disk were full.
  void stop(const schema::Error& error) {
    if (!failed_) fail(error);
  }

  // Recording ends a little before the trace takes so many bytes. 0: it may take any number. Throws
  // schema::Error where an empty trace takes more.
  void limit_trace_bytes(uint64_t bytes);
  // Nothing more is packed: the next messages lead to the end. Any thread.
  void interrupt() { interrupted_ = true; }

  const Counters& counters() const { return counters_; }
  bool failed() const { return failed_; }
  // Why recording ended before its time, other than by failure; empty: it did not. Once the thread
  // of handle() has ended.
  const std::string& ended_why() const { return ended_why_; }
  // Nobody new is recorded. Any thread.
  bool is_over() const { return failed_ || over_; }

 private:
  struct Ring {
    Process* owner = nullptr;
    Thread* thread = nullptr;
    StackCursor stack;
    uint64_t position = 0;     // Bytes decoded.
    uint64_t events = 0;       // Read so far, of all owners; to compare with the slot's own count.
    uint64_t stall_ticks = 0;  // Already charged to owners.
    uint64_t stalls = 0;       // Likewise.
    bool ended = false;        // kThreadEnd was read.
    bool broken = false;
  };
  struct Image {
    explicit Image(const ImageJoined& news);

    RegionPtr region;
    SlotPids pids;
    std::vector<std::unique_ptr<Ring>> rings;
    std::vector<Process*> processes;               // By slot.
    std::unordered_map<uint64_t, Process*> begun;  // All that ever held a slot, by start_tick.
    std::vector<Process*> refused;                 // As in its control page.
    int64_t empty_since_ns = 0;                    // 0: it has live processes.
  };
  struct Closing {
    Process* process;
    int64_t seen_raw_ns;  // Everything it wrote lies in rounds begun before this.
  };
  struct EndedRing {
    const Region* region;
    uint32_t slot;
  };

  void fail(const schema::Error& error);
  void end_at_limit();
  void end_early(std::string why);
  void skip(const Window& window);
  void on(Window& window);
  void on(Launched& news);
  void on(ImageJoined& news);
  void on(Unrecorded& news);
  void on(Waited& news);
  void on(ProcessGone& news);
  void on(SnapshotTaken& news);
  void on(Marked& news);
  void on(MetaNote& note);
  void on(Barrier& barrier);
  void on(Finish& finish);

  // recorder_rings.cc
  bool scan_modules(const RingPiece& piece, std::span<const std::byte> bytes);
  void decode_piece(const RingPiece& piece, std::span<const std::byte> bytes);
  bool decode_calls(Ring& ring, WireReader& reader, CallRun::Times& times);
  // A schema::CallRow, or CallChunk of `count`.
  template <typename Calls>
  void add_calls(Ring& ring, const Calls& calls, size_t count);
  void decode_event(Image& image, Ring& ring, uint32_t slot, const WireEvent& event);
  void decode_call(Ring& ring, const WireEvent& event, int64_t time_ns);
  void decode_syscall(Ring& ring, const WireEvent& event, int64_t time_ns);
  void start_thread(Image& image, Ring& ring, const WireEvent& event, int64_t time_ns);
  void on_module(Process& process, const WireEvent& event);
  void on_exec(Image& image, Ring& ring, const WireEvent& event, int64_t time_ns);
  uint32_t stack_of(Ring& ring, const WireEvent& event, int64_t time_ns);
  bool adopt(Image& image, Ring& ring, uint32_t slot);
  // recorder_slots.cc
  Image* image_of(const Region* region);
  Ring& ring_of(Image& image, uint32_t slot);
  Process* process_of_slot(Image& image, uint32_t slot);
  Process* parent_of(Image& image, const schema::ProcessSlot& fields);
  void forget_late(Process& process);
  void look_for_forks();
  void look_for_refused(Image& image);
  void close_refused(Image& image);
  void charge_ring(Image& image, uint32_t slot);
  void adopt_unread_rings();
  bool release_ring(Image& image, uint32_t slot);
  void free_ring(Image& image, uint32_t slot);
  void release_ended_rings();
  void release_dead_rings();
  void end_unwatched();
  void close_processes(int64_t drained_until_raw_ns);
  void close_stack_check(Process& process, const schema::ProcessSlot& fields);
  void close_process(Process& process);
  void retire_images(int64_t now_raw_ns);
  // recorder_syscalls.cc
  bool sees_kernel_calls() const { return kernel_ != nullptr && kernel_->active(); }
  void decode_kernel(const std::byte* data, size_t bytes);
  void apply_kernel(int64_t until_raw_ns);
  SyscallJoin::Sink join_sink();
  struct Caller;
  Caller caller_of(const Process& process, const KernelCall& call);
  bool write_kernel_call(Process& process, const Thread& thread, const KernelCall& call);
  void write_syscall_totals(uint64_t kernel_lost);
  // recorder.cc
  void apply_perf(int64_t until_raw_ns);
  void add_fault(const PerfRecord& record, int64_t time_ns);
  void commit_when_due();
  void write_tree();
  void write_rows();
  void write_row(Process& process);
  void write_last_meta(const Finish& finish);
  void flush_full();
  void flush_when_due();
  void flush(Process& process);
  void notice_processes();
  int64_t trace_ns(int64_t raw_ns) const { return raw_ns - origin_raw_ns_; }
  // Of an event that is no call; never before the trace's begin unless it is damaged.
  int64_t event_ns(uint64_t tick) const;

  TraceWriter& writer_;
  const PerfFaults& perf_;
  ClockMap clock_;
  const int64_t origin_raw_ns_;
  Hooks hooks_;
  FrameTable frames_;
  CallTree tree_;
  CallRun run_;
  CallEncoders encoders_;
  ProcessTable processes_;
  std::unordered_map<const Region*, std::unique_ptr<Image>> images_;
  std::vector<PerfRecord> perf_records_;  // Decoded, not yet applied; sorted.
  std::vector<Process*> open_;            // Not closed.
  std::vector<Closing> closing_;          // Over; their last bytes are perhaps not decoded yet.
  std::vector<EndedRing> ended_rings_;    // Their thread has said that it ended.
  std::deque<Process*> closed_;           // Lately: a child of theirs may still appear.
  std::vector<Process*> changing_;        // A module was unloaded in this window.
  bool modules_in_order_ = false;         // The window has one ring's events.
  size_t processes_seen_ = 0;             // How many of processes_.all() have been put into open_.
  int64_t now_ns_ = 0;                    // No event of the window can be later.
  int64_t housekept_ns_ = 0;
  int64_t flushed_raw_ns_ = 0;   // All that was there at that time is in batches.
  uint64_t perf_lost_told_ = 0;  // By records.
  uint64_t stalls_ = 0;          // How often a thread waited for room.
  const KernelSyscalls* kernel_ = nullptr;
  std::vector<KernelRecord> kernel_records_;               // Decoded, not yet applied.
  std::unordered_map<uint32_t, KernelRecord> open_calls_;  // By tid: entered, not left.
  SyscallJoin join_;
  ReturnSites return_sites_;
  Counters counters_;
  std::atomic<bool> failed_{false};
  uint64_t trace_bytes_max_ = 0;
  std::string ended_why_;  // Recording ended before its time; empty: it has not.
  int64_t ended_ns_ = 0;
  std::atomic<bool> over_{false};  // Likewise.
  std::atomic<bool> interrupted_{false};
};

}  // namespace heapledger::collector
