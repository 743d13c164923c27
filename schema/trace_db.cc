// SPDX-License-Identifier: Apache-2.0
#include "schema/trace_db.h"

#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "schema/error.h"
#include "schema/event_vtab.h"
#include "schema/schema_sql.h"

namespace heapledger::schema {
namespace {

constexpr int kBusyTimeoutMs = 10'000;
constexpr char kSqliteMagic[] = "SQLite format 3";  // With its zero: the first 16 bytes of a file.

std::string in_quotes(const std::string& path) { return "'" + path + "'"; }

// A statement in a message: on one line, however it was written.
std::string one_line(std::string_view sql) {
  std::string text;
  for (const char c : sql) {
    const bool space = c == ' ' || c == '\n' || c == '\t';
    if (!space) {
      text += c;
    } else if (!text.empty() && text.back() != ' ') {
      text += ' ';
    }
  }
  return text;
}

std::string errno_text() { return std::strerror(errno); }

// The connection, or an Error that begins with `what`.
Database open_connection(const std::string& path, int flags, const std::string& what) {
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &db, flags, nullptr);
  Database owner(db, path);
  if (code != SQLITE_OK) {
    throw Error(what, db != nullptr ? sqlite3_errmsg(db) : sqlite3_errstr(code));
  }
  sqlite3_extended_result_codes(db, 1);
  sqlite3_busy_timeout(db, kBusyTimeoutMs);
  return owner;
}

// A read-only connection cannot roll back what a killed writer left behind; a writable one does so
// at its first read.
void roll_back_unfinished(const std::string& path, const std::string& what) {
  try {
    Database db = open_connection(path, SQLITE_OPEN_READWRITE, what);
    db.query_int("SELECT count(*) FROM sqlite_master");
  } catch (const Error& error) {
    throw Error(what,
                "its writer was killed in mid-write, and the unfinished part can only be rolled "
                "back where file and folder are writable (" +
                    error.why() + "); copy both it and its -journal to such a place");
  }
}

void check_file(const std::string& path, const std::string& what) {
  std::error_code code;
  const auto status = std::filesystem::status(path, code);
  if (!std::filesystem::exists(status)) throw Error(what, "no such file");
  if (!std::filesystem::is_regular_file(status)) throw Error(what, "not a regular file");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(what, errno_text());
  char magic[sizeof(kSqliteMagic)] = {};
  file.read(magic, sizeof(magic));
  if (file.gcount() == 0) throw Error(what, "not a heapledger trace (the file is empty)");
  if (std::memcmp(magic, kSqliteMagic, sizeof(magic)) != 0) {
    throw Error(what, "not a heapledger trace (not an SQLite file)");
  }
}

void check_format(Database& db, const std::string& what) {
  const int64_t application = db.query_int("PRAGMA application_id").value_or(0);
  if (application != kApplicationId) {
    throw Error(what, "not a heapledger trace (an SQLite file of another application)");
  }
  const int64_t version = db.query_int("PRAGMA user_version").value_or(0);
  if (version > kFormatVersion) {
    throw Error(what, "it has format version " + std::to_string(version) +
                          ", this heapledger reads version " + std::to_string(kFormatVersion) +
                          "; use a newer heapledger");
  }
  if (version < 1) {
    throw Error(what, "it has format version " + std::to_string(version) +
                          ", which no heapledger writes; the file is damaged");
  }
  if (version < kFormatVersion) {
    throw Error(what, "it has format version " + std::to_string(version) +
                          ", this heapledger reads version " + std::to_string(kFormatVersion) +
                          "; read it with the heapledger that recorded it, or record it again");
  }
  const int64_t tables =
      db.query_int(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN "
            "('meta', 'process', 'thread', 'frame', 'stack_batch', 'event_batch', 'fault_batch')")
          .value_or(0);
  if (tables != 7) throw Error(what, "the file is damaged: tables are missing");
}

}  // namespace

Statement::Statement(sqlite3* db, std::string_view sql) {
  const int code = sqlite3_prepare_v3(db, sql.data(), static_cast<int>(sql.size()),
                                      SQLITE_PREPARE_PERSISTENT, &stmt_, nullptr);
  if (code != SQLITE_OK) throw Error("cannot prepare '" + one_line(sql) + "'", sqlite3_errmsg(db));
}

Statement::~Statement() { sqlite3_finalize(stmt_); }

