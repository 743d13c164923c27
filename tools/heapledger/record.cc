// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/record.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string_view>

#include "tools/heapledger/collector_link.h"
#include "tools/heapledger/command_error.h"
#include "tools/heapledger/companions.h"
#include "tools/heapledger/launch.h"
#include "tools/heapledger/narration.h"
#include "tools/heapledger/program_file.h"
#include "tools/heapledger/signals.h"

namespace heapledger::front {

namespace {

constexpr size_t kCommandBytesMax = size_t{64}
                                    << 10;  // Of it goes to the collector; a message has limits.

constexpr long kContinueGraceNs = 20'000'000;

// While it packs, the collector speaks every second; when it has said nothing for so long, it is
// stopped or stuck.
constexpr std::chrono::seconds kCollectorSilence{10};
constexpr std::chrono::seconds kCollectorGrace{3};  // Since the program has ended.
constexpr int kLookEveryMs = 1000;

uint64_t nanoseconds(const timeval& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<uint64_t>(time.tv_usec) * 1'000;
}

// What the program's environment gets; the shim reads it.
Environment program_environment(const OptionValues& options) {
  Environment changes;
  std::string preload = preloadable_path(find_shim());
  const char* before = std::getenv("LD_PRELOAD");
  if (before != nullptr && *before != 0) preload += std::string(":") + before;
  changes.emplace_back("LD_PRELOAD", preload);
  changes.emplace_back("HEAPLEDGER_RECORD", "");  // `off` from outside is not what `record` says.
  for (const RecordOption& option : kRecordOptions) {
    const auto given = options.find(option.variable);
    // The collector must know about --no-follow, but it is the shim that lets go of children.
    const bool read_there = option.reader == OptionReader::kProgram ||
                            std::string_view(option.variable) == "HEAPLEDGER_NO_FOLLOW";
    if (read_there && given != options.end()) {
      changes.emplace_back(given->first, given->second);
    }
  }
  return changes;
}

// One recording, from the fork of the program to the finished trace.
class Recording {
 public:
  Recording(const OptionValues& options, const std::vector<std::string>& command)
      : options_(options),
        command_(command),
        narration_(command[0], is_on(options, "HEAPLEDGER_QUIET")) {}

  int run();

 private:
  void start();
  void announce(const std::string& path, const std::string& obstacle);
  void drop_inherited_descriptors() const;
  void supervise();
  void handle_signals();
  void continue_program();
  bool reap();  // Follows the program's stops; true once it has ended.
  void handle_collector();
  void lose_collector();
  void finish();
  void wait_for_trace();
  bool wants_to_leave();
  bool collector_is_silent() const;
  void finalize_trace() const;

