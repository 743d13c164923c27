// SPDX-License-Identifier: Apache-2.0
// The final pass: replays every recorded process once and fills the tables that reports read (site,
// timeline, fragmentation, free_histogram, pinner, fault_site, fidelity, symbol,
// fault_batch.attribution).
//
// All in one transaction: a trace is finalized or it is not. Damaged batches are left out and noted
// in table `mark`.
// Thread safety: as its Database. Cost: one pass over all events.
#pragma once

#include "analyzer/symbols/symbol_files.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

// meta.finalized. Changes with what the pass writes.
inline constexpr int64_t kFinalizeVersion = 6;

bool is_finalized(schema::Database& db);
// Does nothing where that was done already.
void finalize(schema::Database& db, const SymbolOptions& symbols = {});

}  // namespace heapledger::analyzer
