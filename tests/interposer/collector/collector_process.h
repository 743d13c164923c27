// SPDX-License-Identifier: Apache-2.0
// The collector as a program, driven by a test the way `heapledger record` drives it: start it, say
// "launch" for a child that waits, let the child go, wait for it, say "exited", read "finished".
#pragma once

#include <sys/types.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace heapledger::collector::testing {

using Environment = std::map<std::string, std::string>;

class CollectorProcess {
 public:
  // `user`: 0 or another uid to run as (only root can).
  explicit CollectorProcess(const Environment& environment, uid_t user = 0);
  ~CollectorProcess();

  // The next message of this type; null after `seconds`.
  nlohmann::json wait_for(const std::string& type, int seconds = 20);
  void send(const nlohmann::json& message);
  void hang_up();  // Closes the control channel.
  pid_t pid() const { return pid_; }
  int wait_exit();  // Waits for the collector itself; its wait status.

  // Forks a child that runs `body(session)` once the collector is attached. The child is started
  // with an exec of nothing: perf is enabled by enable_on_exec only, so a program is run with
  // run().
  pid_t run(const std::vector<std::string>& command, const std::string& session, uid_t user = 0);
  // Waits for the child and reports its end. Returns its wait status.
  int report_end(pid_t child);

  nlohmann::json attached;  // The answer to the launch.

 private:
  int fd_ = -1;
  pid_t pid_ = 0;
  bool waited_ = false;
};

// A fresh folder that any user may write to, removed at the end.
struct Folder {
  Folder();
  ~Folder();
  std::string file(const std::string& name) const { return path + "/" + name; }
  std::string path;
};

}  // namespace heapledger::collector::testing
