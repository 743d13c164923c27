// SPDX-License-Identifier: Apache-2.0
// heapledger-collector [--control-fd N] [--plain]: the process that writes the trace. Started by
// `heapledger record`, or by the shim itself under a bare LD_PRELOAD; not by people.
#include <fmt/format.h>
#include <malloc.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>

#include "interposer/collector/collector.h"
#include "interposer/collector/control_channel.h"
#include "interposer/collector/options.h"
#include "schema/error.h"

namespace {

// Nothing of the program's or of the starter's stays open: a pipe's reader must see it end.
void close_foreign_descriptors(int keep) {
  const auto close_from_to = [](unsigned from, unsigned to) {
    if (from <= to) close_range(from, to, 0);
  };
  if (keep < 3) {
    close_from_to(3, ~0U);
    return;
  }
  close_from_to(3, static_cast<unsigned>(keep) - 1);
  close_from_to(static_cast<unsigned>(keep) + 1, ~0U);
}

// Each image and each process costs a few descriptors.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// For `heapledger doctor`, which may have other rights than this file.
int probe_syscalls() {
  std::string why;
  const bool can = heapledger::collector::can_see_syscalls(why);
  if (!can) fmt::print("{}\n", why);
  return can ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace heapledger;
  const collector::Options options = collector::read_options(argc, argv);
  close_foreign_descriptors(options.control_fd);
  raise_descriptor_limit();
  if (options.probe_syscalls) return probe_syscalls();
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // A file size limit is an error like a full disk.
  // Windows of some MiB come and go: without this each would be mapped, faulted in and unmapped.
  // One arena, because the windows are made in one thread and freed in another.
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, 64 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  collector::ControlChannel control(options.control_fd, options.plain);
  try {
    collector::Collector recording(options, control);
    recording.run();
    return 0;
  } catch (const schema::Error& error) {
    // The text ends with ": why" where nothing was added while unwinding.
    std::string what = error.what();
    if (what.ends_with(": " + error.why())) what.resize(what.size() - error.why().size() - 2);
    control.error(what, error.why());
    if (!control.is_open()) fmt::print(stderr, "heapledger: record: {}\n", error.what());
  } catch (const std::exception& error) {
    control.error("the collector failed", error.what());
  }
  return 1;
}
