// SPDX-License-Identifier: Apache-2.0
// `heapledger-analyzer model`: the system calls a model makes on a recording's calls, as JSON. Not
// in --help: for tools/bench/fidelity and for tests, which compare them with the real ones.
//
//     {"layout", "process", "unmatched_ends", "held_bytes_peak", "counts": {name: n, ...},
//      "syscalls": [{name, bytes, old_bytes, cause, ok, operation, function, size, thread}, ...]}
//
// `operation` counts the process's own operations from 0; `function` and `size` are those of the
// call that led to the system call.
#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace heapledger::analyzer {

// `layout`: glibc | header16. `process`: row of table process; by default the first that was
// recorded.
void run_model(const std::string& path, const std::string& layout, std::optional<int64_t> process,
               FILE* out);

}  // namespace heapledger::analyzer
