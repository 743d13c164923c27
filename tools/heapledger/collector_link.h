// SPDX-License-Identifier: Apache-2.0
// The collector as `record` sees it: a process started here, but no child of ours (forked twice, in
// a session of its own), that talks JSON over a SOCK_SEQPACKET pair, one object a message.
//
// Its ends: the collector keeps no descriptor of ours but its end of the pair; its stdin, stdout
// and stderr are /dev/null, because it outlives us where recorded processes do, and must not keep a
// user's pipe open.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "tools/heapledger/descriptor.h"
#include "tools/heapledger/record_options.h"

namespace heapledger::front {

class CollectorLink {
 public:
  // Starts the collector with these options in its environment and waits until it serves. Throws
  // what it says is wrong (the file exists, the folder is not writable, ...).
  explicit CollectorLink(const OptionValues& options);

  const std::string& session() const { return session_; }  // HEAPLEDGER_SESSION of the program.
  const std::string& output() const { return output_; }    // Absolute path of the trace.
  int descriptor() const { return socket_.number(); }
  bool is_open() const { return socket_.is_open(); }

  // False where the collector is gone; the link is closed then.
  bool send(const nlohmann::json& message);

  // Waits for one message. Nothing where the collector is gone, or silent for a minute; the link
  // is closed then.
  std::optional<nlohmann::json> receive();

 private:
  Descriptor socket_;
  std::string session_;
  std::string output_;
};

}  // namespace heapledger::front
