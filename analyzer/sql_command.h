// SPDX-License-Identifier: Apache-2.0
// `heapledger sql`: a query over a trace, read-only, with the tables `event` and `fault`.
#pragma once

#include <cstdio>
#include <string>

namespace heapledger::analyzer {

enum class SqlFormat { kList, kCsv, kJson };

// Writes the rows of every statement in `sql` to `out` as they come: separated by '|' as the
// sqlite3 shell does, as CSV, or as one JSON array of objects. Throws Error.
void run_sql(const std::string& trace_path, const std::string& sql, SqlFormat format, bool header,
             std::FILE* out);

}  // namespace heapledger::analyzer
