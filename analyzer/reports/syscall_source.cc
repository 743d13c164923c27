// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/syscall_source.h"

#include <fmt/format.h>

#include "analyzer/render/units.h"

namespace heapledger::analyzer {

std::string syscall_source_text(const ReportInput& input) {
  Trace& trace = input.trace();
  const std::string where = process_condition(input);
  if (trace.info.syscalls_are_all()) {
    const auto made_by = [&](const char* origin) {
      return trace.db
          .query_int(
              fmt::format("SELECT count(*) FROM syscall WHERE origin = '{}' AND {}", origin, where))
          .value_or(0);
    };
    return fmt::format(
        "Seen by the kernel: every call there was; the loader made {} of them, and {} are the "
        "recorder's own, in no table.",
        human_count(made_by("loader")), human_count(made_by("recorder")));
  }
  const auto note = schema::meta_text(trace.db, "syscall_note");
  return fmt::format(
      "Seen by the wrappers: the allocator's calls and the program's through libc, not the "
      "loader's, libc's own and raw ones ({}).",
      note ? "the kernel was not to be asked: " + *note : "record --syscalls kernel");
}

void add_syscall_source(const ReportInput& input, Document& document) {
  Trace& trace = input.trace();
  document.json["syscall_source"] = trace.info.syscall_source;
  if (!trace.info.syscalls_are_all()) return;
  for (const char* key : {"syscalls_lost", "syscalls_unmatched"}) {
    document.json[key] = schema::meta_int(trace.db, key).value_or(0);
  }
}

std::string syscall_loss_text(Trace& trace) {
  std::string text;
  const int64_t lost = schema::meta_int(trace.db, "syscalls_lost").value_or(0);
  const int64_t unmatched = schema::meta_int(trace.db, "syscalls_unmatched").value_or(0);
  if (lost != 0) {
    text = fmt::format("the kernel dropped {} records of system calls: some are in no row", lost);
  }
  if (unmatched != 0) {
    text += fmt::format(
        "{}{} system calls are known by their wrappers alone: the kernel's records "
        "lack them",
        text.empty() ? "" : "; ", unmatched);
  }
  return text;
}

}  // namespace heapledger::analyzer
