// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/collector.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "interposer/collector/proc_files.h"
#include "schema/error.h"

namespace heapledger::collector {
namespace {

using nlohmann::json;

// A program of more processes or threads than this soon needs the places of those that ended.
constexpr uint32_t kFewSlots = 64;
constexpr int64_t kLookEveryNs = 20'000'000;
constexpr int64_t kLookShare = 10;  // Looking takes one part in so many of the time.
constexpr int64_t kProgressEveryNs = 1'000'000'000;
// With the kernel's fork records every process is known the moment it exists; without them one may
// still be on its way to its Hello.
constexpr int64_t kGraceNs = 20'000'000;
// A pipeline's last processes end a moment after the first.
constexpr int64_t kAfterglowNs = 100'000'000;
// Nobody launches anything or says Hello: whoever started us has changed its mind.
constexpr int64_t kFirstCallNs = 30'000'000'000;
constexpr std::chrono::milliseconds kHelloPatience{200};

// What epoll events say: a pid, or one of these.
constexpr uint64_t kSocketEvent = uint64_t{1} << 40;
constexpr uint64_t kControlEvent = kSocketEvent + 1;
constexpr uint64_t kWakeEvent = kSocketEvent + 2;
constexpr uint64_t kSignalEvent = kSocketEvent + 3;

std::unique_ptr<TraceWriter> open_writer(const std::string& path, OutputClaim& claim) {
  try {
    return std::make_unique<TraceWriter>(path, true);
  } catch (const schema::Error&) {
    claim.give_back();
    throw;
  }
}

bool maps(const Snapshot& snapshot, const Region& region) {
  return std::any_of(snapshot.regions.begin(), snapshot.regions.end(), [&](const auto& mapping) {
    return mapping.kind == RegionKind::kRecorder && mapping.inode == region.inode();
  });
}

std::string absolute(const std::string& path) {
  std::error_code ignored;
  const auto full = std::filesystem::absolute(path, ignored);
  return full.empty() ? path : full.string();
}

std::string folder_of(const std::string& path) {
  return std::filesystem::path(path).parent_path().string();
}

template <typename T>
T value_of(const json& message, const char* key, T fallback) {
  const auto found = message.find(key);
  if (found == message.end()) return fallback;
  if constexpr (std::is_same_v<T, std::string>) {
    return found->is_string() ? found->get<std::string>() : fallback;
  } else {
    return found->is_number() ? found->get<T>() : fallback;
  }
}

std::string command_of(const json& message) {
  std::string arguments;
  const auto command = message.find("command");
  if (command == message.end() || !command->is_array()) return arguments;
  for (const json& argument : *command) {
    if (!argument.is_string()) continue;
    arguments += argument.get<std::string>();
    arguments += '\0';
  }
  return quote_arguments(arguments);
}

// The process that held the slot is gone, or has run another program: the slot will be free when
// the writer is through with it.
void mark_ended(const Region& region, uint32_t slot) {
  schema::ProcessState live = schema::ProcessState::kLive;
  region.process_slot(slot).state.compare_exchange_strong(live, schema::ProcessState::kEnded,
                                                          std::memory_order_relaxed);
}

}  // namespace

std::string default_output(pid_t starter) {
  const std::string exe = proc_exe(starter);
  const std::string program = exe.substr(exe.rfind('/') + 1);
  return fmt::format("heapledger.{}.{}.db", program.empty() ? "program" : program, starter);
}

Collector::Collector(const Options& options, ControlChannel& control)
    : options_(options),
      control_(control),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      output_(
          absolute(options.output.empty() ? default_output(control.starter()) : options.output)),
      clock_(best_clock()),
      origin_raw_ns_(raw_now_ns()),
      spool_(folder_of(output_),
             options.spool_limit.value_or(default_spool_limit(folder_of(output_)))),
      queue_(options.backlog_bytes, spool_),
      claim_(output_, options.overwrite),
      writer_(open_writer(output_, claim_)),
      watched_(epoll_.get()) {
  const ClockPair first = read_clock_pair(clock_);
  // Two milliseconds apart the slope is good to some ten ppm; later pairs correct it at once.
  const timespec pause{0, 2'000'000};
  nanosleep(&pause, nullptr);
  const ClockPair second = read_clock_pair(clock_);
  if (!options.dump.empty()) {
    dump_ = std::make_unique<StreamDump>(options.dump,
                                         DumpBegin{0, clock_, origin_raw_ns_, first, second});
  }
  recorder_ =
      std::make_unique<Recorder>(*writer_, perf_, ClockMap(clock_, first, second), origin_raw_ns_,
                                 Recorder::Hooks{[this](pid_t pid) {
                                                   const std::lock_guard lock(mutex_);
                                                   watch_requests_.push_back(pid);
                                                   eventfd_write(wake_.get(), 1);
                                                 },
                                                 [this](uint64_t number) {
                                                   barrier_done_.store(number);
                                                   eventfd_write(wake_.get(), 1);
                                                 },
                                                 [this](const std::string& why) {
                                                   const std::lock_guard lock(mutex_);
                                                   failure_ = why;
                                                   drain_->give_up();
                                                   eventfd_write(wake_.get(), 1);
                                                 }});
  recorder_->set_follow(options.follow);
  recorder_->set_kernel_syscalls(kernel_);
  try {
    recorder_->limit_trace_bytes(options.trace_bytes_max);
  } catch (const schema::Error&) {
    claim_.give_back();
    throw;
  }
  perf_.set_follow(options.follow);
  kernel_.set_follow(options.follow);
  write_first_meta();
}

Collector::~Collector() = default;

void Collector::write_first_meta() {
  utsname system{};
  uname(&system);
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  const int64_t since_origin = raw_now_ns() - origin_raw_ns_;
  writer_->meta("heapledger_version", HEAPLEDGER_VERSION);
  writer_->meta("state", "recording");
  writer_->meta("start_unix_ns", int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec - since_origin);
  writer_->meta("host", system.nodename);
  writer_->meta("kernel", fmt::format("{} {}", system.sysname, system.release));
  writer_->meta("cpus", int64_t{sysconf(_SC_NPROCESSORS_ONLN)});
  writer_->meta("page_bytes", int64_t{sysconf(_SC_PAGESIZE)});
  writer_->meta("clock", clock_ == schema::Clock::kTsc ? "tsc" : "monotonic_raw");
  writer_->meta("fault_source", "none");
  writer_->meta("syscall_source", "wrappers");
  writer_->meta("options", options_.json);
  // What the shim's recorder asks of the kernel inside the program, besides the allocator's calls.
  writer_->meta("recorder_calls", R"(["mmap","munmap","madvise","mprotect"])");
  writer_->commit();
}

void Collector::watch_events() {
  const auto add = [this](int fd, uint64_t what) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = what;
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  };
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);  // Before the threads start: they inherit it.
  signals_ = UniqueFd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  add(socket_.fd(), kSocketEvent);
  if (socket_.path_fd() >= 0) add(socket_.path_fd(), kSocketEvent);
  add(wake_.get(), kWakeEvent);
  add(signals_.get(), kSignalEvent);
  if (control_.is_open()) add(control_.fd(), kControlEvent);
}

