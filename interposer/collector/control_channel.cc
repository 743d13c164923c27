// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/control_channel.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <vector>

namespace heapledger::collector {
namespace {

constexpr size_t kMessageBytesMax = 4U << 20;  // A command line may be 2 MiB.

}  // namespace

ControlChannel::ControlChannel(int fd, bool plain) : fd_(fd), plain_(plain) {
  if (fd >= 0) fcntl(fd, F_SETFD, FD_CLOEXEC);
}

pid_t ControlChannel::starter() const {
  ucred peer{};
  socklen_t bytes = sizeof peer;
  if (!fd_ || getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return 0;
  return peer.pid;
}

void ControlChannel::send_text(const std::string& text) {
  if (fd_) ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

void ControlChannel::send(const nlohmann::json& message) {
  if (plain_) return;
  send_text(message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void ControlChannel::ready(const std::string& session, const std::string& output) {
  if (plain_) {
    send_text("ready " + session);
  } else {
    send({{"type", "ready"}, {"session", session}, {"output", output}});
  }
}

void ControlChannel::error(const std::string& what, const std::string& why) {
  if (plain_) {
    send_text("error " + what + ": " + why);
  } else {
    send({{"type", "error"}, {"what", what}, {"why", why}});
  }
}

std::optional<nlohmann::json> ControlChannel::receive() {
  if (!fd_) return std::nullopt;
  std::vector<char> text(kMessageBytesMax);
  const ssize_t got = recv(fd_.get(), text.data(), text.size(), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return std::nullopt;
  if (got <= 0) {
    fd_.reset();
    return std::nullopt;
  }
  auto message = nlohmann::json::parse(text.begin(), text.begin() + got, nullptr, false);
  if (!message.is_object()) return std::nullopt;
  return message;
}

}  // namespace heapledger::collector
