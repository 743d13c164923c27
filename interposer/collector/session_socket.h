// SPDX-License-Identifier: Apache-2.0
// The door for new images, and for `heapledger mark`: an abstract AF_UNIX SOCK_SEQPACKET socket,
// whose name is in the environment of every program that is recorded. Abstract: nothing is left
// behind in a file system, and a program that changed its root still reaches it.
//
// Whoever connects sends a Hello and gets the memfd of a region made for it, or a MarkRequest and
// gets a count. Only processes of our own user (or root) are answered: the name is not a secret.
//
// Thread safety: one thread (observer).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>

#include "interposer/collector/unique_fd.h"
#include "schema/shared_region.h"

namespace heapledger::collector {

// Marks that were asked for from outside.
struct MarkWish {
  uint32_t pid = 0;  // 0: every process of the trace.
  uint64_t device = 0;
  uint64_t inode = 0;
  std::string text;
};

// An image, or whoever wants a mark, that waits for its reply.
struct Caller {
  UniqueFd connection;
  pid_t pid = 0;         // SO_PEERCRED: in our pid namespace.
  uint32_t own_pid = 0;  // As it sees itself.
  bool version_fits = false;
  bool hung_up = false;  // It waits no more.
  std::optional<MarkWish> mark;
};

class SessionSocket {
 public:
  SessionSocket();  // Throws schema::Error.
  ~SessionSocket();
  SessionSocket(const SessionSocket&) = delete;
  SessionSocket& operator=(const SessionSocket&) = delete;

  // Readable when a caller waits. The second is -1 where there is no socket with a path.
  int fd() const { return listener_.get(); }
  int path_fd() const { return path_listener_.get(); }
  const std::string& name() const { return name_; }  // Without the leading zero byte.

  // The next caller that said a whole Hello or MarkRequest; nothing when there is none. A caller
  // that connects and stays silent is dropped after `patience`.
  std::optional<Caller> next_caller(std::chrono::milliseconds patience);

 private:
  std::optional<Caller> next_caller_at(const UniqueFd& listener,
                                       std::chrono::milliseconds patience);

  UniqueFd listener_;
  // For images in another network namespace, which has abstract names of its own.
  UniqueFd path_listener_;
  std::string path_;
  std::string name_;
};

// False: the caller has gone meanwhile.
bool reply_with_region(const Caller& caller, int region_fd, uint64_t region_bytes);
void reply_refused(const Caller& caller);
void reply_marked(const Caller& caller, uint32_t processes);

}  // namespace heapledger::collector
