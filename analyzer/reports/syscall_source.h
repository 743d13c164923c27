// SPDX-License-Identifier: Apache-2.0
// Who saw the memory system calls of a trace: the kernel every one, the wrappers those that the
// allocator made or that went through libc's functions.
#pragma once

#include <string>

#include "analyzer/reports/report.h"

namespace heapledger::analyzer {

// As a sentence.
std::string syscall_source_text(const ReportInput& input);
// Keys of a report's JSON: syscall_source, and with the kernel syscalls_lost, syscalls_unmatched.
void add_syscall_source(const ReportInput& input, Document& document);
// What is missing or doubtful; empty: nothing.
std::string syscall_loss_text(Trace& trace);

}  // namespace heapledger::analyzer
