// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/narration.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "tools/heapledger/descriptor.h"

namespace heapledger::front {

namespace {

constexpr double kNsPerSecond = 1e9;

// May a line be rewritten there? Not on a terminal in raw mode: a program that draws on the whole
// screen (an editor, a pager) has it.
bool owns_terminal_line() {
  termios mode{};
  return tcgetattr(STDERR_FILENO, &mode) == 0 && (mode.c_lflag & ICANON) != 0 &&
         tcgetpgrp(STDERR_FILENO) == getpgrp();
}

// A count and its noun: "1 process", "2 processes".
std::string counted(uint64_t number, const char* one, const char* many) {
  return grouped(number) + " " + (number == 1 ? one : many);
}

}  // namespace

std::string grouped(uint64_t number) {
  std::string text = std::to_string(number);
  for (size_t end = text.size(); end > 3; end -= 3) text.insert(end - 3, ",");
  return text;
}

std::string bytes_text(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string shell_word(const std::string& text) {
  constexpr const char* kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string quoted = "'";
  for (const char letter : text) {
    if (letter == '\'') {
      quoted += "'\\''";
    } else {
      quoted += letter;
    }
  }
  return quoted + "'";
}

std::string short_path(const std::string& path) {
  std::error_code error;
  const std::string folder = std::filesystem::current_path(error).string() + "/";
  return !error && path.starts_with(folder) ? path.substr(folder.size()) : path;
}

std::string ending_text(int wait_status) {
  if (!WIFSIGNALED(wait_status)) {
    return fmt::format("ended with status {}", WEXITSTATUS(wait_status));
  }
  const int number = WTERMSIG(wait_status);
  const char* name = sigabbrev_np(number);
  return fmt::format("was killed by SIG{} ({})", name != nullptr ? name : std::to_string(number),
                     strsignal(number));
}

Narration::Narration(std::string program, bool quiet)
    : program_(std::filesystem::path(program).filename().string()), quiet_(quiet) {}

void Narration::progress(const nlohmann::json& message) {
  if (quiet_ || !owns_terminal_line()) return;
  const double seconds = message.value("elapsed_ns", 0.0) / kNsPerSecond;
  std::string line = fmt::format("heapledger: {}: {:.0f} s, {} events, {} page faults, {} resident",
                                 program_, seconds, grouped(message.value("events", uint64_t{0})),
                                 grouped(message.value("faults", uint64_t{0})),
                                 bytes_text(message.value("rss_bytes", uint64_t{0})));
  const auto processes = message.value("processes", uint64_t{1});
  if (processes > 1) line += ", " + counted(processes, "process", "processes");
  write_all(STDERR_FILENO, "\r" + line + "\x1b[K");
  line_shown_ = true;
}

void Narration::packing(const nlohmann::json& message) {
  if (quiet_ || !owns_terminal_line()) return;
  const std::string line = fmt::format("heapledger: {} has ended: {} events packed, {} to go",
                                       program_, grouped(message.value("events", uint64_t{0})),
                                       bytes_text(message.value("backlog_bytes", uint64_t{0})));
  write_all(STDERR_FILENO, "\r" + line + "\x1b[K");
  line_shown_ = true;
}

void Narration::clear_line() {
  if (line_shown_) write_all(STDERR_FILENO, "\r\x1b[K");
  line_shown_ = false;
}

void Narration::warn(const std::string& text) {
  clear_line();
  write_all(STDERR_FILENO, "heapledger: record: " + text + "\n");
}

void Narration::say(const std::string& text) {
  if (quiet_) return;
  clear_line();
  write_all(STDERR_FILENO, "heapledger: " + text + "\n");
}

void Narration::result(int wait_status, double elapsed_seconds, const nlohmann::json& finished) {
  const std::string trace = short_path(finished.value("output", ""));
  const uint64_t lost = finished.value("lost", uint64_t{0});
  const std::string source = finished.value("fault_source", "");
  say(fmt::format("{} {} after {:.2f} s", program_, ending_text(wait_status), elapsed_seconds));
  const std::string faults = source == "none" ? "no page faults recorded"
                                              : counted(finished.value("faults", uint64_t{0}),
                                                        "page fault", "page faults") +
                                                    (source.empty() ? "" : " (" + source + ")");
  say(fmt::format("{}: {} of {}, {}, {}; {}", trace,
                  counted(finished.value("events", uint64_t{0}), "event", "events"),
                  counted(finished.value("processes", uint64_t{1}), "process", "processes"), faults,
                  bytes_text(finished.value("bytes", uint64_t{0})),
                  lost == 0 ? "nothing lost" : counted(lost, "event", "events") + " lost"));
  if (finished.contains("error")) {
    say(fmt::format("{} is cut short: {}", trace, finished.value("error", "")));
  }
  say("next: heapledger summary " + shell_word(trace));
}

void Narration::cut(int wait_status, double elapsed_seconds, const std::string& trace) {
  const std::string name = short_path(trace);
  say(fmt::format("{} {} after {:.2f} s", program_, ending_text(wait_status), elapsed_seconds));
  say(fmt::format("{} is cut short: it has what was written before the collector ended", name));
  say("next: heapledger summary " + shell_word(name));
}

void Narration::still_running(const nlohmann::json& running, const std::string& trace) {
  std::string names;
  for (const auto& entry : running.value("pids", nlohmann::json::array())) {
    if (!entry.is_number_integer()) continue;
    const auto pid = entry.get<pid_t>();
    std::error_code error;
    const auto exe = std::filesystem::read_symlink(fmt::format("/proc/{}/exe", pid), error);
    names += fmt::format("{}{}{}", names.empty() ? "" : ", ", pid,
                         error ? "" : " (" + exe.filename().string() + ")");
  }
  say(fmt::format("still running and recorded: {}", names));
  say(fmt::format("{} is complete when they have ended (--wait waits for them)",
                  short_path(trace)));
}

}  // namespace heapledger::front
