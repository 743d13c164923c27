// SPDX-License-Identifier: Apache-2.0
// What a page fault costs, for turning counts into nanoseconds.
#pragma once

#include <cstdint>

#include "schema/trace_db.h"

namespace heapledger::analyzer {

// meta.ns_per_fault where the recording measured it. Else measured here and now, on this machine,
// and written to meta with ns_per_fault_source = "measured at analysis".
int64_t fault_cost_ns(schema::Database& db);

}  // namespace heapledger::analyzer