void Statement::fail() const {
  throw Error("cannot run '" + one_line(sqlite3_sql(stmt_)) + "'",
              sqlite3_errmsg(sqlite3_db_handle(stmt_)));
}

void Statement::check(int code) const {
  if (code != SQLITE_OK) fail();
}

Statement& Statement::bind(int index, std::nullptr_t) {
  check(sqlite3_bind_null(stmt_, index));
  return *this;
}

Statement& Statement::bind_int(int index, int64_t value) {
  check(sqlite3_bind_int64(stmt_, index, value));
  return *this;
}

Statement& Statement::bind(int index, double value) {
  check(sqlite3_bind_double(stmt_, index, value));
  return *this;
}

Statement& Statement::bind(int index, std::string_view text) {
  // An empty view may have a null pointer, which SQLite would take for NULL.
  const char* data = text.empty() ? "" : text.data();
  check(sqlite3_bind_text64(stmt_, index, data, text.size(), SQLITE_TRANSIENT, SQLITE_UTF8));
  return *this;
}

Statement& Statement::bind(int index, const char* text) {
  return text == nullptr ? bind(index, nullptr) : bind(index, std::string_view(text));
}

Statement& Statement::bind(int index, std::span<const uint8_t> blob) {
  check(blob.empty() ? sqlite3_bind_zeroblob(stmt_, index, 0)
                     : sqlite3_bind_blob64(stmt_, index, blob.data(), blob.size(), SQLITE_STATIC));
  return *this;
}

bool Statement::step() {
  const int code = sqlite3_step(stmt_);
  if (code == SQLITE_ROW) return true;
  if (code != SQLITE_DONE) {
    try {
      fail();
    } catch (...) {
      sqlite3_reset(stmt_);  // After the message was copied: a reset may replace it.
      throw;
    }
  }
  sqlite3_reset(stmt_);
  return false;
}

void Statement::run() {
  while (step()) {
  }
}

void Statement::reset() { sqlite3_reset(stmt_); }

int Statement::column_count() const { return sqlite3_column_count(stmt_); }

std::string Statement::column_name(int column) const { return sqlite3_column_name(stmt_, column); }

int Statement::column_type(int column) const { return sqlite3_column_type(stmt_, column); }

bool Statement::is_null(int column) const { return column_type(column) == SQLITE_NULL; }

int64_t Statement::column_int(int column) const { return sqlite3_column_int64(stmt_, column); }

double Statement::column_double(int column) const { return sqlite3_column_double(stmt_, column); }

std::string Statement::column_text(int column) const {
  const void* text = sqlite3_column_text(stmt_, column);
  if (text == nullptr) return {};
  return {static_cast<const char*>(text), static_cast<size_t>(sqlite3_column_bytes(stmt_, column))};
}

std::span<const uint8_t> Statement::column_blob(int column) const {
  const void* blob = sqlite3_column_blob(stmt_, column);
  if (blob == nullptr) return {};
  return {static_cast<const uint8_t*>(blob),
          static_cast<size_t>(sqlite3_column_bytes(stmt_, column))};
}

std::optional<int64_t> Statement::column_optional_int(int column) const {
  if (is_null(column)) return std::nullopt;
  return column_int(column);
}

std::optional<std::string> Statement::column_optional_text(int column) const {
  if (is_null(column)) return std::nullopt;
  return column_text(column);
}

// A statement still open somewhere keeps the connection alive until it goes, instead of leaking.
Database::~Database() { sqlite3_close_v2(db_); }

void Database::exec(const std::string& sql) {
  char* message = nullptr;
  if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, &message) != SQLITE_OK) {
    const std::string why = message != nullptr ? message : sqlite3_errmsg(db_);
    sqlite3_free(message);
    throw Error("cannot write to " + in_quotes(path_), why);
  }
}

std::optional<int64_t> Database::query_int(std::string_view sql) {
  Statement statement = prepare(sql);
  if (!statement.step()) return std::nullopt;
  return statement.column_optional_int(0);
}

std::optional<std::string> Database::query_text(std::string_view sql) {
  Statement statement = prepare(sql);
  if (!statement.step()) return std::nullopt;
  return statement.column_optional_text(0);
}

int64_t Database::last_insert_id() const { return sqlite3_last_insert_rowid(db_); }

int64_t Database::changes() const { return sqlite3_changes64(db_); }

void Database::close() {
  if (sqlite3_close(db_) != SQLITE_OK) {
    throw Error("cannot close " + in_quotes(path_), sqlite3_errmsg(db_));
  }
  db_ = nullptr;
}

