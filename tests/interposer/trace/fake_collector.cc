// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/trace/fake_collector.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>

namespace heapledger::testing {

using schema::EventHead;
using schema::EventKind;

namespace {
void futex_wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}
}  // namespace

std::string Event::text() const {
  const schema::EventKindRow* row = schema::kind_row(kind);
  size_t size = 0;
  switch (kind) {
    case EventKind::kModuleLoad:
    case EventKind::kModuleUnload:
      size = as<schema::ModuleEvent>().text_bytes;
      break;
    case EventKind::kExec:
    case EventKind::kExecFailed:
      size = as<schema::ExecEvent>().text_bytes;
      break;
    default:
      size = as<schema::TextEvent>().text_bytes;
  }
  return std::string(reinterpret_cast<const char*>(words.data()) + row->bytes, size);
}

uint64_t Event::usable() const {
  if (has(schema::kHasUsable)) return words[schema::kind_row(kind)->bytes / 8];
  return schema::usable_by_rule(kind == EventKind::kRealloc ? as<schema::ReallocEvent>().size
                                                            : as<schema::AllocEvent>().size);
}

uint64_t Event::alignment() const {
  if (!has(schema::kHasAlignment)) return 0;
  return words[schema::kind_row(kind)->bytes / 8 + (has(schema::kHasUsable) ? 1U : 0U)];
}

RegionFile::RegionFile(const RegionOptions& options) {
  const auto page = [](uint64_t bytes) { return (bytes + 4095) & ~uint64_t{4095}; };
  const uint64_t process_offset = 4096;
  const uint64_t slot_offset =
      page(process_offset + options.process_slots * sizeof(schema::ProcessSlot));
  const uint64_t data_offset = page(slot_offset + options.ring_slots * sizeof(schema::RingSlot));
  bytes_ = data_offset + options.ring_slots * options.ring_bytes;
  fd_ = memfd_create("heapledger-test", MFD_CLOEXEC);
  if (fd_ < 0 || ftruncate(fd_, static_cast<off_t>(bytes_)) != 0) abort();
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (memory == MAP_FAILED) abort();
  memory_ = static_cast<std::byte*>(memory);
  schema::ControlPage& page0 = control();
  page0.magic = schema::kRegionMagic;
  page0.wire_version = schema::kWireVersion;
  page0.clock = options.clock;
  page0.region_bytes = bytes_;
  page0.process_offset = process_offset;
  page0.slot_offset = slot_offset;
  page0.data_offset = data_offset;
  page0.ring_bytes = options.ring_bytes;
  page0.process_slots = options.process_slots;
  page0.ring_slots = options.ring_slots;
  page0.stack_depth = options.stack_depth;
  page0.free_stacks = options.free_stacks ? 1 : 0;
  page0.collector_pid = static_cast<uint32_t>(getpid());
  page0.recording.store(1);
}

RegionFile::~RegionFile() {
  munmap(memory_, bytes_);
  close(fd_);
}

void Decoder::complain(uint32_t ring, const std::string& what) {
  damage.push_back("ring " + std::to_string(ring) + ": " + what);
}

void Decoder::take_stack(RingState& state, Event& event) {
  const auto head = event.as<EventHead>();
  if (head.keep > state.stack.size()) {
    complain(event.ring, "keeps more frames than there are");
    return;
  }
  state.stack.resize(head.keep);
  const size_t first = event.words.size() - head.fresh;
  for (size_t i = event.words.size(); i > first; --i) state.stack.push_back(event.words[i - 1]);
  event.stack.assign(state.stack.rbegin(), state.stack.rend());
}

bool Decoder::decode(uint32_t ring, const uint64_t* words, size_t available) {
  RingState& state = rings_[ring];
  Event event;
  EventHead head;
  std::memcpy(&head, words, sizeof(head));
  event.kind = head.kind;
  event.flags = head.flags;
  event.tick = head.tick;
  event.ring = ring;
  event.words.assign(words, words + head.words);
  const schema::EventKindRow* row = schema::kind_row(head.kind);
  if (row == nullptr || head.words > available || head.words * size_t{8} < row->bytes) {
    complain(ring, "bad head");
    return false;
  }
  if (head.tick < state.last_tick) {
    complain(ring, std::string("time runs backwards at a ") + row->name);
  }
  state.last_tick = head.tick;
  if (head.kind == EventKind::kThreadStart) {
    const auto start = event.as<schema::ThreadStartEvent>();
    state = {{}, start.pid, start.tid, start.level, head.tick};
  }
  event.pid = state.pid;
  event.tid = state.tid;
  event.level = state.level;
  if (event.has(schema::kHasStack)) {
    take_stack(state, event);
  } else if (head.keep != 0 || head.fresh != 0) {
    complain(ring, "frames without a stack");
  }
  events.push_back(std::move(event));
  return true;
}

size_t Decoder::drain_ring(uint32_t index, uint64_t bytes_max) {
  schema::RingSlot& ring = region_.ring(index);
  const uint64_t ring_bytes = region_.control().ring_bytes;
  const std::byte* data = region_.data(index);
  const uint64_t head = ring.head.load(std::memory_order_acquire);
  const uint64_t start = ring.tail.load(std::memory_order_relaxed);
  uint64_t tail = start;
  const size_t before = events.size();
  if (head - tail > ring_bytes) complain(index, "more than it holds");
  while (tail < head && tail - start < bytes_max) {
    const uint64_t offset = tail & (ring_bytes - 1);
    const auto* words = reinterpret_cast<const uint64_t*>(data + offset);
    const size_t available = std::min(head - tail, ring_bytes - offset) / 8;
    if ((words[0] & 0xff) == 0) {
      const uint64_t length = words[0] >> 16 & 0xffff;
      if (length * 8 != ring_bytes - offset) complain(index, "a pad that does not end the ring");
      tail += length * 8;
      continue;
    }
    if (!decode(index, words, available)) break;
    tail += events.back().words.size() * 8;
  }
  if (tail != start) {
    ring.tail.store(tail, std::memory_order_seq_cst);
    if (ring.waiting.load(std::memory_order_seq_cst) != 0) {
      ring.tail_futex.fetch_add(1, std::memory_order_seq_cst);
      futex_wake_all(&ring.tail_futex);
    }
  }
  return events.size() - before;
}

