// SPDX-License-Identifier: Apache-2.0
// process_trees SECTION TRUTH [NUMBER]: processes that come into the world in every way, each of
// which allocates and counts its calls in TRUTH (process_truth.h).
//
// process_trees image TRUTH CHAIN WAY: what the exec sections become: allocates, and execs itself
// CHAIN more times.
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "process_truth.h"

extern "C" char** environ;

namespace {

const char* truth_path = nullptr;
int section_number = 0;

void play(int count) {
  victim::play_part(victim::take_part(), count);
  victim::end_part();
}

[[noreturn]] void end(int status) { _exit(status); }

// Waits for all children; adds up their statuses.
int wait_for_all() {
  int sum = 0;
  int status = 0;
  for (;;) {
    const pid_t child = wait(&status);
    if (child < 0 && errno == EINTR) continue;
    if (child < 0) return sum;
    sum += WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
  }
}

// ---- fork.

// Each child forks the next and goes. Inherited blocks are freed by all, block by block.
void fork_chain() {
  const int depth = section_number != 0 ? section_number : 1000;
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  constexpr int kInherited = 16;
  void* inherited[kInherited];
  for (void*& block : inherited) block = malloc(333);
  play(3);
  for (int level = 1; level <= depth; ++level) {
    const pid_t child = fork();
    if (child < 0) abort();
    if (child != 0) {
      if (level != 1) end(1);
      printf("statuses: %d\n", wait_for_all());
      break;
    }
    free(inherited[level % kInherited]);
    inherited[level % kInherited] = malloc(333);
    play(2);
    if (level == depth) end(1);
  }
  for (void* block : inherited) free(block);
}

// Each child forks the next and waits for it: all are alive at once.
void fork_tower() {
  const int depth = section_number != 0 ? section_number : 60;
  void* inherited = malloc(333);
  int level = 0;
  for (; level < depth; ++level) {
    const pid_t child = fork();
    if (child < 0) abort();
    if (child != 0) break;
    play(2);
  }
  const int below = wait_for_all();
  play(2);
  free(inherited);
  if (level != 0) end(below == 0 ? 0 : 1);
  printf("statuses: %d\n", below);
}

// Many at once, each with children.
void fork_bush() {
  for (int i = 0; i < 20; ++i) {
    if (fork() != 0) continue;
    for (int k = 0; k < 3; ++k) {
      if (fork() != 0) continue;
      play(20);
      end(1);
    }
    play(50);
    end(wait_for_all());
  }
  printf("statuses: %d\n", wait_for_all());
  play(10);
}

// All of one parent, and all alive until the last one is there.
void fork_crowd() {
  const int count = section_number != 0 ? section_number : 100;
  int ends[2];
  if (pipe(ends) != 0) abort();
  for (int i = 0; i < count; ++i) {
    if (fork() != 0) continue;
    close(ends[1]);
    play(2);
    char none = 0;
    if (read(ends[0], &none, 1) != 0) abort();  // Its end: everybody has let go of the other one.
    play(2);
    end(1);
  }
  close(ends[1]);
  printf("statuses: %d\n", wait_for_all());
  play(2);
}

// ---- vfork, clone.

__attribute__((noinline)) void vfork_once() {
  const pid_t child = vfork();
  if (child == 0) {
    play(3);  // In the parent's memory: the parent's calls.
    _exit(2);
  }
}
void vforks() {
  for (int i = 0; i < 20; ++i) {
    vfork_once();
    play(2);
  }
  printf("statuses: %d\n", wait_for_all());
}

long raw_call(long number, long first, long second) {
  long result = number;
  asm volatile("syscall" : "+a"(result) : "D"(first), "S"(second), "d"(0) : "rcx", "r11", "memory");
  return result;
}

// Past libc's fork: no handler runs, libc knows nothing of the child.
void raw_clones() {
  for (int i = 0; i < 20; ++i) {
    long child = 0;
    if (i % 3 == 0) child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (i % 3 == 1) child = syscall(SYS_fork);
    if (i % 3 == 2) child = raw_call(SYS_clone, SIGCHLD, 0);
    if (child == 0) {
      play(5);
      if (raw_call(SYS_clone, SIGCHLD, 0) == 0) {
        play(4);
        end(1);
      }
      end(1 + wait_for_all());
    }
    play(2);
  }
  printf("statuses: %d\n", wait_for_all());
}

int clone_child(void* argument) {
  const auto* count = static_cast<const int*>(argument);
  if (*count != 0) play(*count);
  victim::truth->unused[0] = 7;
  return 3;
}
// On the parent's memory: as vfork, with a stack of its own; or beside the parent, which goes on.
void clones_on_the_same_memory() {
  alignas(16) static char stacks[20][65536];
  int count = 5;
  int none = 0;
  for (int i = 0; i < 20; ++i) {
    const bool waits = i % 2 == 0;
    const int flags = CLONE_VM | SIGCHLD | (waits ? CLONE_VFORK : 0);
    const pid_t child =
        clone(clone_child, stacks[i] + sizeof stacks[i], flags, waits ? &count : &none);
    if (child < 0) abort();
    play(3);
    int status = 0;
    waitpid(child, &status, 0);
    if (WEXITSTATUS(status) != 3) abort();
  }
  int status = 0;
  const pid_t copy = clone(clone_child, stacks[0] + sizeof stacks[0], SIGCHLD, &count);
  waitpid(copy, &status, 0);
  printf("status: %d\n", WEXITSTATUS(status));
}

// ---- exec.

// How an image becomes the next one.
enum Way {
  kInherit,
  kEmpty,
  kListEmpty,
  kFileEmpty,
  kAtEmpty,
  kSpawnEmpty,
  kVforkEmpty,
  kCleared,
  kSystemCleared,
  kPopenCleared,
  kByShell,
  kOtherPreload,
  kWays
};

// For a shell.
const char* own_command(const char* chain, const char* number) {
  static char line[8192];
  char own[4096] = {};
  if (readlink("/proc/self/exe", own, sizeof own - 1) < 0) abort();
  snprintf(line, sizeof line, "'%s' image '%s' %s %s", own, truth_path, chain, number);
  return line;
}

[[noreturn]] void become(const char* chain, Way way) {
  char number[8];
  snprintf(number, sizeof number, "%d", way);
  const char* program = "/proc/self/exe";
  const char* argv[] = {"process_trees", "image", truth_path, chain, number, nullptr};
  auto* arguments = const_cast<char**>(argv);
  char* nothing[] = {nullptr};
  switch (way) {
    case kInherit:
      execv(program, arguments);
      break;
    case kEmpty:
      execve(program, arguments, nothing);
      break;
    case kListEmpty:
      execle(program, "process_trees", "image", truth_path, chain, number, nullptr, nothing);
      break;
    case kFileEmpty:
      fexecve(open(program, O_RDONLY | O_CLOEXEC), arguments, nothing);
      break;
    case kAtEmpty:
      execveat(AT_FDCWD, program, arguments, nothing, 0);
      break;
    case kSpawnEmpty: {
      pid_t child = 0;
      if (posix_spawn(&child, program, nullptr, nullptr, arguments, nothing) != 0) abort();
      end(wait_for_all());
    }
    case kVforkEmpty: {
      if (vfork() == 0) {
        execve(program, arguments, nothing);
        _exit(100);
      }
      end(wait_for_all());
    }
    case kCleared:
      clearenv();
      setenv("KEPT", "1", 1);
      execvp(program, arguments);
      break;
    case kSystemCleared: {
      clearenv();
      const int status = system(own_command(chain, number));
      end(WIFEXITED(status) ? WEXITSTATUS(status) : 101);
    }
    case kPopenCleared: {
      clearenv();
      FILE* pipe = popen(own_command(chain, number), "r");
      if (pipe == nullptr || environ != nullptr) abort();
      while (fgetc(pipe) != EOF) {
      }
      const int status = pclose(pipe);
      end(WIFEXITED(status) ? WEXITSTATUS(status) : 102);
    }
    case kByShell: {
      char own[4096] = {};
      if (readlink(program, own, sizeof own - 1) < 0) abort();
      execlp("env", "env", "-i", own, "image", truth_path, chain, number, nullptr);
      break;
    }
    case kOtherPreload: {
      char preload[] = "LD_PRELOAD=libm.so.6";
      char* environment[] = {preload, nullptr};
      execve(program, arguments, environment);
      break;
    }
    default:
      break;
  }
  abort();
}

// What the image finds in its environment must be what it was given.
int image(int chain, Way way) {
  play(7);
  int entries = 0;
  for (char** entry = environ; *entry != nullptr; ++entry) ++entries;
  if (way != kInherit) printf("environment: %d %s\n", entries, entries > 0 ? environ[0] : "");
  if (chain == 0) return 1;
  char number[16];
  snprintf(number, sizeof number, "%d", chain - 1);
  become(number, way);
}

void execs() {
  for (int way = 0; way < kWays; ++way) {
    if (fork() == 0) become("3", static_cast<Way>(way));
    printf("way %d: %d\n", way, wait_for_all());
  }
}

void spawns() {
  for (int i = 0; i < 20; ++i) {
    pid_t child = 0;
    char chain[] = "0";
    char way[] = "0";
    char* argv[] = {const_cast<char*>("x"),
                    const_cast<char*>("image"),
                    const_cast<char*>(truth_path),
                    chain,
                    way,
                    nullptr};
    if (posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, argv, environ) != 0) abort();
    play(2);
  }
  printf("statuses: %d\n", wait_for_all());
}

