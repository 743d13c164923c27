// SPDX-License-Identifier: Apache-2.0
#include "analyzer/symbols/symbol_files.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <utility>
#include <vector>

extern char** environ;

namespace heapledger::analyzer {

namespace {

using Clock = std::chrono::steady_clock;

// What a program prints on one line, if it ends well within `limit`; then that is spent.
std::string output_of(char* const argv[], const std::string& servers,
                      std::chrono::milliseconds& limit) {
  const auto begin = Clock::now();
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return "";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::string variable = "DEBUGINFOD_URLS=" + servers;
  std::vector<char*> environment = {variable.data()};
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  environment.push_back(nullptr);
  pid_t child = 0;
  const int error = posix_spawnp(&child, argv[0], &actions, nullptr, argv, environment.data());
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string text;
  bool in_time = error == 0;
  while (in_time) {
    const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin);
    pollfd ready{ends[0], POLLIN, 0};
    in_time = spent < limit && poll(&ready, 1, static_cast<int>((limit - spent).count())) > 0;
    char bytes[4096];
    const ssize_t count = in_time ? read(ends[0], bytes, sizeof bytes) : 0;
    if (count <= 0) break;
    text.append(bytes, static_cast<size_t>(count));
  }
  close(ends[0]);
  if (error != 0) return "";
  if (!in_time) kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin);
  limit -= std::min(limit, spent);
  if (!in_time || !WIFEXITED(status) || WEXITSTATUS(status) != 0) return "";
  return text.substr(0, text.find('\n'));
}

}  // namespace

SymbolFiles::SymbolFiles(SymbolOptions options) : options_(std::move(options)) {
  if (const char* servers = std::getenv(kServersVariable)) servers_ = servers;
  const char* limit = std::getenv(kServersLimitVariable);
  const std::string_view text = limit == nullptr ? "" : limit;
  uint32_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error == std::errc() && end == text.data() + text.size()) {
    options_.debuginfod_limit = std::chrono::seconds(seconds);
  }
}

std::unique_ptr<ElfFile> SymbolFiles::open(const std::string& path, const std::string& build_id) {
  if (auto file = ElfFile::open(options_.sysroot + path, build_id)) return file;
  return build_id.empty() ? nullptr : by_build_id(build_id);
}

std::unique_ptr<ElfFile> SymbolFiles::by_build_id(const std::string& build_id) {
  if (build_id.size() <= 2) return nullptr;
  const std::string name = options_.sysroot + "/usr/lib/debug/.build-id/" + build_id.substr(0, 2) +
                           "/" + build_id.substr(2);
  for (const char* ending : {".debug", ""}) {
    if (auto file = ElfFile::open(name + ending, build_id)) return file;
  }
  if (auto file = fetch("debuginfo", build_id)) return file;
  return fetch("executable", build_id);
}

std::unique_ptr<ElfFile> SymbolFiles::open_debug(const ElfFile& file, const std::string& path) {
  if (auto found = ElfFile::find_debug_file(file, path, options_.sysroot)) return found;
  const std::string build_id = file.build_id();
  auto fetched = build_id.empty() ? nullptr : fetch("debuginfo", build_id);
  return fetched && fetched->dwarf() != nullptr ? std::move(fetched) : nullptr;
}

std::unique_ptr<ElfFile> SymbolFiles::fetch(const char* kind, const std::string& build_id) {
  if (servers_.empty() || options_.debuginfod_limit.count() <= 0) return nullptr;
  std::string program = "debuginfod-find";
  std::string what = kind;
  std::string id = build_id;
  char* const argv[] = {program.data(), what.data(), id.data(), nullptr};
  const std::string path = output_of(argv, servers_, options_.debuginfod_limit);
  return path.empty() ? nullptr : ElfFile::open(path, build_id);
}

}  // namespace heapledger::analyzer