void Collector::run() {
  watch_events();
  drain_ = std::make_unique<Drain>(queue_, perf_, kernel_, clock_, [this] {
    slots_changed_.store(true);
    eventfd_write(wake_.get(), 1);
  });
  writer_thread_ = std::thread([this] { pack_patiently(); });
  control_.ready(socket_.name(), output_);
  std::array<epoll_event, 64> events{};
  while (!terminated_ && !is_over()) {
    const int count =
        epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), next_timeout_ms());
    for (int i = 0; i < count; ++i) handle_event(events[static_cast<size_t>(i)].data.u64);
    take_watch_requests();
    if (slots_changed_.exchange(false)) look_at_slots();
    look_at_processes();
    report_progress();
  }
  finish();
}

// The writer thread.
void Collector::pack_patiently() {
  patience_.begin();
  int64_t packed_until_ns = 0;  // Of the last window.
  while (!writer_stops_ && !program_is_gone_) {
    std::optional<Message> message = next_message();
    if (!message) continue;
    if (const auto* window = std::get_if<Window>(&*message)) packed_until_ns = window->began_raw_ns;
    pack(std::move(*message));
    const uint64_t bytes = queue_.backlog_bytes();
    const int64_t age_ns = bytes == 0 ? 0 : raw_now_ns() - packed_until_ns;
    patience_.rest({bytes, options_.backlog_bytes + spool_.use().limit_bytes, age_ns});
  }
}

// Nothing: there was none for a while.
std::optional<Message> Collector::next_message() {
  try {
    std::optional<Message> message = queue_.pop(std::chrono::milliseconds(500));
    if (!message) recorder_->idle();
    return message;
  } catch (const schema::Error& error) {
    recorder_->stop(error);
    return std::nullopt;
  }
}