// ---- Lives apart.

void* play_in_thread(void*) {
  play(30);
  return nullptr;
}

// What every life apart is made of: threads, children, a new image.
void live(bool with_image) {
  play(20);
  pthread_t thread;
  pthread_create(&thread, nullptr, play_in_thread, nullptr);
  pthread_join(thread, nullptr);
  if (fork() == 0) {
    play(10);
    end(0);
  }
  if (with_image && fork() == 0) become("1", kInherit);
  if (with_image && fork() == 0) become("1", kEmpty);
  wait_for_all();
}

// Forks twice, leaves the session, closes every descriptor, and lives on when its parents are gone.
void daemons() {
  prctl(PR_SET_CHILD_SUBREAPER, 1);  // Only so that the test knows when they have ended.
  for (int i = 0; i < 3; ++i) {
    if (fork() != 0) continue;
    setsid();
    if (fork() != 0) end(0);
    if (chdir("/") != 0) abort();
    umask(0);
    if (i == 0) closefrom(0);
    if (i == 1) close_range(0, ~0U, 0);
    if (i == 2) {
      for (int fd = 0; fd < 1024; ++fd) close(fd);
    }
    if (open("/dev/null", O_RDWR) != 0) abort();
    if (dup(0) != 1 || dup(0) != 2) abort();  // The numbers are free, and nobody takes them.
    live(true);
    if (open("/dev/null", O_RDWR) != 3) abort();
    end(1);
  }
  printf("statuses: %d\n", wait_for_all());
}

