// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/heap/differential/tracer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace heapledger::heap::differential {

namespace {

enum : int { kPtraceRefused = 80, kPersonalityRefused = 81, kExecFailed = 82 };

// ptrace's request is an enum in glibc's header, and the kernel's numbers are not all in it.
long trace(long request, pid_t pid, uint64_t address, uint64_t data) {
  return syscall(SYS_ptrace, request, pid, address, data);
}

std::string describe_end(int status) {
  if (WIFSIGNALED(status)) {
    return fmt::format("the driver was ended by signal {}", WTERMSIG(status));
  }
  switch (WEXITSTATUS(status)) {
    case kPtraceRefused:
      return "cannot trace: ptrace is refused here";
    case kPersonalityRefused:
      return "cannot trace: address randomisation cannot be turned off here";
    case kExecFailed:
      return "cannot start the driver";
    default:
      return fmt::format("the driver ended with status {}", WEXITSTATUS(status));
  }
}

}  // namespace

std::string to_text(const SystemCall& call) {
  const char* name = call.number == SYS_brk        ? "brk"
                     : call.number == SYS_mmap     ? "mmap"
                     : call.number == SYS_munmap   ? "munmap"
                     : call.number == SYS_mremap   ? "mremap"
                     : call.number == SYS_madvise  ? "madvise"
                     : call.number == SYS_mprotect ? "mprotect"
                                                   : "?";
  const size_t count = call.number == SYS_brk                                 ? 1
                       : call.number == SYS_munmap                            ? 2
                       : call.number == SYS_mmap || call.number == SYS_mremap ? 4
                                                                              : 3;
  std::string text = fmt::format("{}(", name);
  for (size_t i = 0; i < count; ++i) {
    text += fmt::format("{}{:#x}", i == 0 ? "" : ", ", call.args[i]);
  }
  return text + (call.failed() ? fmt::format(") = -{}", -call.result)
                               : fmt::format(") = {:#x}", call.result));
}

Tracer::Tracer(std::string driver) : driver_(std::move(driver)) {
  const int fd = memfd_create("heap_differential", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, sizeof(Shared)) != 0) {
    throw std::runtime_error(std::string("memfd: ") + std::strerror(errno));
  }
  fd_ = fd;
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("shared memory refused");
  shared_ = static_cast<Shared*>(memory);
}

Tracer::~Tracer() {
  munmap(shared_, sizeof(Shared));
  close(fd_);
}

pid_t Tracer::start(const Sequence& sequence) {
  std::vector<char*> environment;
  for (const std::string& entry : sequence.environment) {
    environment.push_back(const_cast<char*>(entry.c_str()));
  }
  environment.push_back(nullptr);
  char* const arguments[] = {driver_.data(), nullptr};
  const pid_t pid = fork();
  if (pid != 0) return pid;
  if (trace(PTRACE_TRACEME, 0, 0, 0) != 0) _exit(kPtraceRefused);
  if (personality(ADDR_NO_RANDOMIZE) < 0) _exit(kPersonalityRefused);
  dup2(fd_, kSharedFd);
  // Assertions of glibc's own, which are counted, and what its loader thinks of odd tunables.
  dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), STDERR_FILENO);
  execve(driver_.c_str(), arguments, environment.data());
  _exit(kExecFailed);
}

// A thread is stopped before a memory call; lets it run to its end and writes it down. All other
// threads wait for this one.
void Tracer::record_call(pid_t thread, Recording* recording) {
  __ptrace_syscall_info info = {};
  trace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, reinterpret_cast<uint64_t>(&info));
  SystemCall call;
  call.op = shared_->current;
  call.number = static_cast<long>(info.seccomp.nr);
  for (size_t i = 0; i < 6; ++i) call.args[i] = info.seccomp.args[i];
  int status = 0;
  trace(PTRACE_SYSCALL, thread, 0, 0);
  if (waitpid(thread, &status, __WALL) != thread || !WIFSTOPPED(status)) return;
  trace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, reinterpret_cast<uint64_t>(&info));
  call.result = info.exit.rval;
  recording->calls.push_back(call);
}

void Tracer::follow(pid_t driver, Recording* recording) {
  int status = 0;
  if (waitpid(driver, &status, __WALL) != driver || !WIFSTOPPED(status)) {
    recording->failure = describe_end(status);
    return;
  }
  const uint64_t options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE |
                           PTRACE_O_TRACEFORK | PTRACE_O_EXITKILL;
  if (trace(PTRACE_SETOPTIONS, driver, 0, options) != 0) {
    recording->failure = std::string("cannot trace: ") + std::strerror(errno);
    kill(driver, SIGKILL);
    waitpid(driver, &status, __WALL);
    return;
  }
  pid_t thread = driver;
  for (uint64_t signal_number = 0;;) {
    trace(PTRACE_CONT, thread, 0, signal_number);
    // Threads that end are not to be continued.
    do {
      thread = waitpid(-1, &status, __WALL);
    } while (thread > 0 && thread != driver && !WIFSTOPPED(status));
    if (thread <= 0) {
      recording->failure = "the driver was lost";
      return;
    }
    if (!WIFSTOPPED(status)) break;
    if (status >> 8 == (SIGTRAP | (PTRACE_EVENT_SECCOMP << 8))) record_call(thread, recording);
    // Stops of the tracer's own making are no signals: at events, and at a thread's start.
    const int number = WSTOPSIG(status);
    signal_number = number == SIGTRAP || number == SIGSTOP ? 0 : static_cast<uint64_t>(number);
  }
  recording->ops_done = static_cast<size_t>(shared_->current);
  // glibc has assertions that a foreign sbrk of odd size breaks: the sequence ends before that.
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) return;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    recording->failure =
        fmt::format("{} in call {}", describe_end(status), int64_t{shared_->current});
  }
}

Recording Tracer::run(const Sequence& sequence) {
  Recording recording;
  shared_->current = -1;
  shared_->op_count = sequence.ops.size();
  std::memcpy(shared_->ops, sequence.ops.data(), sequence.ops.size() * sizeof(Op));
  std::memset(shared_->slots, 0, sequence.slot_count * sizeof shared_->slots[0]);
  const pid_t driver = start(sequence);
  if (driver < 0) {
    recording.failure = std::string("fork: ") + std::strerror(errno);
    return recording;
  }
  follow(driver, &recording);
  recording.results.assign(shared_->results, shared_->results + sequence.ops.size());
  for (const Op& op : sequence.ops) {
    if (op.kind != kOpInfo) continue;
    if (recording.infos.size() <= op.a) recording.infos.resize(op.a + 1);
    const uint64_t* words = shared_->infos[op.a];
    recording.infos[op.a].assign(words, words + kInfoWords);
  }
  return recording;
}

}  // namespace heapledger::heap::differential