void Collector::pack(Message message) {
  if (dump_) dump_->add(message);
  recorder_->handle(std::move(message));
}

// There is nobody to give way to any more, and somebody waits for the trace. A thread cannot raise
// its priority again, so another one takes over.
void Collector::pack_the_rest() {
  if (program_is_gone_.exchange(true)) return;
  patience_.hurry();
  writer_thread_ = std::thread([this, patient = std::move(writer_thread_)]() mutable {
    patient.join();
    while (!writer_stops_) {
      if (std::optional<Message> message = next_message()) pack(std::move(*message));
    }
  });
}

void Collector::handle_event(uint64_t what) {
  switch (what) {
    case kSocketEvent:
      serve_callers();
      break;
    case kControlEvent:
      serve_control();
      break;
    case kSignalEvent:
      terminated_ = true;
      break;
    case kWakeEvent: {
      eventfd_t ignored = 0;
      eventfd_read(wake_.get(), &ignored);
      break;
    }
    default:
      process_ended(static_cast<pid_t>(what));
      break;
  }
}

int Collector::next_timeout_ms() const {
  if (!images_.empty()) return kLookEveryNs / 1'000'000;
  return 100;
}

void Collector::serve_callers() {
  while (const auto caller = socket_.next_caller(kHelloPatience)) {
    if (caller->mark) {
      set_mark(*caller);
      continue;
    }
    if (caller->version_fits && !recorder_->is_over() && !caller->hung_up) {
      join(*caller);
      continue;
    }
    reply_refused(*caller);
    if (recorder_->is_over()) continue;
    // Behind the kernel's own account of that process.
    drain_->push_after_round(
        Unrecorded{caller->pid,
                   caller->version_fits
                       ? "it did not wait for the collector's answer"
                       : "its libheapledger.so is of another version than heapledger-collector",
                   raw_now_ns()});
  }
}

// The mark is stamped before its snapshot, as the program's own are.
void Collector::set_mark(const Caller& caller) {
  const MarkWish& wish = *caller.mark;
  const int64_t now = raw_now_ns();
  look_at_slots();  // It may have been forked just now.
  struct stat file {};
  const bool is_ours =
      stat(output_.c_str(), &file) == 0 && file.st_dev == wish.device && file.st_ino == wish.inode;
  std::vector<std::pair<pid_t, RegionPtr>> meant;
  for (const auto& [pid, watched] : watched_.all()) {
    const bool is_meant = wish.pid == 0 ? is_ours : static_cast<uint32_t>(pid) == wish.pid;
    if (is_meant && watched.region != nullptr) meant.emplace_back(pid, watched.region);
  }
  if (!caller.version_fits || recorder_->is_over()) meant.clear();
  for (const auto& [pid, region] : meant) {
    queue_.push(Marked{pid, wish.text, now});
    snapshot(pid, SnapshotReason::kMark, region.get());
  }
  reply_marked(caller, static_cast<uint32_t>(meant.size()));
}

void Collector::join(const Caller& caller) {
  RegionPtr region;
  try {
    region = std::make_shared<Region>(
        image_count_ + 1, layout_within(address_space_limit(caller.pid)),
        RegionSettings{clock_, options_.stack_depth, options_.free_stacks, options_.verify_stacks});
  } catch (const schema::Error&) {
    reply_refused(caller);
    return;
  }
  if (++image_count_ > kFewSlots) patience_.hurry();
  quiet_since_ns_ = 0;
  ImageJoined news{region,
                   caller.pid,
                   caller.own_pid,
                   proc_parent(caller.pid),
                   proc_exe(caller.pid),
                   proc_command(caller.pid),
                   raw_now_ns()};
  if (image_count_ == 1 && launched_pid_ == 0) {
    queue_.push(MetaNote{"command", news.command});
  }
  queue_.push(news);
  drain_->add_region(region);
  std::erase_if(images_, [](const Joined& image) { return image.region->retired.load(); });
  images_.push_back({region, SlotPids(*region, caller.pid, caller.own_pid)});
  if (!attached_) attach_first(caller.pid, PerfFaults::When::kNow);
  if (Watched* watched = watched_.watch(caller.pid)) {
    if (watched->region != nullptr) mark_ended(*watched->region, watched->slot);
    watched->region = region;
    watched->slot = 0;
    watched->schedule =
        std::make_unique<SnapshotSchedule>(raw_now_ns(), options_.snapshot_interval);
  }
  snapshot(caller.pid, SnapshotReason::kStart, nullptr);
  reply_with_region(caller, region->fd(), region->layout().region_bytes());
}

