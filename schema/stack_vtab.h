// SPDX-License-Identifier: Apache-2.0
// The table `stack` of a trace with many stacks: packed batches as rows of SQL.
//
//     stack(id, parent, frame)
//
// Eponymous-only, like `event`: it shows where the file has no ordinary table of that name. Stacks
// are read one by one towards the root, so `id = ?` is quick: batches stay decoded while there is
// room for them. Rows come in order of id. A damaged batch has "[incomplete]" for each of its rows.
//
// The source is compiled twice, like schema/event_vtab.cc, which registers it.
#pragma once

struct sqlite3_module;

namespace heapledger::schema {

const sqlite3_module* stack_module();

}  // namespace heapledger::schema
