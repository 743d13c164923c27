// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/collector/event_builder.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "interposer/collector/futex.h"

namespace heapledger::collector::testing {

void RingWriter::ring_doorbell() { futex_wake(control().doorbell); }

void claim_process(std::byte* base, uint32_t slot, uint32_t pid, uint32_t parent_slot,
                   uint64_t tick) {
  auto& control = *reinterpret_cast<schema::ControlPage*>(base);
  auto* processes = reinterpret_cast<schema::ProcessSlot*>(base + control.process_offset);
  schema::ProcessSlot& process = processes[slot];
  process.pid = pid;
  process.ppid = 1;
  process.parent_slot = parent_slot;
  process.start_tick = tick;
  if (parent_slot < control.process_slots) {
    process.parent_start_tick = processes[parent_slot].start_tick;
  }
  process.parent_fork_tick = tick;
  process.mmap_threshold = 131072;
  process.state.store(schema::ProcessState::kLive, std::memory_order_release);
  uint32_t used = control.process_slots_used.load();
  while (used <= slot && !control.process_slots_used.compare_exchange_weak(used, slot + 1)) {
  }
}

std::byte* join_session(const char* name) {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name, std::strlen(name));
  const auto length =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + std::strlen(name));
  const schema::Hello hello{schema::kRegionMagic, schema::kWireVersion,
                            static_cast<uint32_t>(getpid())};
  std::byte* base = nullptr;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), length) == 0 &&
      send(fd, &hello, sizeof hello, 0) == static_cast<ssize_t>(sizeof hello)) {
    schema::HelloReply reply{};
    iovec part{&reply, sizeof reply};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (recvmsg(fd, &message, 0) == static_cast<ssize_t>(sizeof reply) &&
        reply.status == schema::HelloStatus::kOk) {
      int region = -1;
      std::memcpy(&region, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof region);
      void* mapped =
          mmap(nullptr, reply.region_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region, 0);
      if (mapped != MAP_FAILED) base = static_cast<std::byte*>(mapped);
      close(region);
    }
  }
  close(fd);
  return base;
}

}  // namespace heapledger::collector::testing
