// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/proc_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>

#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {
namespace {

constexpr std::string_view kPlain =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%";

// The number behind `label` in a file of "Label: value" lines; 0: not there.
uint64_t labelled_number(std::string_view text, std::string_view label) {
  const size_t at = text.find(label);
  if (at == text.npos) return 0;
  const size_t digits = text.find_first_of("0123456789", at + label.size());
  uint64_t value = 0;
  if (digits != text.npos) {
    std::from_chars(text.data() + digits, text.data() + text.size(), value);
  }
  return value;
}

// Field `index` (from 0) behind the command name of a stat file, whose name may hold anything.
uint64_t stat_field(std::string_view stat, int index) {
  size_t at = stat.rfind(')');
  if (at == stat.npos) return 0;
  for (at += 2; index > 0 && at < stat.size(); ++at) index -= stat[at] == ' ';
  uint64_t value = 0;
  if (at < stat.size()) std::from_chars(stat.data() + at, stat.data() + stat.size(), value);
  return value;
}

// The last number of a status file's line "NSpid:": the pid in the task's own namespace.
uint32_t innermost_pid(const std::string& status_path) {
  const auto status = read_file(status_path);
  const size_t line = status ? status->find("NSpid:") : std::string::npos;
  if (line == std::string::npos) return 0;
  const size_t last = status->find_last_of("\t ", status->find('\n', line));
  return static_cast<uint32_t>(std::strtoul(status->c_str() + last, nullptr, 10));
}

template <typename Wanted>
pid_t find_process(Wanted wanted) {
  DIR* directory = opendir("/proc");
  if (directory == nullptr) return 0;
  pid_t found = 0;
  for (const dirent* entry = readdir(directory); entry != nullptr && found == 0;
       entry = readdir(directory)) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid > 0 && wanted(pid)) found = pid;
  }
  closedir(directory);
  return found;
}

std::optional<std::string> read_all(const UniqueFd& fd) {
  if (!fd) return std::nullopt;
  std::string text;
  size_t used = 0;
  for (;;) {
    text.resize(used + 16384);
    const ssize_t got = read(fd.get(), text.data() + used, text.size() - used);
    if (got < 0) return std::nullopt;
    used += static_cast<size_t>(got);
    if (got == 0) break;
  }
  text.resize(used);
  return text;
}

}  // namespace

std::optional<std::string> read_file(const std::string& path) {
  return read_all(UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC)));
}

MappingsFile::MappingsFile(pid_t pid, std::string_view file)
    : fd_(open(proc_path(pid, file).c_str(), O_RDONLY | O_CLOEXEC)) {}

std::optional<std::string> MappingsFile::read() const { return read_all(fd_); }

bool MappingsFile::is_current() const {
  char first;
  return fd_ && pread(fd_.get(), &first, 1, 0) == 1;
}

std::string proc_path(pid_t pid, std::string_view file) {
  return fmt::format("/proc/{}/{}", pid, file);
}

std::string proc_exe(pid_t pid) {
  std::array<char, 4096> path{};
  const ssize_t got = readlink(proc_path(pid, "exe").c_str(), path.data(), path.size());
  return got <= 0 ? std::string() : std::string(path.data(), static_cast<size_t>(got));
}

std::string quote_arguments(std::string_view zero_ended) {
  std::string line;
  while (!zero_ended.empty()) {
    const size_t end = std::min(zero_ended.find('\0'), zero_ended.size());
    const std::string_view argument = zero_ended.substr(0, end);
    zero_ended.remove_prefix(std::min(end + 1, zero_ended.size()));
    if (!line.empty()) line += ' ';
    if (!argument.empty() && argument.find_first_not_of(kPlain) == argument.npos) {
      line += argument;
      continue;
    }
    line += '\'';
    for (const char c : argument) {
      if (c == '\'') {
        line += "'\\''";
      } else {
        line += c;
      }
    }
    line += '\'';
  }
  return line;
}

std::string proc_command(pid_t pid) {
  return quote_arguments(read_file(proc_path(pid, "cmdline")).value_or(""));
}