void in_an_empty_root() {
  char folder[] = "/tmp/heapledger-root-XXXXXX";
  if (mkdtemp(folder) == nullptr) abort();
  if (fork() == 0) {
    const bool moved = chroot(folder) == 0 && chdir("/") == 0;
    if (!moved) end(9);
    live(false);
    end(access("/tmp", F_OK) != 0 ? 1 : 2);
  }
  printf("status: %d\n", wait_for_all());
  rmdir(folder);
}

void in_namespaces() {
  constexpr int kKinds[] = {CLONE_NEWUSER,
                            CLONE_NEWUSER | CLONE_NEWNS,
                            CLONE_NEWUSER | CLONE_NEWPID,
                            CLONE_NEWUSER | CLONE_NEWNET,
                            CLONE_NEWUSER | CLONE_NEWIPC,
                            CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET};
  for (const int kind : kKinds) {
    if (fork() == 0) {
      if (unshare(kind) != 0) end(100);
      if (fork() == 0) {
        live(true);
        end((kind & CLONE_NEWPID) != 0 ? getpid() == 1 : 1);
      }
      end(wait_for_all());
    }
    printf("kind %x: %d\n", static_cast<unsigned>(kind), wait_for_all());
  }
}

// ---- Sandboxes.

// Kills the process at every call but these, or at these alone.
void filter_calls(const int* calls, size_t count, bool allow) {
  constexpr size_t kCallsMax = 64;
  sock_filter program[kCallsMax + 4];
  size_t used = 0;
  program[used++] = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr));
  for (size_t i = 0; i < count && i < kCallsMax; ++i) {
    const auto to_the_end = static_cast<unsigned char>(count - i);
    program[used++] =
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(calls[i]), to_the_end, 0);
  }
  constexpr unsigned kAllow = SECCOMP_RET_ALLOW;
  constexpr unsigned kKill = SECCOMP_RET_KILL_PROCESS;
  program[used++] = BPF_STMT(BPF_RET | BPF_K, allow ? kKill : kAllow);
  program[used++] = BPF_STMT(BPF_RET | BPF_K, allow ? kAllow : kKill);
  const sock_fprog filter = {static_cast<unsigned short>(used), program};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) abort();
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) abort();
}