void Collector::attach_first(pid_t pid, PerfFaults::When when) {
  attached_ = true;
  attach_syscalls(pid, when);  // First: the other takes all the memory there is.
  std::string note;
  switch (options_.fault_source) {
    case schema::FaultSource::kNone:
      fault_mode_ = FaultMode::kNone;
      break;
    case schema::FaultSource::kGetrusage:
      fault_mode_ = FaultMode::kGetrusage;
      break;
    default: {
      const bool good =
          when == PerfFaults::When::kNow ? perf_.attach_process(pid) : perf_.attach(pid, when);
      fault_mode_ = good ? perf_.mode() : FaultMode::kGetrusage;
      if (!good) note = perf_.why();
      if (fault_mode_ == FaultMode::kPerfUser) {
        note = "faults inside the kernel are not seen: perf_event_paranoid";
      }
    }
  }
  queue_.push(MetaNote{"fault_source", fault_mode_name(fault_mode_)});
  if (!note.empty()) queue_.push(MetaNote{"fault_note", note});
  if (when == PerfFaults::When::kOnExec) {
    control_.send({{"type", "attached"},
                   {"fault_source", fault_mode_name(fault_mode_)},
                   {"note", note},
                   {"syscall_note", syscall_note_}});
  }
}

void Collector::attach_syscalls(pid_t pid, PerfWhen when) {
  if (!options_.kernel_syscalls) return;
  const bool good =
      when == PerfWhen::kNow ? kernel_.attach_process(pid) : kernel_.attach(pid, when);
  if (good) {
    queue_.push(MetaNote{"syscall_source", "kernel"});
    return;
  }
  syscall_note_ = kernel_.why();
  queue_.push(MetaNote{"syscall_note", syscall_note_});
  // `record` says it itself.
  if (control_.is_plain() || !control_.is_open()) {
    fmt::print(stderr,
               "heapledger: record: --syscalls kernel: {}; recording what the wrappers see\n",
               syscall_note_);
  }
}

void Collector::serve_control() {
  while (const auto message = control_.receive()) {
    const std::string type = value_of<std::string>(*message, "type", "");
    if (type == "launch" || type == "not_recordable") on_launch(*message);
    if (type == "exited") on_exited(*message);
    if (type == "keep") recorder_->interrupt();
  }
}

void Collector::on_launch(const json& message) {
  const auto pid = value_of<pid_t>(message, "pid", 0);
  if (pid <= 0) return;
  const std::string reason = value_of<std::string>(message, "reason", "");
  const std::string command = command_of(message);
  if (launched_pid_ == 0) {
    launched_pid_ = pid;
    quiet_since_ns_ = 0;
    queue_.push(
        Launched{pid, value_of<std::string>(message, "exe", ""), command, reason, raw_now_ns()});
    if (!command.empty()) queue_.push(MetaNote{"command", command});
    watched_.watch(pid);
    attach_first(pid, PerfFaults::When::kOnExec);
  } else if (!reason.empty()) {
    queue_.push(Launched{pid, "", "", reason, raw_now_ns()});
  }
}

void Collector::on_exited(const json& message) {
  waited_ = true;
  waited_ns_ = raw_now_ns();
  patience_.hurry();
  drain_->push_after_round(
      Waited{value_of<pid_t>(message, "pid", 0), value_of<int>(message, "wait_status", 0),
             value_of<uint64_t>(message, "minor", 0), value_of<uint64_t>(message, "major", 0),
             value_of<uint64_t>(message, "max_rss_bytes", 0), raw_now_ns()});
}

void Collector::take_watch_requests() {
  std::vector<pid_t> requests;
  {
    const std::lock_guard lock(mutex_);
    requests.swap(watch_requests_);
  }
  requests.insert(requests.end(), watch_later_.begin(), watch_later_.end());
  watch_later_.clear();
  if (!requests.empty()) slots_changed_.store(true);  // Most are forked children.
  for (const pid_t pid : requests) {
    if (watched_.watch(pid) != nullptr) continue;
    if (pid > 0 && errno != ESRCH && errno != EINVAL) {  // EINVAL: it is a thread's id.
      watch_later_.push_back(pid);
      continue;
    }
    drain_->push_after_round(ProcessGone{pid, {}, raw_now_ns()});
  }
}