Transaction::Transaction(Database& db) : db_(&db) { db.exec("BEGIN IMMEDIATE"); }

Transaction::~Transaction() {
  // Nothing can be done about a failure here; the next statement will fail too and say so.
  if (db_ != nullptr) sqlite3_exec(db_->handle(), "ROLLBACK", nullptr, nullptr, nullptr);
}

void Transaction::commit() {
  db_->exec("COMMIT");
  db_ = nullptr;
}

Database create_trace(const std::string& path, bool overwrite) {
  const std::string what = "cannot create trace " + in_quotes(path);
  std::error_code code;
  // An empty file may be somebody's claim on the name, with a lock: it is filled, not replaced.
  const bool is_empty = overwrite && std::filesystem::is_regular_file(path, code) &&
                        std::filesystem::file_size(path, code) == 0;
  if (!is_empty && std::filesystem::exists(path, code)) {
    if (!overwrite) throw Error(what, "the file exists");
    if (!std::filesystem::is_regular_file(path, code)) throw Error(what, "not a regular file");
    if (unlink(path.c_str()) != 0) throw Error(what, errno_text());
  }
  for (const char* suffix : {"-journal", "-wal", "-shm"}) unlink((path + suffix).c_str());

  Database db = open_connection(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, what);
  try {
    // A rollback journal, not a WAL: the trace is one file at every moment. Without syncs a killed
    // process still leaves a whole trace; only a crash of the machine may not. Pages are small
    // because a trace has many tables with few rows: with 4096 bytes a small one is 4 % larger.
    db.exec(
        "PRAGMA page_size = 2048; PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = OFF;"
        "PRAGMA foreign_keys = OFF; PRAGMA cache_size = -16384;");
    Transaction transaction(db);
    db.exec(kSchemaSql);
    set_meta(db, "format", kFormatVersion);
    transaction.commit();
  } catch (const Error& error) {
    throw Error(what, error.why());
  }
  return db;
}

Database open_trace(const std::string& path, OpenMode mode) {
  const std::string what = "cannot open trace " + in_quotes(path);
  check_file(path, what);
  const int flags = mode == OpenMode::kReadOnly ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
  Database db = open_connection(path, flags, what);
  if (mode == OpenMode::kReadWrite && sqlite3_db_readonly(db.handle(), "main") == 1) {
    throw Error(what, "the file is not writable");
  }
  try {
    db.query_int("SELECT count(*) FROM sqlite_master");
  } catch (const Error& error) {
    const int reason = sqlite3_extended_errcode(db.handle());
    if (reason != SQLITE_READONLY_ROLLBACK && reason != SQLITE_READONLY_RECOVERY) {
      const bool damaged = (reason & 0xff) == SQLITE_CORRUPT || (reason & 0xff) == SQLITE_NOTADB;
      throw Error(what, damaged ? "the file is damaged: " + error.why() : error.why());
    }
    roll_back_unfinished(path, what);
  }
  try {
    if (mode == OpenMode::kReadWrite) {
      db.exec(
          "PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;");
    }
    check_format(db, what);
    if (register_trace_modules(db.handle()) != SQLITE_OK) {
      throw Error(what, sqlite3_errmsg(db.handle()));
    }
  } catch (Error& error) {
    if (std::string_view(error.what()).starts_with(what)) throw;
    throw Error(what, error.why());
  }
  return db;
}

void set_meta(Database& db, std::string_view key, int64_t value) {
  db.prepare("INSERT OR REPLACE INTO meta VALUES (?, ?)").run_with(key, value);
}

void set_meta(Database& db, std::string_view key, std::string_view value) {
  db.prepare("INSERT OR REPLACE INTO meta VALUES (?, ?)").run_with(key, value);
}

std::optional<int64_t> meta_int(Database& db, std::string_view key) {
  Statement statement = db.prepare("SELECT value FROM meta WHERE key = ?");
  statement.bind(1, key);
  if (!statement.step()) return std::nullopt;
  return statement.column_optional_int(0);
}

std::optional<std::string> meta_text(Database& db, std::string_view key) {
  Statement statement = db.prepare("SELECT value FROM meta WHERE key = ?");
  statement.bind(1, key);
  if (!statement.step()) return std::nullopt;
  return statement.column_optional_text(0);
}

std::string_view schema_sql() { return kSchemaSql; }

}  // namespace heapledger::schema