pid_t proc_parent(pid_t pid) {
  return static_cast<pid_t>(stat_field(read_file(proc_path(pid, "stat")).value_or(""), 1));
}

uint64_t proc_start_time(pid_t pid) {
  return stat_field(read_file(proc_path(pid, "stat")).value_or(""), 19);
}

std::vector<pid_t> proc_tids(pid_t pid) {
  std::vector<pid_t> tids;
  DIR* directory = opendir(proc_path(pid, "task").c_str());
  if (directory == nullptr) return tids;
  while (const dirent* entry = readdir(directory)) {
    const pid_t tid = std::atoi(entry->d_name);
    if (tid > 0) tids.push_back(tid);
  }
  closedir(directory);
  return tids;
}

std::vector<ThreadSeen> proc_threads(pid_t pid) {
  std::vector<ThreadSeen> threads;
  for (const pid_t tid : proc_tids(pid)) {
    const auto stat = read_file(proc_path(pid, fmt::format("task/{}/stat", tid)));
    if (!stat) continue;
    const size_t open = stat->find('(');
    const size_t close = stat->rfind(')');
    if (open == stat->npos || close == stat->npos) continue;
    threads.push_back({tid, stat->substr(open + 1, close - open - 1), stat_field(*stat, 7),
                       stat_field(*stat, 9)});
  }
  return threads;
}

uint64_t proc_rss_bytes(pid_t pid) {
  const auto text = read_file(proc_path(pid, "statm"));
  const size_t space = text ? text->find(' ') : std::string::npos;
  if (space == std::string::npos) return 0;
  return std::strtoull(text->c_str() + space, nullptr, 10) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

uint64_t proc_rss_peak_bytes(pid_t pid) {
  return labelled_number(read_file(proc_path(pid, "status")).value_or(""), "VmHWM:") * 1024;
}

pid_t thread_by_own_tid(pid_t pid, uint32_t own_tid) {
  for (const ThreadSeen& thread : proc_threads(pid)) {
    const std::string path = fmt::format("/proc/{}/task/{}/status", pid, thread.tid);
    if (innermost_pid(path) == own_tid) return thread.tid;
  }
  return 0;
}

pid_t process_by_own_pid(pid_t neighbour, uint32_t own_pid) {
  struct stat wanted {};
  if (stat(proc_path(neighbour, "ns/pid").c_str(), &wanted) != 0) return 0;
  return find_process([&](pid_t pid) {
    struct stat other {};
    if (innermost_pid(proc_path(pid, "status")) != own_pid) return false;
    return stat(proc_path(pid, "ns/pid").c_str(), &other) == 0 && other.st_ino == wanted.st_ino;
  });
}

pid_t child_by_own_pid(pid_t parent, uint32_t own_pid) {
  return find_process([&](pid_t pid) {
    return innermost_pid(proc_path(pid, "status")) == own_pid && proc_parent(pid) == parent;
  });
}

std::optional<int> zombie_wait_status(pid_t pid) {
  // Who may not trace the process (it was setuid) is told 0 whatever it was (fs/proc/array.c). The
  // link to its folder is refused by the same rule; of a zombie that may be traced it is absent.
  // Asked first: once the process was reaped, the answer would be "absent" too.
  char folder[1];
  const bool may_trace =
      readlink(proc_path(pid, "cwd").c_str(), folder, sizeof folder) >= 0 || errno != EACCES;
  const auto stat = read_file(proc_path(pid, "stat"));
  const size_t close = stat ? stat->rfind(')') : std::string::npos;
  if (close == std::string::npos || close + 2 >= stat->size() || (*stat)[close + 2] != 'Z') {
    return std::nullopt;
  }
  const auto status = static_cast<int>(stat_field(*stat, 49));  // exit_code, the last field.
  if (status == 0 && !may_trace) return std::nullopt;
  return status;
}

uint64_t address_space_limit(pid_t pid) {
  rlimit limit{};
  if (prlimit(pid, RLIMIT_AS, nullptr, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return UINT64_MAX;
  }
  return limit.rlim_cur;
}

}  // namespace heapledger::collector