void Collector::process_ended(pid_t pid) {
  const auto found = watched_.all().find(pid);
  if (found == watched_.all().end()) return;
  if (found->second.region != nullptr) mark_ended(*found->second.region, found->second.slot);
  const int64_t now = raw_now_ns();
  const ExitInfo exit = watched_.take_exit(pid);
  drain_->push_after_round(ProcessGone{pid, exit, now});
}

// Forked children that have claimed a slot, and requests for snapshots.
void Collector::look_at_slots() {
  for (Joined& image : images_) {
    const uint32_t used = image.region->process_slots_used();
    // Places become free when what their owners wrote is packed.
    if (std::max(used, image.region->ring_slots_used()) > kFewSlots) patience_.hurry();
    for (uint32_t slot = 0; slot < used; ++slot) {
      const schema::ProcessSlot& process = image.region->process_slot(slot);
      if (process.state.load(std::memory_order_acquire) != schema::ProcessState::kLive) continue;
      const pid_t pid = image.pids.pid_of_slot(slot);
      if (pid <= 0) continue;
      Watched* watched = watched_.watch(pid);
      if (watched == nullptr && errno != ESRCH && errno != EINVAL) continue;
      const bool is_past = watched == nullptr || (watched->region != nullptr &&
                                                  watched->region->image() > image.region->image());
      if (is_past) {
        mark_ended(*image.region, slot);
        continue;
      }
      if (watched->schedule == nullptr) {
        watched->schedule =
            std::make_unique<SnapshotSchedule>(raw_now_ns(), options_.snapshot_interval);
      }
      if (watched->region == nullptr) {
        watched->region = image.region;
        watched->slot = slot;
      }
      serve_snapshot(image, slot);
    }
  }
}

void Collector::serve_snapshot(Joined& image, uint32_t slot) {
  schema::ProcessSlot& process = image.region->process_slot(slot);
  // Acquire: pairs with the program's release when it asks.
  const uint32_t wanted = process.snapshot_wanted.load(std::memory_order_acquire);
  if (wanted == process.snapshot_done.load(std::memory_order_relaxed)) return;
  const bool exits = process.end_tick.load(std::memory_order_relaxed) != 0;
  snapshot(image.pids.pid_of_slot(slot), exits ? SnapshotReason::kExit : SnapshotReason::kMark,
           image.region.get());
  // Release: the program goes on only after its pages were looked at.
  process.snapshot_done.store(wanted, std::memory_order_release);
  futex_wake(process.snapshot_done);
}

// Of an address space that `region` is mapped in, where it is given: another one is that of a
// program which this one has executed meanwhile.
void Collector::snapshot(pid_t pid, SnapshotReason reason, const Region* region) {
  SnapshotTaken news{pid, {}};
  const int64_t begin = raw_now_ns();
  const bool taken = take_snapshot(pid, reason, news.snapshot);
  const auto found = watched_.all().find(pid);
  if (found != watched_.all().end() && found->second.schedule != nullptr) {
    found->second.schedule->taken(begin, raw_now_ns());
  }
  if (!taken || (region != nullptr && !maps(news.snapshot, *region))) return;
  largest_rss_ = std::max(largest_rss_, news.snapshot.rss_bytes);
  queue_.push(std::move(news));
}

// What nobody asked for takes a tenth of this thread's time at most, however many processes there
// are: those that end or set marks wait for their snapshots.
void Collector::look_at_processes() {
  const int64_t now = raw_now_ns();
  if (now - looked_ns_ < std::max(kLookEveryNs, look_cost_ns_ * kLookShare)) return;
  looked_ns_ = now;
  std::erase_if(images_, [](const Joined& image) { return image.region->retired.load(); });
  look_at_slots();
  int64_t snapshots_ns = 0;
  for (auto& [pid, watched] : watched_.all()) {
    if (watched.schedule == nullptr) continue;
    const uint64_t rss = proc_rss_bytes(pid);
    largest_rss_ = std::max(largest_rss_, rss);
    const bool may = watched.schedule->has_budget(now) && snapshots_ns < kLookEveryNs;
    if (!may) continue;
    const int64_t begin = raw_now_ns();
    if (watched.schedule->is_new_peak(rss)) {
      snapshot(pid, SnapshotReason::kPeak, watched.region.get());
    } else if (watched.schedule->is_due(now)) {
      snapshot(pid, SnapshotReason::kSchedule, watched.region.get());
    } else {
      continue;
    }
    snapshots_ns += raw_now_ns() - begin;
  }
  look_cost_ns_ = raw_now_ns() - now;
}

