// SPDX-License-Identifier: Apache-2.0
// What /proc says of a process: short questions, each with "nothing" for an answer when the process
// is gone or not ours to look at.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

struct ThreadSeen {
  pid_t tid = 0;
  std::string name;
  uint64_t minor_faults = 0;
  uint64_t major_faults = 0;
};

std::optional<std::string> read_file(const std::string& path);

// A file of /proc that lists a process's mappings ("smaps"). The kernel gives it in pieces; one
// that is read while the process ends or executes another program just stops somewhere.
class MappingsFile {
 public:
  MappingsFile(pid_t pid, std::string_view file);
  std::optional<std::string> read() const;
  // The address space that it was opened for is there still, so what was read since was all of it.
  bool is_current() const;

 private:
  UniqueFd fd_;
};
std::string proc_path(pid_t pid, std::string_view file);

std::string proc_exe(pid_t pid);          // Empty: unknown.
std::string proc_command(pid_t pid);      // Arguments, quoted for a shell.
pid_t proc_parent(pid_t pid);             // 0: unknown.
uint64_t proc_start_time(pid_t pid);      // In clock ticks since the machine's start; 0: unknown.
std::vector<pid_t> proc_tids(pid_t pid);  // None: errno says why.
std::vector<ThreadSeen> proc_threads(pid_t pid);
uint64_t proc_rss_bytes(pid_t pid);       // statm; 0: gone.
uint64_t proc_rss_peak_bytes(pid_t pid);  // VmHWM; 0: unknown.
// The thread of `pid` that calls itself `own_tid` in its own pid namespace; 0: none.
pid_t thread_by_own_tid(pid_t pid, uint32_t own_tid);
// The process that calls itself `own_pid` in the pid namespace of `neighbour`; 0: none.
pid_t process_by_own_pid(pid_t neighbour, uint32_t own_pid);
// The child of `parent` that calls itself `own_pid`; 0: none.
pid_t child_by_own_pid(pid_t parent, uint32_t own_pid);
// How a zombie ended, as wait would tell; nothing while it lives or when it is gone.
std::optional<int> zombie_wait_status(pid_t pid);
uint64_t address_space_limit(pid_t pid);  // RLIMIT_AS; UINT64_MAX: none.

// Arguments, each ended by a zero byte (as in /proc/PID/cmdline), quoted for a shell.
std::string quote_arguments(std::string_view zero_ended);

}  // namespace heapledger::collector
