// SPDX-License-Identifier: Apache-2.0
// What `record` says on stderr: one line of progress, rewritten in place where stderr is a terminal
// in line mode and we are in its foreground; warnings; the result at the end. Nothing but warnings
// under
// --quiet. Never on stdout, which is the program's. A stderr that is gone is no error.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace heapledger::front {

class Narration {
 public:
  Narration(std::string program, bool quiet);
  ~Narration() { clear_line(); }
  Narration(const Narration&) = delete;
  Narration& operator=(const Narration&) = delete;

  void progress(const nlohmann::json& message);  // The collector's "progress".
  void packing(const nlohmann::json& message);   // "packing": the program has ended.
  void clear_line();                             // Before anything else writes to the terminal.
  void warn(const std::string& text);            // A line under --quiet too.
  void say(const std::string& text);

  // The result: how the program ended, the collector's "finished", and what to do next.
  void result(int wait_status, double elapsed_seconds, const nlohmann::json& finished);
  // In place of the result: the collector was lost, and this is what is left.
  void cut(int wait_status, double elapsed_seconds, const std::string& trace);
  void still_running(const nlohmann::json& running, const std::string& trace);

 private:
  std::string program_;  // Its name, without the folder.
  bool quiet_;
  bool line_shown_ = false;
};

// "ended with status 1", "was killed by SIGSEGV (Segmentation fault)".
std::string ending_text(int wait_status);

// 12,345,678 and 11.8 MiB, as people read them.
std::string grouped(uint64_t number);
std::string bytes_text(uint64_t bytes);

// A path as a shell takes it; relative where it lies under the current folder.
std::string shell_word(const std::string& text);
std::string short_path(const std::string& path);

}  // namespace heapledger::front