std::atomic<bool> filtered{false};
void* play_before_and_after(void*) {
  play(10);
  while (!filtered) sched_yield();
  play(20);
  return nullptr;
}

// What malloc, threads and fork need of the kernel, and nothing else.
constexpr int kNeeded[] = {
    SYS_brk,   SYS_mmap,       SYS_munmap, SYS_mremap,          SYS_madvise,    SYS_mprotect,
    SYS_futex, SYS_clone,      SYS_clone3, SYS_set_robust_list, SYS_rseq,       SYS_rt_sigprocmask,
    SYS_exit,  SYS_exit_group, SYS_write,  SYS_wait4,           SYS_sched_yield};

void in_a_sandbox() {
  play(10);
  pthread_t before[3];
  for (pthread_t& thread : before) pthread_create(&thread, nullptr, play_before_and_after, nullptr);
  while (victim::truth->ended < 4) sched_yield();
  // TSYNC, so that the threads are behind it, too, is not prctl's: they are not.
  filter_calls(kNeeded, sizeof kNeeded / sizeof kNeeded[0], true);
  filtered = true;
  for (pthread_t thread : before) pthread_join(thread, nullptr);
  play(30);
  for (int round = 0; round < 3; ++round) {
    pthread_t after[4];
    for (pthread_t& thread : after) pthread_create(&thread, nullptr, play_in_thread, nullptr);
    for (pthread_t thread : after) pthread_join(thread, nullptr);
  }
  for (int i = 0; i < 3; ++i) {
    if (fork() != 0) continue;
    play(15);
    pthread_t thread;
    pthread_create(&thread, nullptr, play_in_thread, nullptr);
    pthread_join(thread, nullptr);
    if (fork() == 0) {
      play(5);
      end(1);
    }
    end(1 + wait_for_all());
  }
  printf("statuses: %d\n", wait_for_all());
  play(5);
}

// The new program lives behind the filter too, which would kill it for a socket.
void exec_in_a_sandbox() {
  play(5);
  constexpr int kForbidden[] = {SYS_socket, SYS_socketpair, SYS_memfd_create, SYS_connect};
  filter_calls(kForbidden, sizeof kForbidden / sizeof kForbidden[0], false);
  play(5);
  if (fork() == 0) become("0", kInherit);
  printf("statuses: %d\n", wait_for_all());
  play(5);
}

struct Section {
  const char* name;
  void (*run)();
};
#define SECTION(name) \
  { #name, name }
constexpr Section kSections[] = {
    SECTION(fork_chain),
    SECTION(fork_tower),
    SECTION(fork_bush),
    SECTION(fork_crowd),
    SECTION(vforks),
    SECTION(raw_clones),
    SECTION(clones_on_the_same_memory),
    SECTION(execs),
    SECTION(spawns),
    SECTION(daemons),
    SECTION(in_an_empty_root),
    SECTION(in_namespaces),
    SECTION(in_a_sandbox),
    SECTION(exec_in_a_sandbox),
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "list") == 0) {
    for (const Section& section : kSections) puts(section.name);
    return 0;
  }
  if (argc < 3) return 2;
  setvbuf(stdout, nullptr, _IONBF, 0);  // What is not written would be written by children again.
  truth_path = argv[2];
  victim::open_truth(truth_path);
  if (argc == 5 && strcmp(argv[1], "image") == 0)
    return image(atoi(argv[3]), static_cast<Way>(atoi(argv[4])));
  if (argc == 4) section_number = atoi(argv[3]);
  for (const Section& section : kSections) {
    if (strcmp(argv[1], section.name) != 0) continue;
    section.run();
    return 0;
  }
  return 2;
}
