// SPDX-License-Identifier: Apache-2.0
// What every virtual table of ours does alike towards SQLite. Included after SQLite's header, by
// the files that define one.
//
// Callbacks, the parameter, has the functions of an sqlite3_module by their names without "x", as
// statics. No exception may leave one: guarded(). Thread safety: as SQLite's connection.
#pragma once

#include <exception>
#include <new>

namespace heapledger::schema {

// Version 0 and no xCreate: eponymous-only.
template <typename Callbacks>
const sqlite3_module* eponymous_module() {
  static const sqlite3_module shared = [] {
    sqlite3_module made{};
    made.xConnect = &Callbacks::connect;
    made.xDisconnect = &Callbacks::disconnect;
    made.xBestIndex = &Callbacks::best_index;
    made.xOpen = &Callbacks::open;
    made.xClose = &Callbacks::close;
    made.xFilter = &Callbacks::filter;
    made.xNext = &Callbacks::next;
    made.xEof = &Callbacks::eof;
    made.xColumn = &Callbacks::column;
    made.xRowid = &Callbacks::rowid;
    return made;
  }();
  return &shared;
}

// xConnect: Vtab, which begins as an sqlite3_vtab and has a `db`, for columns as `declaration`, a
// CREATE TABLE, names them.
template <typename Vtab>
int connect_as(sqlite3* db, const char* declaration, sqlite3_vtab** out) {
  const int code = sqlite3_declare_vtab(db, declaration);
  if (code != SQLITE_OK) return code;
  sqlite3_vtab_config(db, SQLITE_VTAB_INNOCUOUS);
  auto* vtab = new (std::nothrow) Vtab{};
  if (vtab == nullptr) return SQLITE_NOMEM;
  vtab->db = db;
  *out = vtab;
  return SQLITE_OK;
}

inline void set_message(sqlite3_vtab* vtab, const char* message) {
  sqlite3_free(vtab->zErrMsg);
  vtab->zErrMsg = sqlite3_mprintf("%s", message);
}

// Runs `work`, which returns an SQLite code, and turns what it throws into one.
template <typename Work>
int guarded(sqlite3_vtab* vtab, Work work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return SQLITE_NOMEM;
  } catch (const std::exception& error) {
    set_message(vtab, error.what());
    return SQLITE_ERROR;
  }
}

}  // namespace heapledger::schema
