// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/session_socket.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "schema/error.h"

namespace heapledger::collector {
namespace {

sockaddr_un abstract_address(const std::string& name, socklen_t& bytes) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

sockaddr_un path_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), std::min(path.size() + 1, sizeof address.sun_path));
  return address;
}

UniqueFd new_socket() {
  return UniqueFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

bool listens(const UniqueFd& socket, const sockaddr_un& address, socklen_t bytes) {
  return socket && bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), bytes) == 0 &&
         listen(socket.get(), 1024) == 0;
}

// Reads what the caller said; false where it makes no sense.
bool read_request(int fd, Caller& caller) {
  schema::MarkRequest request{};
  const ssize_t got = recv(fd, &request, sizeof request, MSG_DONTWAIT);
  if (got == static_cast<ssize_t>(sizeof(schema::Hello))) {
    schema::Hello hello{};
    std::memcpy(&hello, &request, sizeof hello);
    caller.own_pid = hello.pid;
    caller.version_fits = hello.wire_version == schema::kWireVersion;
    return hello.magic == schema::kRegionMagic;
  }
  constexpr auto kHead = static_cast<ssize_t>(offsetof(schema::MarkRequest, text));
  if (got < kHead || request.magic != schema::kMarkMagic) return false;
  if (request.text_bytes != static_cast<size_t>(got - kHead)) return false;
  caller.version_fits = request.wire_version == schema::kWireVersion;
  caller.mark = MarkWish{request.pid, request.device, request.inode,
                         std::string(request.text, request.text_bytes)};
  return true;
}

bool send_reply(const Caller& caller, const schema::HelloReply& reply, int fd) {
  schema::HelloReply copy = reply;
  iovec part{&copy, sizeof copy};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  return sendmsg(caller.connection.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(sizeof copy);
}

}  // namespace

SessionSocket::SessionSocket() {
  uint64_t random = 0;
  if (getrandom(&random, sizeof random, 0) != static_cast<ssize_t>(sizeof random)) random = 0;
  name_ = fmt::format("heapledger-{}-{:016x}", getpid(), random);
  listener_ = new_socket();
  socklen_t bytes = 0;
  const sockaddr_un address = abstract_address(name_, bytes);
  if (!listens(listener_, address, bytes)) {
    throw schema::Error("cannot open the session's socket", std::strerror(errno));
  }
  path_ = schema::kSessionFolder + name_;
  path_listener_ = new_socket();
  if (listens(path_listener_, path_address(path_), sizeof(sockaddr_un))) {
    chmod(path_.c_str(), 0666);  // Who may call is decided by the caller's user.
  } else {
    path_listener_ = UniqueFd();
  }
}

SessionSocket::~SessionSocket() {
  if (path_listener_) unlink(path_.c_str());
}

std::optional<Caller> SessionSocket::next_caller(std::chrono::milliseconds patience) {
  if (auto caller = next_caller_at(listener_, patience)) return caller;
  if (!path_listener_) return std::nullopt;
  return next_caller_at(path_listener_, patience);
}

std::optional<Caller> SessionSocket::next_caller_at(const UniqueFd& listener,
                                                    std::chrono::milliseconds patience) {
  for (;;) {
    Caller caller;
    caller.connection = UniqueFd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!caller.connection) return std::nullopt;
    const int fd = caller.connection.get();
    ucred peer{};
    socklen_t bytes = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) continue;
    if (peer.uid != geteuid() && peer.uid != 0 && geteuid() != 0) continue;
    pollfd waiting{fd, POLLIN, 0};
    if (poll(&waiting, 1, static_cast<int>(patience.count())) != 1) continue;
    if (!read_request(fd, caller)) continue;
    caller.pid = peer.pid;
    pollfd line{fd, POLLRDHUP, 0};
    caller.hung_up = poll(&line, 1, 0) == 1;
    return caller;
  }
}

bool reply_with_region(const Caller& caller, int region_fd, uint64_t region_bytes) {
  return send_reply(
      caller, {schema::kRegionMagic, schema::kWireVersion, schema::HelloStatus::kOk, region_bytes},
      region_fd);
}

void reply_refused(const Caller& caller) {
  send_reply(caller, {schema::kRegionMagic, schema::kWireVersion, schema::HelloStatus::kRefused, 0},
             -1);
}

void reply_marked(const Caller& caller, uint32_t processes) {
  const schema::MarkReply reply{schema::kMarkMagic, processes, 0};
  send(caller.connection.get(), &reply, sizeof reply, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace heapledger::collector