size_t Decoder::drain() {
  size_t count = 0;
  const uint32_t used = region_.control().ring_slots_used.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < used; ++i) {
    schema::RingSlot& ring = region_.ring(i);
    const schema::RingState state = ring.state.load(std::memory_order_acquire);
    count += drain_ring(i, UINT64_MAX);
    if (state == schema::RingState::kLive) {
      const std::string task =
          "/proc/" + std::to_string(ring.pid.load()) + "/task/" + std::to_string(ring.tid.load());
      if (access(task.c_str(), F_OK) == 0) continue;
    } else if (state != schema::RingState::kEnded) {
      continue;
    }
    count += drain_ring(i, UINT64_MAX);
    fallocate(region_.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              region_.data(i) - reinterpret_cast<std::byte*>(&region_.control()),
              static_cast<off_t>(region_.control().ring_bytes));
    ring.state.store(schema::RingState::kFree, std::memory_order_release);
  }
  return count;
}

FakeCollector::FakeCollector(const RegionOptions& options) : region_(options), decoder_(region_) {
  static std::atomic<int> count{0};
  session_ = "heapledger-test-" + std::to_string(getpid()) + "-" + std::to_string(count++);
  socket_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, session_.data(), session_.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + session_.size());
  if (bind(socket_, reinterpret_cast<sockaddr*>(&address), size) != 0) abort();
  if (listen(socket_, 64) != 0) abort();
  server_ = std::thread([this] { serve(); });
  drainer_ = std::thread([this] { drain(); });
}

FakeCollector::~FakeCollector() {
  finish();
  close(socket_);
}

void FakeCollector::answer(int connection) {
  schema::Hello hello{};
  if (recv(connection, &hello, sizeof(hello), 0) != sizeof(hello)) return;
  if (hello.magic != schema::kRegionMagic) return;
  schema::HelloReply reply = {schema::kRegionMagic, version_,
                              refuse_ ? schema::HelloStatus::kRefused : schema::HelloStatus::kOk,
                              region_.bytes()};
  ++hellos_;
  iovec part = {&reply, sizeof(reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!refuse_) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    const int fd = region_.fd();
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  sendmsg(connection, &message, MSG_NOSIGNAL);
}

void FakeCollector::serve() {
  while (!stopping_) {
    pollfd ready = {socket_, POLLIN, 0};
    if (poll(&ready, 1, 20) <= 0) continue;
    const int connection = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) continue;
    answer(connection);
    close(connection);
  }
}

void FakeCollector::drain() {
  while (!stopping_) {
    schema::ControlPage& control = region_.control();
    if (!heart_stopped_) control.heartbeat.fetch_add(1);
    if (!paused_) decoder_.drain();
    for (uint32_t i = 0; i < control.process_slots_used.load(); ++i) {
      schema::ProcessSlot& process = region_.process(i);
      const uint32_t wanted = process.snapshot_wanted.load(std::memory_order_acquire);
      if (process.snapshot_done.load() == wanted) continue;
      process.snapshot_done.store(wanted, std::memory_order_release);
      futex_wake_all(&process.snapshot_done);
    }
    usleep(500);
  }
}

void FakeCollector::finish() {
  if (stopping_.exchange(true)) return;
  server_.join();
  drainer_.join();
  decoder_.drain();
}

std::vector<Event> FakeCollector::of(EventKind kind) const {
  std::vector<Event> result;
  for (const Event& event : decoder_.events) {
    if (event.kind == kind) result.push_back(event);
  }
  return result;
}

RunResult run(const std::vector<std::string>& command, const Environment& extra) {
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  int out[2], err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) abort();
  const pid_t child = fork();
  if (child == 0) {
    dup2(out[1], 1);
    dup2(err[1], 2);
    for (const auto& [name, value] : extra) setenv(name.c_str(), value.c_str(), 1);
    execvp(argv[0], argv.data());
    _exit(126);
  }
  close(out[1]);
  close(err[1]);
  RunResult result;
  std::thread reader([&] {
    char buffer[4096];
    for (ssize_t n; (n = read(err[0], buffer, sizeof(buffer))) > 0;) {
      result.err.append(buffer, static_cast<size_t>(n));
    }
  });
  char buffer[4096];
  for (ssize_t n; (n = read(out[0], buffer, sizeof(buffer))) > 0;) {
    result.out.append(buffer, static_cast<size_t>(n));
  }
  reader.join();
  close(out[0]);
  close(err[0]);
  waitpid(child, &result.status, 0);
  return result;
}

#ifdef HEAPLEDGER_SHIM  // There is none under the sanitizers.
RunResult run_recorded(FakeCollector& collector, const std::vector<std::string>& command,
                       Environment extra) {
  extra.emplace("LD_PRELOAD", HEAPLEDGER_SHIM);
  extra.emplace(schema::kSessionVariable, collector.session());
  return run(command, extra);
}
#endif

}  // namespace heapledger::testing