void Collector::report_failure() {
  std::string failure;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_told_) failure = failure_;
  }
  if (failure.empty()) return;
  failure_told_ = true;
  const std::string what = "recording stopped, the program runs on";
  if (control_.is_open() && !control_.is_plain()) {
    control_.error(what, failure);
  } else {
    fmt::print(stderr, "heapledger: record: {}: {}\n", what, failure);
  }
}

// Every second: how the recording goes, and once the program has ended, how much is still to be
// packed.
void Collector::report_progress() {
  report_failure();
  const int64_t now = raw_now_ns();
  const int64_t last = std::max(progress_ns_, waited_ns_);
  if (!control_.is_open() || now - last < kProgressEveryNs) return;
  const bool first = last == 0;
  progress_ns_ = now;
  if (first || launched_pid_ == 0 || told_running_) return;
  const Counters& counters = recorder_->counters();
  control_.send({{"type", waited_ ? "packing" : "progress"},
                 {"events", counters.events.load()},
                 {"processes", counters.processes.load()},
                 {"faults", counters.faults.load()},
                 {"rss_bytes", largest_rss_},
                 {"backlog_bytes", queue_.backlog_bytes()},
                 {"elapsed_ns", now - origin_raw_ns_}});
}

// Has the writer seen all that was there when the last process ended?
bool Collector::reached_barrier() {
  if (barrier_asked_ == barrier_done_.load() && quiet_since_ns_ != 0) return true;
  if (quiet_since_ns_ == 0) {
    quiet_since_ns_ = raw_now_ns();
    pack_the_rest();
    drain_->push_after_round(Barrier{++barrier_asked_});
  }
  return false;
}

bool Collector::is_over() {
  const int64_t now = raw_now_ns();
  const bool none_yet = image_count_ == 0 && launched_pid_ == 0;
  if (none_yet)
    return now - origin_raw_ns_ > kFirstCallNs || (!control_.is_plain() && !control_.is_open());
  const bool starter_is_done = waited_ || launched_pid_ == 0 || !control_.is_open();
  if (!starter_is_done) return false;
  if (!watched_.empty()) {
    quiet_since_ns_ = 0;
    // Not those that are about to end, too.
    if (waited_ && !told_running_ && now - waited_ns_ > kAfterglowNs && control_.is_open()) {
      told_running_ = true;
      json pids = json::array();
      for (const auto& [pid, watched] : watched_.all()) {
        if (pid != launched_pid_) pids.push_back(pid);
      }
      if (!pids.empty()) control_.send({{"type", "running"}, {"pids", pids}});
    }
    return false;
  }
  if (!reached_barrier()) return false;
  const bool all_known = perf_.active() || kernel_.active();
  return all_known || now - quiet_since_ns_ >= kGraceNs;
}

void Collector::finish() {
  const int64_t now = raw_now_ns();
  pack_the_rest();
  drain_->stop();
  queue_.push(Finish{now, perf_.lost_total(), kernel_.lost_total(), spool_.use()});
  queue_.push(Barrier{++barrier_asked_});
  while (barrier_done_.load() != barrier_asked_) {
    const timespec pause{0, 200'000};
    nanosleep(&pause, nullptr);
    report_progress();
    serve_control();
  }
  writer_stops_ = true;
  queue_.push(Barrier{barrier_asked_});
  writer_thread_.join();
  report_failure();
  struct stat file {};
  stat(output_.c_str(), &file);
  const Counters& counters = recorder_->counters();
  json result = {{"type", "finished"},
                 {"output", output_},
                 {"events", counters.events.load()},
                 {"lost", counters.lost.load()},
                 {"faults", counters.faults.load()},
                 {"processes", counters.processes.load()},
                 {"bytes", static_cast<uint64_t>(file.st_size)},
                 {"fault_source", fault_mode_name(fault_mode_)}};
  const std::string& cut_why = failure_.empty() ? recorder_->ended_why() : failure_;
  if (!cut_why.empty()) result["error"] = cut_why;
  // The file is closed and no longer ours before anybody hears that it is finished: the next
  // `record --force` to the same name may begin at once.
  drain_.reset();
  recorder_.reset();
  writer_.reset();
  claim_.release();
  control_.send(result);
}

}  // namespace heapledger::collector
