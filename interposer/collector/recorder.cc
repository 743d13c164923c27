// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/recorder.h"

#include <algorithm>

#include "schema/error.h"
#include "schema/stack_batch.h"

namespace heapledger::collector {
namespace {

constexpr int64_t kHousekeepingNs = 1'000'000'000;
constexpr int64_t kFlushEveryNs = 1'000'000'000;
// Rows of other rings may still come between those of the last moments.
constexpr int64_t kLastMomentsNs = 100'000'000;
// What a call that waits for its batch will take at most, about.
constexpr uint64_t kPendingBytes = 16;
// For what is still to be written when recording ends: a window, rows, the rest of the batches.
constexpr uint64_t kReserveMin = uint64_t{512} << 10;
constexpr uint64_t kReserveMax = uint64_t{4} << 20;

}  // namespace

Recorder::Recorder(TraceWriter& writer, const PerfFaults& perf, ClockMap clock,
                   int64_t origin_raw_ns, Hooks hooks)
    : writer_(writer),
      perf_(perf),
      clock_(std::move(clock)),
      origin_raw_ns_(origin_raw_ns),
      hooks_(std::move(hooks)),
      processes_(frames_, [this](pid_t pid) { hooks_.watch(pid); }),
      join_(join_sink()) {}

Recorder::Image::Image(const ImageJoined& news)
    : region(news.region),
      pids(*news.region, news.pid, news.own_pid),
      processes(news.region->layout().process_slots) {}

void Recorder::handle(Message&& message) {
  try {
    // A barrier is answered whatever has happened: someone waits for it.
    if (interrupted_ && !over_ && !failed_) end_early("interrupted before all was packed (Ctrl-C)");
    const auto* window = std::get_if<Window>(&message);
    if (window != nullptr && over_ && !failed_) {
      skip(*window);
    } else if (!failed_ || std::holds_alternative<Barrier>(message)) {
      std::visit([this](auto& news) { on(news); }, message);
    }
    if (failed_) return;
    commit_when_due();
    if (window != nullptr) end_at_limit();
  } catch (const schema::Error& error) {
    fail(error);
  }
}

void Recorder::idle() {
  if (failed_) return;
  try {
    commit_when_due();
  } catch (const schema::Error& error) {
    fail(error);
  }
}

// What a killed collector takes with it is what it has not committed.
void Recorder::flush_when_due() {
  const int64_t now = raw_now_ns();
  if (now - flushed_raw_ns_ < kFlushEveryNs) return;
  flushed_raw_ns_ = now;
  const int64_t until_ns = trace_ns(now) - kLastMomentsNs;
  const auto emit_old = [&](Process& process) {
    if (process.id == 0) return;
    process.calls.close_before(until_ns, encoders_,
                               [&](const auto& batch) { writer_.calls(process.id, batch); });
    process.faults.close_before(until_ns, [&](auto rows) { writer_.faults(process.id, rows); });
  };
  for (Process* process : open_) emit_old(*process);
  for (const Closing& closing : closing_) emit_old(*closing.process);
}

void Recorder::commit_when_due() {
  if (!failed_) flush_when_due();
  if (failed_ || !writer_.is_commit_due()) return;
  write_tree();
  writer_.commit();
}

// Nothing more can be written, except, with the room that the transaction gives back, what the file
// holds and what it lacks.
void Recorder::fail(const schema::Error& error) {
  failed_ = true;
  hooks_.on_failure(error.what());
  try {
    writer_.roll_back();
    for (Process& process : processes_.all()) {
      process.changed = true;
      for (auto& [tid, thread] : process.threads) thread->changed = true;
      write_row(process);
    }
    const uint64_t kept = writer_.count_what_was_kept();
    counters_.lost += counters_.events - std::min(kept, counters_.events.load());
    counters_.events = kept;
    writer_.meta("state", "stopped");
    writer_.meta("stopped_why", error.what());
    writer_.meta("end_ns", trace_ns(raw_now_ns()));
    writer_.close();
  } catch (const schema::Error&) {
    // The file stays as the last commit left it.
  }
}

void Recorder::limit_trace_bytes(uint64_t bytes) {
  trace_bytes_max_ = bytes;
  if (bytes == 0) return;
  const uint64_t needed = writer_.file_bytes() + kReserveMin;
  if (bytes < needed) {
    throw schema::Error("--max-size " + std::to_string(bytes),
                        "an empty trace takes " + std::to_string(needed) + " bytes");
  }
  writer_.limit_file_bytes(bytes);
}

void Recorder::end_at_limit() {
  if (trace_bytes_max_ == 0 || over_) return;
  uint64_t pending = tree_.fresh_count();
  for (const Process* process : open_) pending += process->calls.size() + process->faults.size();
  for (const Closing& closing : closing_) {
    pending += closing.process->calls.size() + closing.process->faults.size();
  }
  const uint64_t reserve = std::clamp(trace_bytes_max_ / 8, kReserveMin, kReserveMax);
  if (writer_.file_bytes() + pending * kPendingBytes + reserve < trace_bytes_max_) return;
  end_early("the trace has reached --max-size " + std::to_string(trace_bytes_max_));
  hooks_.on_failure(ended_why_);
}

void Recorder::end_early(std::string why) {
  ended_why_ = std::move(why);
  ended_ns_ = now_ns_;
  over_ = true;
}

void Recorder::skip(const Window& window) {
  look_for_forks();
  notice_processes();
  adopt_unread_rings();  // Before their process is closed.
  if (window.whole) close_processes(window.began_raw_ns);
}

void Recorder::on(Window& window) {
  if (window.pair) clock_.add(*window.pair);
  const auto bytes_of = [&](const auto& piece) {
    return std::span<const std::byte>(window.raw.data() + piece.offset, piece.bytes);
  };
  look_for_forks();
  changing_.clear();
  // One ring says by itself what is loaded when.
  modules_in_order_ = window.rings.size() == 1;
  if (!modules_in_order_) {
    for (const RingPiece& piece : window.rings) scan_modules(piece, bytes_of(piece));
  }
  for (Process* process : changing_) process->space->set_changing(true);
  for (const RingPiece& piece : window.rings) decode_piece(piece, bytes_of(piece));
  for (Process* process : changing_) process->space->set_changing(false);
  for (const PerfPiece& piece : window.perf) {
    const std::byte* data = window.raw.data() + piece.offset;
    if (piece.syscalls) {
      decode_kernel(data, piece.bytes);
    } else {
      perf_.decode(data, piece.bytes, perf_records_);
    }
  }
  apply_perf(window.began_raw_ns);
  if (sees_kernel_calls()) {
    apply_kernel(window.began_raw_ns);
    join_.settle(trace_ns(window.began_raw_ns), window.whole);
  }
  if (tree_.fresh_count() >= schema::kBatchStacks) write_tree();
  notice_processes();
  flush_full();
  release_ended_rings();
  if (window.whole) close_processes(window.began_raw_ns);
  if (now_ns_ - housekept_ns_ < kHousekeepingNs) return;
  housekept_ns_ = now_ns_;
  release_dead_rings();
  end_unwatched();
  retire_images(window.began_raw_ns);
  write_rows();
}

void Recorder::on(Launched& news) {
  Process& process = processes_.launched(news, trace_ns(news.raw_ns));
  notice_processes();
  write_row(process);
  writer_.commit();  // A trace that is cut at any moment says what was recorded.
}

void Recorder::on(ImageJoined& news) {
  look_for_forks();  // The process may have been a fork that claimed a slot before its exec.
  Process& process = processes_.joined(news, trace_ns(news.raw_ns));
  auto image = std::make_unique<Image>(news);
  image->processes[0] = &process;
  images_[news.region.get()] = std::move(image);
  notice_processes();
  write_row(process);
  if (process.id == 1) writer_.commit();
}

void Recorder::on(Unrecorded& news) {
  look_for_forks();
  Process& process = processes_.unrecorded(news, trace_ns(news.raw_ns));
  notice_processes();
  write_row(process);  // It may be closed already.
}

void Recorder::on(Waited& news) {
  Process* process = processes_.gone(news.pid, {true, news.wait_status}, trace_ns(news.raw_ns));
  if (process == nullptr) return;
  if (process->ended_by == nullptr) {
    // It was seen to end before anyone could say how.
    process->over = false;
    processes_.gone(news.pid, {true, news.wait_status},
                    process->end_ns.value_or(trace_ns(news.raw_ns)));
  }
  // wait4 adds up the process and its children that were waited for, so its counts are the
  // process's own only where it had none.
  const auto& all = processes_.all();
  const bool had_children = std::any_of(all.begin(), all.end(), [&](const Process& other) {
    return other.parent == process && other.pid != process->pid;
  });
  if (!had_children) {
    process->rusage_minor = news.minor;
    process->rusage_major = news.major;
    process->rss_peak_bytes = std::max(process->rss_peak_bytes.value_or(0), news.max_rss_bytes);
  }
  process->changed = true;
  notice_processes();
}

void Recorder::on(ProcessGone& news) {
  look_for_forks();  // It may have lived since the last window.
  processes_.gone(news.pid, news.exit, trace_ns(news.raw_ns));
  notice_processes();
}

void Recorder::on(SnapshotTaken& news) {
  if (over_) return;
  look_for_forks();
  const int64_t time_ns = trace_ns(news.snapshot.raw_ns);
  Process& process = processes_.at(news.pid, time_ns);
  if (process.id == 0) return;
  writer_.snapshot(process.id, news.snapshot, origin_raw_ns_, process.allocator_ranges);
  process.rss_peak_bytes =
      std::max(process.rss_peak_bytes.value_or(0), news.snapshot.rss_peak_bytes);
  process.changed = true;
  for (const ThreadSeen& seen : news.snapshot.threads) {
    Thread& thread = thread_of(process, seen.tid, time_ns, processes_.next_thread_id());
    thread.name = seen.name;
    thread.minor_faults = seen.minor_faults;
    thread.major_faults = seen.major_faults;
    thread.changed = true;
  }
}

void Recorder::on(Marked& news) {
  if (over_) return;
  look_for_forks();
  const int64_t time_ns = trace_ns(news.raw_ns);
  const Process& process = processes_.at(news.pid, time_ns);
  if (process.id != 0) writer_.mark(time_ns, process.id, 0, "mark", news.text, 0);
}

void Recorder::on(MetaNote& note) { writer_.meta(note.key, note.text); }

void Recorder::on(Barrier& barrier) { hooks_.on_barrier(barrier.number); }

void Recorder::on(Finish& finish) {
  now_ns_ = trace_ns(raw_now_ns());
  apply_perf(INT64_MAX);
  apply_kernel(INT64_MAX);
  look_for_forks();
  if (over_) adopt_unread_rings();
  end_unwatched();
  processes_.settle_all();
  notice_processes();
  write_tree();
  for (Process& process : processes_.all()) {
    if (process.region != nullptr) close_process(process);
  }
  for (auto& [region, image] : images_) close_refused(*image);
  join_.finish();
  write_tree();
  // What the kernel dropped after its last record said so is known by its counters alone.
  if (finish.perf_lost > perf_lost_told_ && !processes_.all().empty()) {
    Process& first = processes_.all().front();
    first.perf_lost += finish.perf_lost - perf_lost_told_;
    counters_.lost += finish.perf_lost - perf_lost_told_;
    first.changed = true;
  }
  for (Process& process : processes_.all()) {
    flush(process);
    write_row(process);
  }
  write_syscall_totals(finish.syscalls_lost);
  write_last_meta(finish);
  writer_.close();
}

void Recorder::write_last_meta(const Finish& finish) {
  const auto number = [this](std::string_view key, uint64_t value) {
    writer_.meta(key, static_cast<int64_t>(value));
  };
  int64_t stall_ns = 0;
  for (const Process& process : processes_.all()) stall_ns += process.stall_ns;
  writer_.meta("end_ns", trace_ns(finish.raw_ns));
  number("clock_error_ns", clock_.error_ns());
  number("tick_hz", clock_.tick_hz());
  writer_.meta("stall_ns", stall_ns);
  number("stalls", stalls_);
  number("spool_limit_bytes", finish.spool.limit_bytes);
  number("spool_peak_bytes", finish.spool.peak_bytes);
  number("spool_total_bytes", finish.spool.total_bytes);
  if (!finish.spool.why_full.empty()) writer_.meta("spool_note", finish.spool.why_full);
  writer_.meta("state", over_ ? "stopped" : "complete");
  if (!over_) return;
  writer_.meta("stopped_why", ended_why_);
  writer_.meta("stopped_ns", ended_ns_);
}

void Recorder::apply_perf(int64_t until_raw_ns) {
  if (perf_records_.empty()) return;
  sort_runs(perf_records_,
            [](const PerfRecord& a, const PerfRecord& b) { return a.raw_ns < b.raw_ns; });
  size_t done = 0;
  for (; done < perf_records_.size() && perf_records_[done].raw_ns < until_raw_ns; ++done) {
    const PerfRecord& record = perf_records_[done];
    const int64_t time_ns = trace_ns(record.raw_ns);
    switch (record.kind) {
      case PerfKind::kFault:
        add_fault(record, time_ns);
        break;
      case PerfKind::kFork:
        processes_.kernel_fork(record, time_ns);
        break;
      case PerfKind::kExec:
        processes_.kernel_exec(record, time_ns);
        [[fallthrough]];
      case PerfKind::kName: {
        Process& process = processes_.at(static_cast<pid_t>(record.pid), time_ns);
        Thread& thread = thread_of(process, static_cast<pid_t>(record.tid), time_ns,
                                   processes_.next_thread_id());
        thread.name = record.name;
        thread.changed = true;
        break;
      }
      case PerfKind::kExit:
        processes_.kernel_exit(record, time_ns);
        break;
      case PerfKind::kLost:
        processes_.at(static_cast<pid_t>(record.pid), time_ns).perf_lost += record.lost;
        perf_lost_told_ += record.lost;
        counters_.lost += record.lost;
        break;
    }
  }
  perf_records_.erase(perf_records_.begin(),
                      perf_records_.begin() + static_cast<std::ptrdiff_t>(done));
}

void Recorder::add_fault(const PerfRecord& record, int64_t time_ns) {
  Process& process = processes_.at(static_cast<pid_t>(record.pid), time_ns);
  const Thread& thread =
      thread_of(process, static_cast<pid_t>(record.tid), time_ns, processes_.next_thread_id());
  process.faults.add({time_ns, thread.id, record.address, record.ip, record.major, record.kernel});
  ++(record.major ? process.perf_major : process.perf_minor);
  process.changed = true;
  ++counters_.faults;
}

void Recorder::write_tree() {
  std::vector<schema::StackRow> rows;
  rows.reserve(tree_.fresh_count());
  uint32_t id = tree_.size() - tree_.fresh_count() + 1;
  for (const CallTree::Node& node : tree_.fresh()) {
    rows.push_back({node.parent, frames_.frame(node.key)});
  }
  for (const Frame& frame : frames_.fresh()) writer_.frame(frame);
  frames_.clear_fresh();
  for (std::span<const schema::StackRow> rest(rows); !rest.empty();) {
    const auto batch = rest.first(std::min(schema::kBatchStacks, rest.size()));
    writer_.nodes(id, batch);
    id += static_cast<uint32_t>(batch.size());
    rest = rest.subspan(batch.size());
  }
  tree_.clear_fresh();
}

// Takes new processes under care, and sees which have ended.
void Recorder::notice_processes() {
  auto& all = processes_.all();
  for (; processes_seen_ < all.size(); ++processes_seen_) open_.push_back(&all[processes_seen_]);
  const int64_t now = raw_now_ns();
  std::erase_if(open_, [&](Process* process) {
    if (process->over) closing_.push_back({process, now});
    return process->over;
  });
  counters_.processes = processes_.rows();
}

void Recorder::flush_full() {
  const auto emit_all = [this](Process& process) {
    if (process.id == 0) return;
    process.calls.close_full([&](auto rows) { writer_.calls(process.id, rows); });
    process.faults.close_full([&](auto rows) { writer_.faults(process.id, rows); });
  };
  for (Process* process : open_) emit_all(*process);
  for (const Closing& closing : closing_) emit_all(*closing.process);
}

void Recorder::flush(Process& process) {
  if (process.id == 0) return;
  process.calls.close_all(encoders_, [&](const auto& batch) { writer_.calls(process.id, batch); });
  process.faults.close_all([&](auto rows) { writer_.faults(process.id, rows); });
}

void Recorder::write_rows() {
  for (Process* process : open_) write_row(*process);
}

void Recorder::write_row(Process& process) {
  if (process.id == 0) return;
  if (process.changed) writer_.process(process);
  process.changed = false;
  const auto write_thread = [&](Thread& thread) {
    if (thread.changed) writer_.thread(process.id, thread);
    thread.changed = false;
  };
  for (auto& thread : process.past_threads) write_thread(*thread);
  for (auto& [tid, thread] : process.threads) write_thread(*thread);
}

}  // namespace heapledger::collector
