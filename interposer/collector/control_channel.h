// SPDX-License-Identifier: Apache-2.0
// The line to whoever started the collector: one JSON object per message, over a SOCK_SEQPACKET
// socketpair; or, for the shim, which has no JSON parser, bare text ("ready NAME", "error TEXT").
//
// The starter may vanish at any time; then sending does nothing.
// Thread safety: send by any thread, receive by one.
#pragma once

#include <sys/types.h>

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

class ControlChannel {
 public:
  ControlChannel(int fd, bool plain);

  int fd() const { return fd_.get(); }  // -1: nobody listens.
  bool is_open() const { return static_cast<bool>(fd_); }
  bool is_plain() const { return plain_; }
  // Who made the socketpair; 0: unknown.
  pid_t starter() const;

  void ready(const std::string& session, const std::string& output);
  void error(const std::string& what, const std::string& why);
  void send(const nlohmann::json& message);  // Not in plain mode.

  // The next message; nothing when there is none, or when the other side has gone (then is_open()
  // turns false).
  std::optional<nlohmann::json> receive();

 private:
  void send_text(const std::string& text);

  UniqueFd fd_;
  bool plain_;
};

}  // namespace heapledger::collector
