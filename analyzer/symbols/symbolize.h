// SPDX-License-Identifier: Apache-2.0
// Fills table `symbol` for every frame of a trace that has no name yet.
// Thread safety: as its Database.
#pragma once

#include "schema/trace_db.h"

namespace heapledger::analyzer {

// A frame's offset is a return address: the call is the instruction before it, so offset - 1 is
// looked up. Frames of a module that is missing, or is another file by now, get no row.
void symbolize(schema::Database& db);

}  // namespace heapledger::analyzer
