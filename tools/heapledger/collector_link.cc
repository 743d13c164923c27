// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/collector_link.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "tools/heapledger/command_error.h"
#include "tools/heapledger/companions.h"

namespace heapledger::front {

namespace {

constexpr int kControlNumber = 3;      // The control socket's number in the collector.
constexpr int kSilenceMaxMs = 60'000;  // It speaks every second; only a stopped one is silent.
constexpr size_t kMessageBytesMax = size_t{1} << 20;

// A nested recording: what the outer one put into our environment is not for the new collector.
void clean_environment() {
  unsetenv("HEAPLEDGER_SESSION");
  const char* preload = std::getenv("LD_PRELOAD");
  if (preload != nullptr && std::string(preload).find("libheapledger.so") != std::string::npos) {
    unsetenv("LD_PRELOAD");
  }
}

[[noreturn]] void become_collector(const std::string& path, int control,
                                   const OptionValues& options) {
  sigset_t none;
  sigemptyset(&none);
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  clean_environment();
  for (const auto& [variable, value] : options) setenv(variable.c_str(), value.c_str(), 1);

  // The control socket may have any number: lift it clear of 0..3 first.
  const int lifted = fcntl(control, F_DUPFD_CLOEXEC, kControlNumber + 1);
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int number = 0; number < kControlNumber; ++number) dup2(null, number);
  dup2(lifted, kControlNumber);
  close_range(kControlNumber + 1, ~0U, 0);
  execl(path.c_str(), path.c_str(), "--control-fd", std::to_string(kControlNumber).c_str(),
        static_cast<char*>(nullptr));
  const std::string why = std::strerror(errno);
  const std::string message =
      nlohmann::json{{"type", "error"}, {"what", path}, {"why", why}}.dump();
  send(kControlNumber, message.data(), message.size(), MSG_NOSIGNAL);
  _exit(kFailure);
}

// Forks twice: init, not we, is the collector's parent, so it never shows in a wait() of ours.
void start_process(const std::string& path, int control, const OptionValues& options) {
  const pid_t between = fork();
  if (between < 0) throw system_error("fork");
  if (between == 0) {
    setsid();
    const pid_t collector = fork();
    if (collector == 0) become_collector(path, control, options);
    _exit(collector < 0 ? errno : 0);
  }
  int status = 0;
  while (waitpid(between, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
    throw system_error("fork", WEXITSTATUS(status));
}

}  // namespace

CollectorLink::CollectorLink(const OptionValues& options) {
  const std::string path = find_collector();
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    throw system_error("socketpair");
  socket_ = Descriptor(ends[0]);
  {
    const Descriptor other(ends[1]);
    start_process(path, other.number(), options);
  }
  const auto answer = receive();
  if (!answer) throw CommandError(path, "ended before it was ready");
  if (answer->value("type", "") != "ready") {
    throw CommandError(answer->value("what", path), answer->value("why", "cannot record"));
  }
  session_ = answer->value("session", "");
  output_ = answer->value("output", "");
}

bool CollectorLink::send(const nlohmann::json& message) {
  if (!is_open()) return false;
  // Arguments are bytes, not always UTF-8.
  const std::string text = message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (::send(socket_.number(), text.data(), text.size(), MSG_NOSIGNAL) >= 0) return true;
  socket_.reset();
  return false;
}

std::optional<nlohmann::json> CollectorLink::receive() {
  std::vector<char> buffer(kMessageBytesMax);
  while (is_open()) {
    pollfd ready{socket_.number(), POLLIN, 0};
    const int events = poll(&ready, 1, kSilenceMaxMs);
    if (events < 0 && errno == EINTR) continue;
    if (events <= 0) break;
    const ssize_t size = recv(socket_.number(), buffer.data(), buffer.size(), 0);
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) break;
    auto message = nlohmann::json::parse(buffer.data(), buffer.data() + size, nullptr, false);
    if (!message.is_discarded() && message.is_object()) return message;
  }
  socket_.reset();
  return std::nullopt;
}

}  // namespace heapledger::front
