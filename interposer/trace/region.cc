// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/region.h"

#include <errno.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/un.h>

#include <cstring>

#include "interposer/base/sys.h"
#include "interposer/trace/collector_watch.h"
#include "interposer/trace/own_calls.h"

namespace heapledger::trace {
namespace {

namespace sys = base::sys;
using schema::ControlPage;

constexpr char kOtherVersion[] =
    "heapledger-collector and libheapledger.so are of different versions, and must be of one build";
constexpr uint64_t kLimitShare = 8;  // At most one part in so many of a limit is ours, at a time.
// The collector attaches to the process before it answers. One that is silent for so many looks is
// taken for dead, as by the rings' producers; one that has been stopped, at the second look that
// finds it so. Where /proc cannot tell (it lives in another pid namespace), by what it has not even
// read: a collector that runs takes a Hello in milliseconds, whatever it does about it afterwards.
constexpr timeval kLookEvery = {0, 100'000};
constexpr int kLooksMax = 100;
constexpr int kUnreadLooksMax = 20;
constexpr timeval kConnectLimit = {2, 0};  // Reached where a thousand others wait already.

bool layout_is_sound(const ControlPage& control, uint64_t region_bytes) {
  if (control.ring_bytes < 4096 || (control.ring_bytes & (control.ring_bytes - 1)) != 0)
    return false;
  if (control.process_slots == 0 || control.ring_slots == 0) return false;
  const uint64_t processes_end =
      control.process_offset + uint64_t{control.process_slots} * sizeof(schema::ProcessSlot);
  const uint64_t rings_end =
      control.slot_offset + uint64_t{control.ring_slots} * sizeof(schema::RingSlot);
  return control.region_bytes == region_bytes && control.process_offset >= sizeof(ControlPage) &&
         processes_end <= control.slot_offset && rings_end <= control.data_offset &&
         control.data_offset + control.ring_slots * control.ring_bytes <= region_bytes;
}

const char* connect_to(const char* name, int* result) {
  const size_t length = strlen(name);
  sockaddr_un address{};
  if (length == 0 || length >= sizeof(address.sun_path)) return "HEAPLEDGER_SESSION is not a name";
  const long fd = sys::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (sys::failed(fd)) return "no socket";
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path + 1, name, length);  // The leading zero makes it abstract.
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  sys::call(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, sys::word(&kConnectLimit),
            sizeof(kConnectLimit));
  sys::call(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, sys::word(&kLookEvery),
            sizeof(kLookEvery));
  *result = static_cast<int>(fd);
  long connected = sys::connect(*result, reinterpret_cast<sockaddr*>(&address), size);
  constexpr size_t kFolderBytes = sizeof(schema::kSessionFolder) - 1;
  if (sys::failed(connected) && kFolderBytes + length < sizeof(address.sun_path)) {
    // In a network namespace of its own, perhaps.
    memcpy(address.sun_path, schema::kSessionFolder, kFolderBytes);
    memcpy(address.sun_path + kFolderBytes, name, length + 1);
    const long by_path =
        sys::connect(*result, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    if (!sys::failed(by_path)) connected = 0;
  }
  if (sys::failed(connected)) {
    sys::close(*result);
    return connected == -ECONNREFUSED ? kRecordingEnded : "the collector does not answer";
  }
  return nullptr;
}

pid_t peer_of(int fd) {
  ucred peer{};
  socklen_t bytes = sizeof(peer);
  const long result =
      sys::call(SYS_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, sys::word(&peer), sys::word(&bytes));
  return sys::failed(result) ? 0 : peer.pid;
}

// What was sent lies there still.
bool is_unread(int fd) {
  int bytes = 0;
  return !sys::failed(sys::call(SYS_ioctl, fd, SIOCOUTQ, sys::word(&bytes))) && bytes > 0;
}

// recvmsg, as long as there is hope for an answer.
long receive(int fd, msghdr* message) {
  const pid_t collector = peer_of(fd);  // 0: in another pid namespace.
  int halted = 0;
  for (int look = 0; look < kLooksMax && halted < 2; ++look) {
    const long received = sys::recvmsg(fd, message, MSG_CMSG_CLOEXEC);
    if (received != -EAGAIN && received != -EINTR) return received;
    halted = is_halted(collector) ? halted + 1 : 0;
    if (collector == 0 && look + 1 >= kUnreadLooksMax && is_unread(fd)) break;
  }
  return -EAGAIN;
}

// Sends Hello, receives the answer and the region's descriptor.
const char* exchange(int fd, int* region_fd, uint64_t* region_bytes) {
  schema::Hello hello = {schema::kRegionMagic, schema::kWireVersion,
                         static_cast<uint32_t>(sys::getpid())};
  iovec out = {&hello, sizeof(hello)};
  msghdr message{};
  message.msg_iov = &out;
  message.msg_iovlen = 1;
  if (sys::sendmsg(fd, &message, MSG_NOSIGNAL) != sizeof(hello)) return "the collector hung up";

  schema::HelloReply reply{};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  iovec in = {&reply, sizeof(reply)};
  message = {};
  message.msg_iov = &in;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const long received = receive(fd, &message);
  const cmsghdr* header = received > 0 ? CMSG_FIRSTHDR(&message) : nullptr;
  *region_fd = -1;
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
      header->cmsg_len == CMSG_LEN(sizeof(int))) {
    memcpy(region_fd, CMSG_DATA(header), sizeof(int));
  }
  *region_bytes = reply.region_bytes;
  if (received == -EAGAIN) return kRecordingEnded;
  if (received != sizeof(reply) || reply.magic != schema::kRegionMagic) {
    return "the collector did not answer";
  }
  if (reply.wire_version != schema::kWireVersion) return kOtherVersion;
  if (reply.status != schema::HelloStatus::kOk) return kRecordingEnded;
  return *region_fd < 0 ? "the collector sent no memory" : nullptr;
}

}  // namespace

uint64_t mapping_allowance(uint64_t wanted) noexcept {
  rlimit limit{};
  if (sys::failed(sys::call(SYS_prlimit64, 0, RLIMIT_AS, 0, sys::word(&limit)))) return wanted;
  if (limit.rlim_cur == RLIM_INFINITY) return wanted;
  const uint64_t share = limit.rlim_cur / kLimitShare;
  return share < wanted ? share : wanted;
}

const char* map_region(int fd, uint64_t region_bytes, Region* region) noexcept {
  if (region_bytes < sizeof(ControlPage)) return "the region is too small";
  constexpr int kProtection = PROT_READ | PROT_WRITE;
  long address = own_mmap(nullptr, sizeof(ControlPage), PROT_READ, MAP_SHARED, fd);
  if (sys::failed(address)) return "no memory for the shared region";
  const auto* header = reinterpret_cast<const ControlPage*>(address);
  const bool sound = header->magic == schema::kRegionMagic &&
                     header->wire_version == schema::kWireVersion &&
                     layout_is_sound(*header, region_bytes);
  const uint64_t data_offset = header->data_offset;
  const uint64_t ring_bytes = header->ring_bytes;
  const uint32_t slots = header->ring_slots;
  own_munmap(reinterpret_cast<void*>(address), sizeof(ControlPage));
  if (!sound) return "the shared region is damaged";

  const uint64_t allowed = mapping_allowance(region_bytes);
  if (allowed < data_offset + ring_bytes) return "the address space limit leaves no room for it";
  const uint64_t rings = (allowed - data_offset) / ring_bytes;
  const auto usable = static_cast<uint32_t>(rings < slots ? rings : slots);
  const uint64_t bytes = data_offset + usable * ring_bytes;
  address = own_mmap(nullptr, bytes, kProtection, MAP_SHARED | MAP_NORESERVE, fd);
  if (sys::failed(address)) return "no memory for the shared region";
  auto* start = reinterpret_cast<std::byte*>(address);
  own_madvise(start, bytes, MADV_DONTDUMP);  // A core file is about the program.

  region->control = reinterpret_cast<ControlPage*>(start);
  region->processes =
      reinterpret_cast<schema::ProcessSlot*>(start + region->control->process_offset);
  region->rings = reinterpret_cast<schema::RingSlot*>(start + region->control->slot_offset);
  region->data = start + data_offset;
  region->ring_bytes = ring_bytes;
  region->process_slots = region->control->process_slots;
  region->ring_slots = usable;
  region->mapped_bytes = bytes;
  return nullptr;
}

const char* join_session(const char* name, Region* region) noexcept {
  int fd = -1;
  if (const char* why = connect_to(name, &fd)) return why;
  int region_fd = -1;
  uint64_t region_bytes = 0;
  const char* why = exchange(fd, &region_fd, &region_bytes);
  if (why == nullptr) why = map_region(region_fd, region_bytes, region);
  if (region_fd >= 0) sys::close(region_fd);
  sys::close(fd);
  return why;
}

}  // namespace heapledger::trace
