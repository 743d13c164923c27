// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/open_trace.h"

#include <fmt/format.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "analyzer/finalize/finalize.h"
#include "analyzer/symbols/symbolize.h"
#include "schema/error.h"
#include "schema/event_vtab.h"

namespace heapledger::analyzer {

namespace {

using schema::Database;
using schema::Error;
using schema::OpenMode;

// Does a collector have this file open? Told by /proc; processes of others are not looked into.
bool is_being_recorded(const std::string& path) {
  struct stat trace {};
  if (stat(path.c_str(), &trace) != 0) return false;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    std::ifstream comm(entry.path() / "comm");
    std::string name;
    if (!std::getline(comm, name) || !name.starts_with("heapledger-col")) continue;
    std::error_code denied;
    for (const auto& fd : std::filesystem::directory_iterator(entry.path() / "fd", denied)) {
      struct stat file {};
      if (stat(fd.path().c_str(), &file) == 0 && file.st_dev == trace.st_dev &&
          file.st_ino == trace.st_ino) {
        return true;
      }
    }
  }
  return false;
}

void refuse_live_recording(Database& db, const std::string& path) {
  if (schema::meta_text(db, "state") == "recording" && is_being_recorded(path)) {
    throw Error(fmt::format("cannot read trace '{}'", path), "it is still being recorded");
  }
}

// A copy that nobody else sees, in SQLite's own temporary file.
Database private_copy(Database& source) {
  sqlite3* handle = nullptr;
  if (sqlite3_open("", &handle) != SQLITE_OK) {
    sqlite3_close(handle);
    throw Error("cannot make a temporary database", "sqlite3_open failed");
  }
  Database copy(handle, "temporary copy of " + source.path());
  sqlite3_backup* backup = sqlite3_backup_init(handle, "main", source.handle(), "main");
  if (backup == nullptr) throw Error("cannot copy the trace", sqlite3_errmsg(handle));
  const int code = sqlite3_backup_step(backup, -1);
  sqlite3_backup_finish(backup);
  if (code != SQLITE_DONE) throw Error("cannot copy the trace", sqlite3_errstr(code));
  schema::register_trace_modules(handle);
  return copy;
}

bool can_write(const std::string& path) {
  // SQLite puts its journal beside the file.
  const std::string folder = std::filesystem::absolute(path).parent_path().string();
  return access(path.c_str(), W_OK) == 0 && access(folder.c_str(), W_OK) == 0;
}

// In the file itself. The rollback journal goes with it: an empty one beside a trace puzzles
// people.
void finalize_in_place(const std::string& path, const SymbolOptions& symbols = {}) {
  Database db = schema::open_trace(path, OpenMode::kReadWrite);
  if (is_finalized(db)) {
    schema::Transaction transaction(db);
    SymbolPass(db, symbols).finish();
    transaction.commit();
  } else {
    finalize(db, symbols);
  }
  db.exec("PRAGMA journal_mode = DELETE");
  db.close();
}

// The trace with its aggregate tables filled; says in `notes` if that is only in a copy.
Database open_finalized(const std::string& path, std::vector<std::string>& notes) {
  {
    Database db = schema::open_trace(path, OpenMode::kReadOnly);
    refuse_live_recording(db, path);
    if (is_finalized(db)) return db;
    if (!can_write(path)) {
      notes.push_back("the trace cannot be written, so the final pass is made again each time");
      Database copy = private_copy(db);
      finalize(copy);
      return copy;
    }
  }
  try {
    finalize_in_place(path);
  } catch (const Error& error) {
    // A full disk, mostly, the one that stopped the recording.
    Database db = schema::open_trace(path, OpenMode::kReadOnly);
    Database copy = private_copy(db);
    finalize(copy);
    notes.push_back(
        fmt::format("the trace cannot be written ({}), so the final pass is made again each time",
                    error.why()));
    return copy;
  }
  return schema::open_trace(path, OpenMode::kReadOnly);
}

// Why there is less in the trace than happened; empty where it is complete.
std::string cut_note(Database& db, const std::string& state) {
  if (state == "complete") return "";
  const std::string why = schema::meta_text(db, "stopped_why")
                              .value_or("its collector ended before it could close the file");
  return "the recording was cut short: " + why + "; this is what was written until then";
}

}  // namespace

void finalize_file(const std::string& path, const SymbolOptions& symbols) {
  {
    Database db = schema::open_trace(path, OpenMode::kReadOnly);
    refuse_live_recording(db, path);
  }
  finalize_in_place(path, symbols);
}

Trace open_for_report(const std::string& path) {
  Trace trace;
  trace.path = path;
  trace.db = open_finalized(path, trace.notes);
  trace.info = load_trace_info(trace.db);
  if (trace.info.processes.empty()) {
    throw Error(fmt::format("cannot read trace '{}'", path),
                "the recording was cut before a process was written to it");
  }
  const std::string cut = cut_note(trace.db, trace.info.state);
  if (!cut.empty()) trace.notes.push_back(cut);
  trace.stacks = std::make_unique<Stacks>(trace.db);
  return trace;
}

}  // namespace heapledger::analyzer
