// SPDX-License-Identifier: Apache-2.0
// The rules by which a process's allocator kept freed chunks, for the replay.
// Thread safety: as its Database.
#pragma once

#include "analyzer/replay/freed_chunks.h"
#include "analyzer/trace_info.h"

namespace heapledger::analyzer {

FreedChunkRules recorded_cache_rules(schema::Database& db, const TraceInfo& info, int64_t process);

}  // namespace heapledger::analyzer
