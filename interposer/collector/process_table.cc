// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/process_table.h"

#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>

#include "interposer/collector/exec_check.h"
#include "interposer/collector/proc_files.h"

namespace heapledger::collector {
namespace {

constexpr int64_t kHalvesApartNs = 1'000'000'000;
constexpr size_t kHalvesLooked = 4096;

// Nothing but a fork is known of it: it may be about to be what the news is about.
bool is_bare_fork(const Process& process) {
  return process.region == nullptr && !process.exec_seen && !process.refused;
}

}  // namespace

ProcessTable::ProcessTable(FrameTable& frames, std::function<void(pid_t)> watch)
    : frames_(frames), watch_(std::move(watch)) {}

Process& ProcessTable::make(pid_t pid, Process* parent, int64_t time_ns) {
  Process& process = all_.emplace_back();
  process.pid = pid;
  process.parent = parent;
  process.ppid = parent != nullptr ? parent->pid : 0;
  process.start_ns = time_ns;
  std::vector<Process*>& history = by_pid_[pid];
  const bool seen = !history.empty() && !history.back()->over;
  history.push_back(&process);
  if (!seen && pid > 0) watch_(pid);
  return process;
}

void ProcessTable::give_row(Process& process) {
  // A parent that is named must have a row, and a smaller id reads better.
  if (process.id != 0) return;
  if (process.parent != nullptr && process.parent->id == 0) settle(*process.parent);
  process.id = next_id_++;
  process.changed = true;
}

Process* ProcessTable::current(pid_t pid) const {
  const auto found = by_pid_.find(pid);
  return found == by_pid_.end() ? nullptr : found->second.back();
}

Process& ProcessTable::at(pid_t pid, int64_t time_ns) {
  const auto found = by_pid_.find(pid);
  if (found == by_pid_.end()) return make(pid, nullptr, time_ns);
  const std::vector<Process*>& history = found->second;
  for (auto it = history.rbegin(); it != history.rend(); ++it) {
    if ((*it)->start_ns.value_or(0) <= time_ns) return **it;
  }
  return *history.front();
}

Process& ProcessTable::launched(const Launched& news, int64_t time_ns) {
  if (Process* known = current(news.pid); known != nullptr && !known->over) {
    // Told again, with what was found out meanwhile.
    if (!news.reason.empty()) known->reason = news.reason;
    known->changed = true;
    return *known;
  }
  Process& process = make(news.pid, nullptr, time_ns);
  process.ppid = proc_parent(news.pid);
  process.exe = news.exe;
  process.command = news.command;
  process.reason = news.reason;
  process.fork_seen = true;
  give_row(process);
  return process;
}

Process& ProcessTable::joined(const ImageJoined& news, int64_t time_ns) {
  // Where the kernel tells nothing, the shim's own word says when the exec was.
  const auto announced = announced_.find(news.pid);
  const bool is_announced = announced != announced_.end();
  const int64_t exec_ns = is_announced ? std::min(announced->second.time_ns, time_ns) : time_ns;
  Process* by = is_announced ? announced->second.by : current(news.ppid);
  if (is_announced) announced_.erase(announced);
  Process* before = current(news.pid);
  Process* process = before;
  if (before == nullptr || before->over || before->region != nullptr || before->refused) {
    const bool same_task = before != nullptr && !before->over;
    if (same_task) end_by_exec(*before, exec_ns);
    process = &make(news.pid, same_task ? before : by, exec_ns);
    process->fork_seen = same_task;
    // The very first process was running when its recording began: no exec record will come.
    if (all_.size() == 1) process->exec_seen = process->fork_seen = true;
  }
  process->ppid = news.ppid;
  process->region = news.region;
  process->image = news.region->image();
  process->slot = 0;
  process->recorded = true;
  process->reason.clear();
  process->forked = false;
  process->exe = news.exe;
  process->command = news.command;
  process->hello_ns = time_ns;
  process->space = std::make_shared<AddressSpace>(frames_);
  process->beside_malloc = allocator_beside_malloc(news.exe);
  give_row(*process);
  process->changed = true;
  return *process;
}

Process& ProcessTable::forked(RegionPtr region, uint32_t slot, pid_t pid, Process* parent,
                              int64_t time_ns) {
  Process* process = current(pid);
  const bool fits = process != nullptr && !process->over && is_bare_fork(*process);
  if (!fits) {
    process = pid < 0 && parent != nullptr ? other_half(parent->pid, time_ns, true) : nullptr;
    if (process == nullptr) {
      process = &make(pid, parent, time_ns);
    } else if (process->over) {
      process->over = false;  // It ends again, with what it has told.
      process->reopened = true;
      watch_(process->pid);
    }
  }
  if (parent != nullptr) {
    process->parent = parent;
    process->ppid = parent->pid;
    process->exe = parent->exe;
    process->command = parent->command;
    process->beside_malloc = parent->beside_malloc;
    if (parent->space != nullptr) process->space = std::make_shared<AddressSpace>(*parent->space);
    process->allocator_ranges = parent->allocator_ranges;
  }
  if (process->space == nullptr) process->space = std::make_shared<AddressSpace>(frames_);
  process->forked = true;
  process->recorded = true;
  process->reason.clear();
  process->region = std::move(region);
  process->image = process->region->image();
  process->slot = slot;
  give_row(*process);
  return *process;
}

Process& ProcessTable::refused(pid_t pid, Process* parent, std::string reason, int64_t time_ns) {
  Process* process = current(pid);
  const bool ran_on = process != nullptr && !process->over && !is_bare_fork(*process);
  if (ran_on) {
    // It has run a program meanwhile: this is about what it was before.
    const int64_t end_ns = process->start_ns.value_or(time_ns);
    process = &all_.emplace_back();
    process->pid = pid;
    process->start_ns = std::min(time_ns, end_ns);
    end_by_exec(*process, end_ns);
  } else if (process == nullptr || process->over) {
    process = &make(pid, parent, time_ns);
  }
  if (parent != nullptr) {
    process->parent = parent;
    process->ppid = parent->pid;
    process->exe = parent->exe;
    process->command = parent->command;
  }
  process->forked = true;
  process->refused = true;
  process->reason = std::move(reason);
  give_row(*process);
  return *process;
}

Process& ProcessTable::unrecorded(const Unrecorded& news, int64_t time_ns) {
  Process* process = current(news.pid);
  if (process == nullptr || process->recorded) {
    const bool same_task = process != nullptr && !process->over;
    if (same_task) end_by_exec(*process, time_ns);
    process = &make(news.pid, same_task ? process : nullptr, time_ns);
  }
  process->reason = news.reason;
  process->changed = true;
  give_row(*process);
  return *process;
}

// The row that this task began with: before its execs.
Process* ProcessTable::first_image(pid_t pid) const {
  const auto found = by_pid_.find(pid);
  if (found == by_pid_.end()) return nullptr;
  const std::vector<Process*>& history = found->second;
  size_t i = history.size() - 1;
  while (i > 0 && history[i]->parent == history[i - 1]) --i;
  return history[i];
}

// A child of this parent that one side has told of and the other has not: the kernel by its pid, or
// the program by a slot. The nearest in time.
Process* ProcessTable::other_half(pid_t parent_pid, int64_t time_ns, bool by_kernel) {
  Process* nearest = nullptr;
  int64_t distance = kHalvesApartNs;
  size_t looked = 0;
  for (auto it = all_.rbegin(); it != all_.rend() && looked < kHalvesLooked; ++it, ++looked) {
    if (it->parent == nullptr || it->parent->pid != parent_pid) continue;
    const bool fits = by_kernel ? it->pid > 0 && it->fork_seen && is_bare_fork(*it)
                                : it->pid < 0 && !it->fork_seen && it->forked;
    const int64_t apart = std::abs(it->start_ns.value_or(0) - time_ns);
    if (!fits || apart >= distance) continue;
    nearest = &*it;
    distance = apart;
  }
  return nearest;
}

void ProcessTable::kernel_fork(const PerfRecord& record, int64_t time_ns) {
  if (record.pid == record.parent_pid) {
    Process& process = at(static_cast<pid_t>(record.pid), time_ns);
    ++process.live_threads;
    begin_thread(process, static_cast<pid_t>(record.tid), time_ns, next_thread_id_);
    return;
  }
  const auto pid = static_cast<pid_t>(record.pid);
  Process* process = first_image(pid);
  if (process == nullptr || process->fork_seen) {
    Process* half = other_half(static_cast<pid_t>(record.parent_pid), time_ns, false);
    if (half != nullptr) {
      half->pid = pid;
      by_pid_[pid].push_back(half);
      watch_(pid);
      process = half;
    }
  }
  // Every process has one such record: where it is still due, this is it.
  if (process == nullptr || process->fork_seen) {
    process = &make(pid, &at(static_cast<pid_t>(record.parent_pid), time_ns), time_ns);
    process->forked = true;
  }
  process->fork_seen = true;
  process->start_ns = std::min(process->start_ns.value_or(time_ns), time_ns);
}

void ProcessTable::end_by_exec(Process& process, int64_t time_ns) {
  process.over = true;
  process.ended_by = "exec";
  process.end_ns = time_ns;
  if (process.id == 0) settle(process);
  process.changed = true;
}

void ProcessTable::name_image(Process& process, pid_t pid) {
  const auto announced = announced_.find(pid);
  const std::string exe = proc_exe(pid);
  if (!exe.empty()) {
    process.exe = exe;
    process.command = proc_command(pid);
  } else if (announced != announced_.end()) {
    process.exe = announced->second.path;
  }
  if (announced == announced_.end()) return;
  if (process.command.empty()) process.command = announced->second.command;
  announced_.erase(announced);
}

Process& ProcessTable::run_image(pid_t pid, Process* before, int64_t time_ns) {
  const bool pristine = before != nullptr && !before->over && is_bare_fork(*before);
  Process* process = before;
  if (!pristine) {
    const bool same_task = before != nullptr && !before->over;
    if (same_task) end_by_exec(*before, time_ns);
    process = &make(pid, same_task ? before : nullptr, time_ns);
    if (same_task) process->ppid = before->ppid;
    process->fork_seen = true;
  }
  process->exec_seen = true;
  process->forked = false;
  process->live_threads = 1;  // Exec ends all others.
  if (process->reason.empty()) name_image(*process, pid);
  process->changed = true;
  return *process;
}

// The image whose Hello was heard before the kernel's record of the exec that began it.
Process* ProcessTable::image_awaiting_exec(pid_t pid, int64_t exec_ns) const {
  const auto found = by_pid_.find(pid);
  if (found == by_pid_.end()) return nullptr;
  for (Process* process : found->second) {
    if (process->hello_ns >= exec_ns && !process->exec_seen) return process;
  }
  return nullptr;
}

void ProcessTable::kernel_exec(const PerfRecord& record, int64_t time_ns) {
  const auto pid = static_cast<pid_t>(record.pid);
  Process* process = image_awaiting_exec(pid, time_ns);
  if (process == nullptr) {
    run_image(pid, current(pid), time_ns);
    return;
  }
  process->exec_seen = true;
  process->live_threads = 1;
  if (process->id == 1) return;  // Began with the launch.
  process->start_ns = time_ns;
  process->changed = true;
  Process* before = process->parent;
  if (before != nullptr && before->pid == pid && before->ended_by != nullptr) {
    before->end_ns = time_ns;
    before->changed = true;
  }
}

void ProcessTable::kernel_exit(const PerfRecord& record, int64_t time_ns) {
  Process& process = at(static_cast<pid_t>(record.pid), time_ns);
  Thread& thread = thread_of(process, static_cast<pid_t>(record.tid), time_ns, next_thread_id_);
  if (!thread.end_ns) {
    thread.end_ns = time_ns;
    thread.changed = true;
  }
  thread.events_until_ns = INT64_MAX;  // All that it has told is in its ring.
  --process.live_threads;
  process.last_exit_ns = std::max(process.last_exit_ns, time_ns);
}

void ProcessTable::exec_announced(pid_t pid, Process& by, std::string path, std::string command,
                                  int64_t time_ns) {
  Process* process = current(pid);
  const bool came_late = process != nullptr && process != &by &&
                         (process->exec_seen || (process->region != nullptr && !process->forked));
  if (!came_late) {
    announced_[pid] = {&by, std::move(path), std::move(command), time_ns};
    if (process == nullptr) watch_(pid);
    return;
  }
  // posix_spawn: its child has run on meanwhile.
  if (process->exe.empty()) process->exe = std::move(path);
  if (process->command.empty()) process->command = std::move(command);
  if (process->parent == nullptr && process->id != 1) process->parent = &by;
  process->changed = true;
}

void ProcessTable::exec_failed(pid_t pid) { announced_.erase(pid); }

// The process has ended. If an exec was announced that neither the kernel nor a Hello spoke of, it
// did take place, or its failure would have been told.
void ProcessTable::take_announced(pid_t pid, int64_t time_ns) {
  const auto announced = announced_.find(pid);
  if (announced == announced_.end()) return;
  const Announced news = announced->second;
  announced_.erase(announced);
  Process* process = current(pid);
  if (process == nullptr || process->over) process = &make(pid, news.by, news.time_ns);
  if (process->region != nullptr ? news.by != process : process->exec_seen) return;
  Process& image = run_image(pid, process, std::min(news.time_ns, time_ns));
  image.exe = news.path;
  image.command = news.command;
}

void ProcessTable::settle(Process& process) {
  if (process.recorded || process.id != 0) return;
  if (process.reason.empty()) {
    const bool of_unrecorded = process.parent != nullptr && !process.parent->recorded;
    if (!follow_ && process.parent != nullptr) {
      process.reason = "not followed (--no-follow)";
    } else if (process.exec_seen) {
      process.reason = why_not_recorded(process.exe);
    } else if (of_unrecorded && !process.parent->reason.empty()) {
      process.reason = process.parent->reason;
    } else {
      process.reason = "ended before it ran a program or allocated";
    }
    if (!process.exec_seen && process.parent != nullptr) {
      process.exe = process.parent->exe;
      process.command = process.parent->command;
    }
  }
  give_row(process);
}

Process* ProcessTable::gone(pid_t pid, const ExitInfo& exit, int64_t time_ns) {
  Process* process = current(pid);
  if (announced_.contains(pid)) {
    take_announced(pid, time_ns);
    process = current(pid);
  }
  if (process == nullptr || process->over) return process;
  process->over = true;
  const bool kernel_said = process->live_threads <= 0 && process->last_exit_ns != 0;
  process->end_ns = kernel_said ? process->last_exit_ns : time_ns;
  // A fork's start may be the parent's own stamp, mapped; its end is a reading of the clock.
  process->start_ns = std::min(process->start_ns.value_or(*process->end_ns), *process->end_ns);
  if (exit.known && WIFSIGNALED(exit.wait_status)) {
    process->ended_by = "signal";
    process->signal = WTERMSIG(exit.wait_status);
  } else if (exit.known && WIFEXITED(exit.wait_status)) {
    process->ended_by = "exit";
    process->exit_status = WEXITSTATUS(exit.wait_status);
  }
  settle(*process);
  if (!process->recorded && process->reason.empty()) {
    process->reason = why_not_recorded(process->exe);
  }
  process->changed = true;
  return process;
}

void ProcessTable::settle_all() {
  for (size_t i = 0; i < all_.size(); ++i) {
    Process& process = all_[i];
    settle(process);
    if (!process.recorded && process.reason.empty()) {
      process.reason = why_not_recorded(process.exe);
      process.changed = true;
    }
  }
}

}  // namespace heapledger::collector
