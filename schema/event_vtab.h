// SPDX-License-Identifier: Apache-2.0
// The tables `event` and `fault`, and in large traces `site` and `stack`: packed batches as rows of
// SQL.
//
//     event(time_ns, process, thread, kind, id, address, size, usable, alignment, ended_id, stack)
//     fault(time_ns, process, thread, address, ip, major, kernel, block_id, site, touch)
//
//     site(process, stack, calls, ...)      as schema.sql has it
//     stack(id, parent, frame)              schema/stack_vtab.h
//
// They are eponymous-only virtual tables: they exist on every connection that registered the
// module, and no trace names them, so that a plain sqlite3 opens and dumps every trace. Rows come
// batch by batch, so not in order of time: say ORDER BY time_ns. Conditions on process, time_ns,
// kind and id are used to skip batches and rows; only columns that the query names are unpacked.
// An ordinary table of the same name hides its virtual one: `site` and `stack` are in a file that
// has few of them.
//
// The source is compiled twice: into the library, and into heapledger_sqlite.so for the sqlite3
// shell (`.load`).
#pragma once

struct sqlite3;

namespace heapledger::schema {

// Returns an SQLite result code. open_trace() has called it already.
int register_trace_modules(sqlite3* db);

}  // namespace heapledger::schema