  OptionValues options_;
  const std::vector<std::string>& command_;
  Narration narration_;
  Signals signals_;
  std::optional<Launch> launch_;
  std::optional<CollectorLink> collector_;
  int exec_error_ = 0;
  int stopped_by_ = 0;  // The signal that the program is stopped by, as far as it was reported.
  uint64_t stops_ = 0;  // So many stops were reported,
  uint64_t stops_followed_ = 0;  // and up to this one we have stopped too.
  bool ended_ = false;
  int wait_status_ = 0;
  rusage usage_{};
  std::chrono::steady_clock::time_point heard_at_;  // Last word of the collector.
  uint64_t backlog_bytes_ = 0;                      // By that.
  int interrupts_ = 0;                              // Ctrl-C since the program has ended.
  bool collector_lost_ = false;
  bool left_alone_ = false;
  std::optional<nlohmann::json> finished_;
  std::optional<nlohmann::json> running_;
  std::chrono::steady_clock::time_point started_at_, ended_at_;
  double elapsed_seconds_ = 0;
};

void Recording::start() {
  const std::string path = find_program(command_[0]);
  const auto obstacle = recording_obstacle(path);
  // Forked first: the trace's default name has the program's pid.
  launch_.emplace(command_, program_environment(options_), signals_);
  const char* output = std::getenv("HEAPLEDGER_OUTPUT");
  if (!options_.contains("HEAPLEDGER_OUTPUT") && (output == nullptr || *output == 0)) {
    options_["HEAPLEDGER_OUTPUT"] = "heapledger." +
                                    std::filesystem::path(path).filename().string() + "." +
                                    std::to_string(launch_->pid()) + ".db";
  }
  collector_.emplace(options_);
  announce(path, obstacle ? obstacle->reason : "");
  if (obstacle) {
    narration_.warn(command_[0] + ": " + obstacle->reason + ": its calls are not recorded (" +
                    obstacle->advice + ")");
  }
  started_at_ = heard_at_ = std::chrono::steady_clock::now();
  launch_->go(collector_->session());
  drop_inherited_descriptors();
}

// Names the program to the collector and waits until it watches it.
void Recording::announce(const std::string& path, const std::string& obstacle) {
  nlohmann::json arguments = nlohmann::json::array();
  size_t bytes = 0;
  for (const std::string& argument : command_) {
    bytes += argument.size() + 1;
    if (bytes > kCommandBytesMax) {
      arguments.push_back("...");
      break;
    }
    arguments.push_back(argument);
  }
  std::error_code error;
  const std::string exe = std::filesystem::canonical(path, error).string();
  collector_->send({{"type", "launch"},
                    {"pid", launch_->pid()},
                    {"command", arguments},
                    {"exe", error ? path : exe},
                    {"reason", obstacle}});  // Why its calls cannot be recorded; mostly empty.
  while (true) {
    const auto answer = collector_->receive();
    if (!answer) throw CommandError("collector", "ended before the program was started");
    const std::string type = answer->value("type", "");
    if (type == "attached") {
      const std::string note = answer->value("syscall_note", "");
      if (!note.empty()) {
        narration_.warn("--syscalls kernel: " + note + "; recording what the wrappers see");
      }
      return;
    }
    if (type == "error") {
      throw CommandError(answer->value("what", "collector"), answer->value("why", "cannot record"));
    }
  }
}

// `prog | cat` ends when prog has ended: nobody but the program may hold what the shell gave us.
// stderr stays, for the result.
void Recording::drop_inherited_descriptors() const {
  const Descriptor null(open("/dev/null", O_RDWR | O_CLOEXEC));
  dup3(null.number(), STDIN_FILENO, O_CLOEXEC);
  dup3(null.number(), STDOUT_FILENO, O_CLOEXEC);
  std::vector<int> others;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int number = std::atoi(entry.path().filename().c_str());
    const int flags = fcntl(number, F_GETFD);
    if (number > STDERR_FILENO && flags >= 0 && (flags & FD_CLOEXEC) == 0) others.push_back(number);
  }
  for (const int number : others) close(number);  // Inherited: all of ours are close-on-exec.
}

void Recording::supervise() {
  while (!reap()) {
    pollfd ready[] = {{signals_.descriptor(), POLLIN, 0},
                      {launch_->descriptor(), POLLIN, 0},
                      {collector_->descriptor(), POLLIN, 0}};
    if (poll(ready, std::size(ready), -1) < 0) continue;
    if (ready[0].revents != 0) handle_signals();
    if (ready[1].revents != 0) exec_error_ = launch_->outcome();
    if (ready[2].revents != 0) handle_collector();
  }
  if (launch_->descriptor() >= 0) exec_error_ = launch_->outcome();
  while (signals_.next()) {  // They were for the program, too.
  }
  ended_at_ = std::chrono::steady_clock::now();
  elapsed_seconds_ = std::chrono::duration<double>(ended_at_ - started_at_).count();
}

void Recording::handle_signals() {
  while (const auto signal = signals_.next()) {
    if (signal->ssi_signo == SIGCONT) {
      continue_program();
    } else {
      forward_signal(*signal, launch_->pid());
    }
  }
}

// We were continued. A shell's `fg` continues the whole group: then the program says so itself, or
// has even stopped anew, in a moment. Where it does not, only we were sent the signal.
void Recording::continue_program() {
  if (reap() || stopped_by_ == 0) return;
  const uint64_t stops = stops_;
  const timespec grace{0, kContinueGraceNs};
  nanosleep(&grace, nullptr);
  if (!reap() && stopped_by_ != 0 && stops == stops_) kill(launch_->pid(), SIGCONT);
}

bool Recording::reap() {
  int status = 0;
  rusage usage{};
  while (!ended_ && wait4(launch_->pid(), &status, WNOHANG | WUNTRACED | WCONTINUED, &usage) ==
                        launch_->pid()) {
    if (WIFSTOPPED(status)) {
      stopped_by_ = WSTOPSIG(status);
      ++stops_;
    } else if (WIFCONTINUED(status)) {
      stopped_by_ = 0;
    } else {
      ended_ = true;
      wait_status_ = status;
      usage_ = usage;
    }
  }
  if (!ended_ && stopped_by_ != 0 && stops_followed_ != stops_) {
    stops_followed_ = stops_;
    narration_.clear_line();
    stop_like_program(stopped_by_);
  }
  return ended_;
}

void Recording::handle_collector() {
  const auto message = collector_->receive();
  if (!message) return lose_collector();
  heard_at_ = std::chrono::steady_clock::now();
  const std::string type = message->value("type", "");
  if (type == "progress") narration_.progress(*message);
  if (type == "packing") {
    backlog_bytes_ = message->value("backlog_bytes", uint64_t{0});
    narration_.packing(*message);
  }
  if (type == "running") running_ = message;
  if (type == "finished") finished_ = message;
  if (type == "error") {
    narration_.warn(message->value("what", "collector") + ": " + message->value("why", ""));
  }
}

void Recording::lose_collector() {
  collector_lost_ = true;
  narration_.warn(ended_ ? "collector: it has ended before the trace was whole"
                         : "collector: it has ended: nothing is recorded from here on, the program "
                           "runs on");
}

// The program has ended, the collector packs the rest. Ctrl-C asks once, so that nobody loses a
// trace by pressing it twice in a hurry, and then keeps what is packed; a third one waits for
// nothing, like the other signals that end a program: the collector finishes by itself.
bool Recording::wants_to_leave() {
  while (const auto signal = signals_.next()) {
    const auto number = static_cast<int>(signal->ssi_signo);
    if (number == SIGTSTP) stop_like_program(SIGTSTP);
    if (number == SIGTERM || number == SIGHUP || number == SIGQUIT) return true;
    if (number != SIGINT) continue;
    if (running_ || ++interrupts_ > 2) return true;
    if (interrupts_ == 2) {
      collector_->send({{"type", "keep"}});
    } else {
      narration_.warn("the trace is being packed, " + bytes_text(backlog_bytes_) +
                      " to go: press Ctrl-C again to keep only what is packed");
    }
  }
  return false;
}

// Is it stopped, or stuck?
bool Recording::collector_is_silent() const {
  const auto now = std::chrono::steady_clock::now();
  // While others are still recorded, it has nothing to say.
  return !running_ && now - heard_at_ >= kCollectorSilence && now - ended_at_ >= kCollectorGrace;
}

void Recording::wait_for_trace() {
  const bool wait_for_all = is_on(options_, "HEAPLEDGER_WAIT");
  while (collector_->is_open() && !finished_ && (wait_for_all || !running_)) {
    pollfd ready[] = {{signals_.descriptor(), POLLIN, 0}, {collector_->descriptor(), POLLIN, 0}};
    if (poll(ready, std::size(ready), kLookEveryMs) < 0) continue;
    if (ready[1].revents != 0) handle_collector();
    if (wants_to_leave()) return;
    if (collector_is_silent()) {
      left_alone_ = true;
      return narration_.warn(
          "collector: no sign of life for 10 s: left alone, it may still finish " +
          short_path(collector_->output()));
    }
  }
}

void Recording::finish() {
  collector_->send({{"type", "exited"},
                    {"pid", launch_->pid()},
                    {"wait_status", wait_status_},
                    {"minor", usage_.ru_minflt},
                    {"major", usage_.ru_majflt},
                    {"max_rss_bytes", static_cast<uint64_t>(usage_.ru_maxrss) * 1024},
                    {"user_ns", nanoseconds(usage_.ru_utime)},
                    {"system_ns", nanoseconds(usage_.ru_stime)}});
  wait_for_trace();
  if (exec_error_ != 0) {
    // Nothing ran, so there is nothing to keep.
    std::error_code error;
    if (finished_) std::filesystem::remove(collector_->output(), error);
    narration_.warn(command_[0] + ": " + std::strerror(exec_error_));
    return;
  }
  if (finished_) {
    narration_.clear_line();
    finalize_trace();
    narration_.result(wait_status_, elapsed_seconds_, *finished_);
  } else if (collector_lost_) {
    finalize_trace();
    narration_.cut(wait_status_, elapsed_seconds_, collector_->output());
  } else if (running_) {
    narration_.still_running(*running_, collector_->output());
  } else if (collector_->is_open() && !left_alone_) {
    narration_.warn(short_path(collector_->output()) + ": still being written");
  }
}

// Fills the aggregate tables now, so that the first report is quick. A failure costs nothing: an
// unfinished trace is finished on first use.
void Recording::finalize_trace() const {
  std::string analyzer;
  try {
    analyzer = find_analyzer();
  } catch (const CommandError&) {
    return;
  }
  const pid_t pid = fork();
  if (pid == 0) {
    signals_.restore_in_child();
    // Where the disk was full, it still is: that was said.
    if (finished_ && finished_->contains("error")) dup2(STDOUT_FILENO, STDERR_FILENO);
    execl(analyzer.c_str(), analyzer.c_str(), "finalize", collector_->output().c_str(),
          static_cast<char*>(nullptr));
    _exit(kNotFound);
  }
  int status = 0;
  while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
}

int Recording::run() {
  start();
  supervise();
  finish();
  if (exec_error_ != 0) return exec_error_ == ENOENT ? kNotFound : kCannotExecute;
  if (WIFSIGNALED(wait_status_)) return die_like_program(WTERMSIG(wait_status_));
  return WEXITSTATUS(wait_status_);
}

}  // namespace

int record(const OptionValues& options, const std::vector<std::string>& command) {
  return Recording(options, command).run();
}

}  // namespace heapledger::front
