// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/mark.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "schema/shared_region.h"
#include "tools/heapledger/command_error.h"
#include "tools/heapledger/command_line.h"
#include "tools/heapledger/descriptor.h"

namespace heapledger::front {

namespace {

using schema::MarkReply;
using schema::MarkRequest;

constexpr timeval kPatience = {10, 0};  // A collector answers at once, or has been stopped.
constexpr char kSessionPrefix[] = "heapledger-";

enum class Answer { kNobody, kNotMine, kMarked };

// Of all recordings on this machine: abstract names, and those of other network namespaces.
std::set<std::string> session_names() {
  std::set<std::string> names;
  std::ifstream sockets("/proc/net/unix");
  for (std::string line; std::getline(sockets, line);) {
    const size_t at = line.find(std::string(" @") + kSessionPrefix);
    if (at != std::string::npos) names.insert(line.substr(at + 2));
  }
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(schema::kSessionFolder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kSessionPrefix) && entry.is_socket(ignored)) names.insert(name);
  }
  return names;
}

bool connect_to(int fd, const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = schema::kSessionFolder + name;
  if (path.size() >= sizeof address.sun_path) return false;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), bytes) == 0) return true;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

Answer ask(const std::string& name, const MarkRequest& request) {
  const Descriptor line(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!line.is_open()) throw system_error("socket");
  for (const int option : {SO_SNDTIMEO, SO_RCVTIMEO}) {
    setsockopt(line.number(), SOL_SOCKET, option, &kPatience, sizeof kPatience);
  }
  if (!connect_to(line.number(), name)) return Answer::kNobody;
  const size_t bytes = offsetof(MarkRequest, text) + request.text_bytes;
  MarkReply reply{};
  const bool answered =
      send(line.number(), &request, bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes) &&
      recv(line.number(), &reply, sizeof reply, 0) == static_cast<ssize_t>(sizeof reply) &&
      reply.magic == schema::kMarkMagic;
  if (!answered) return Answer::kNobody;
  return reply.processes != 0 ? Answer::kMarked : Answer::kNotMine;
}

// Says in the request what is to be marked.
void name_target(const std::string& target, MarkRequest& request) {
  struct stat file {};
  const bool is_file = stat(target.c_str(), &file) == 0 && S_ISREG(file.st_mode);
  uint32_t pid = 0;
  const auto [end, error] = std::from_chars(target.data(), target.data() + target.size(), pid);
  if (error == std::errc() && end == target.data() + target.size() && pid != 0 && !is_file) {
    request.pid = pid;
    return;
  }
  if (!is_file) throw CommandError(target, "neither a process number nor a trace");
  request.device = file.st_dev;
  request.inode = file.st_ino;
}

}  // namespace

int run_mark(const std::vector<std::string>& arguments) {
  CLI::App app(
      "Set a mark in a running recording: a row of table mark, a line in `timeline`, and a "
      "snapshot "
      "of the process.",
      "heapledger mark");
  set_usage(app, "Usage: heapledger mark PID|TRACE TEXT");
  const CommandLine line = split_command(app, arguments);
  if (!parse_options(app, line.options)) return 0;
  if (line.program.size() != 2) {
    throw CommandError("PID|TRACE TEXT", "two words are needed; try --help", kUsage);
  }
  const std::string& target = line.program[0];
  const std::string& text = line.program[1];
  if (text.empty() || text.size() > schema::kMarkTextMax) {
    throw CommandError("TEXT", "between 1 and " + std::to_string(schema::kMarkTextMax) + " bytes",
                       kUsage);
  }
  MarkRequest request{};
  request.magic = schema::kMarkMagic;
  request.wire_version = schema::kWireVersion;
  name_target(target, request);
  request.text_bytes = static_cast<uint32_t>(text.size());
  std::copy(text.begin(), text.end(), request.text);
  for (const std::string& name : session_names()) {
    if (ask(name, request) == Answer::kMarked) return 0;
  }
  throw CommandError(target, request.pid != 0 ? "no recording of this process is running"
                                              : "it is not being recorded now");
}

}  // namespace heapledger::front
