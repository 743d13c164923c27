// SPDX-License-Identifier: Apache-2.0
// The collector as a whole, and its observer thread: the session socket, the control channel, the
// watched processes, snapshots. The drain thread and the writer thread do the heavy work
// (drain.h, recorder.h): the first at once, the second on processors that the program leaves idle
// (pace.h).
//
// Life: make the socket and the trace file, say "ready", serve until every known process has ended
// and `record` has said that its program has (or, under a bare preload, or when `record` is gone,
// simply until every known process has ended), then write the rest and close the file. SIGTERM ends
// the recording at once, the file complete up to there.
//
// Thread safety: run() in one thread; the callbacks of the other threads only touch what `mutex_`
// guards and an eventfd.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "interposer/collector/control_channel.h"
#include "interposer/collector/drain.h"
#include "interposer/collector/message.h"
#include "interposer/collector/options.h"
#include "interposer/collector/output_claim.h"
#include "interposer/collector/pace.h"
#include "interposer/collector/recorder.h"
#include "interposer/collector/session_socket.h"
#include "interposer/collector/spool.h"
#include "interposer/collector/stream_dump.h"
#include "interposer/collector/watch_list.h"

namespace heapledger::collector {

class Collector {
 public:
  // Makes socket and trace; throws schema::Error.
  Collector(const Options& options, ControlChannel& control);
  ~Collector();

  const std::string& session() const { return socket_.name(); }
  const std::string& output() const { return output_; }

  // Serves until the recording is over and the file is closed.
  void run();

 private:
  struct Joined {
    RegionPtr region;
    SlotPids pids;
  };

  void write_first_meta();
  void watch_events();
  void handle_event(uint64_t what);
  void serve_callers();
  void join(const Caller& caller);
  void set_mark(const Caller& caller);
  void serve_control();
  void on_launch(const nlohmann::json& message);
  void on_exited(const nlohmann::json& message);
  void attach_first(pid_t pid, PerfFaults::When when);
  void attach_syscalls(pid_t pid, PerfWhen when);
  void take_watch_requests();
  void process_ended(pid_t pid);
  void look_at_slots();
  void serve_snapshot(Joined& image, uint32_t slot);
  void snapshot(pid_t pid, SnapshotReason reason, const Region* region);
  void look_at_processes();
  void pack_patiently();
  std::optional<Message> next_message();
  void pack(Message message);
  void pack_the_rest();
  void report_failure();
  void report_progress();
  bool is_over();
  bool reached_barrier();
  void finish();
  int next_timeout_ms() const;

  Options options_;
  ControlChannel& control_;
  UniqueFd epoll_, wake_, signals_;
  SessionSocket socket_;
  std::string output_;
  schema::Clock clock_;
  int64_t origin_raw_ns_;
  PerfFaults perf_;
  KernelSyscalls kernel_;
  FaultMode fault_mode_ = FaultMode::kNone;
  std::string syscall_note_;  // Why the wrappers' calls have to do.
  bool attached_ = false;
  Spool spool_;
  MessageQueue queue_;
  OutputClaim claim_;
  std::unique_ptr<TraceWriter> writer_;
  std::unique_ptr<Recorder> recorder_;
  std::unique_ptr<StreamDump> dump_;  // For developers; mostly null.
  std::unique_ptr<Drain> drain_;
  Patience patience_;
  std::thread writer_thread_;
  WatchList watched_;
  std::vector<pid_t> watch_later_;  // There was no descriptor for them.
  std::vector<Joined> images_;
  uint32_t image_count_ = 0;
  pid_t launched_pid_ = 0;
  uint64_t largest_rss_ = 0;

  std::mutex mutex_;  // Guards the next two.
  std::vector<pid_t> watch_requests_;
  std::string failure_;
  std::atomic<bool> slots_changed_{false};
  std::atomic<uint64_t> barrier_done_{0};
  std::atomic<bool> writer_stops_{false};
  std::atomic<bool> program_is_gone_{false};  // The patient writer thread ends, another goes on.
  uint64_t barrier_asked_ = 0;
  bool waited_ = false;  // `record` has said how its program ended.
  int64_t waited_ns_ = 0;
  bool told_running_ = false;
  bool terminated_ = false;
  bool failure_told_ = false;
  int64_t quiet_since_ns_ = 0;  // No process known since; 0: there are.
  int64_t looked_ns_ = 0;
  int64_t look_cost_ns_ = 0;  // How long the last look took.
  int64_t progress_ns_ = 0;
};

// heapledger.PROGRAM.PID.db, of the process that started the collector.
std::string default_output(pid_t starter);

}  // namespace heapledger::collector
