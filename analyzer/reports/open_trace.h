// SPDX-License-Identifier: Apache-2.0
// Opens a trace for reports, finalizing it first where that has not been done.
//
// A file that cannot be written is copied to a temporary database (SQLite's own, gone when closed)
// and finalized there. A trace that is still being recorded is refused; one whose recording was cut
// short is read up to the cut, with a note.
#pragma once

#include <string>

#include "analyzer/reports/report.h"
#include "analyzer/symbols/symbol_files.h"

namespace heapledger::analyzer {

Trace open_for_report(const std::string& path);

// Only `heapledger-analyzer finalize`: in the file itself, or an Error. Where that was done
// already, frames without a name are looked for once more.
void finalize_file(const std::string& path, const SymbolOptions& symbols = {});

}  // namespace heapledger::analyzer
