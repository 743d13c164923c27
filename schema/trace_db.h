// SPDX-License-Identifier: Apache-2.0
// The trace file as a database: SQLite with owners, types and exceptions.
//
// Why a layer at all: every sqlite3 call can fail, and each failure must name the file and what was
// tried. Here each becomes an Error with SQLite's own message.
//
// Integers are 64 bits. Addresses and ids are uint64_t in the code and are stored as the same bits
// in SQLite's signed integers.
//
// One process writes a trace (the collector, then the final pass); readers may look meanwhile. A
// reader waits up to ten seconds for a commit to end, the writer as long for readers to finish a
// statement, so a reader must not sit on an open SELECT while the program is being recorded.
// Thread safety: a Database and its statements belong to one thread at a time.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

struct sqlite3;
struct sqlite3_stmt;

namespace heapledger::schema {

inline constexpr int32_t kApplicationId = 0x484C4447;  // "HLDG"; schema.sql sets it.
inline constexpr int32_t kFormatVersion = 2;           // PRAGMA user_version; likewise.

// A prepared statement. Bindings are numbered from 1, columns from 0, as in SQLite.
class Statement {
 public:
  Statement() = default;
  Statement(sqlite3* db, std::string_view sql);
  ~Statement();
  Statement(Statement&& other) noexcept : stmt_(std::exchange(other.stmt_, nullptr)) {}
  Statement& operator=(Statement&& other) noexcept {
    std::swap(stmt_, other.stmt_);
    return *this;
  }

  Statement& bind(int index, std::nullptr_t);
  Statement& bind_int(int index, int64_t value);
  Statement& bind(int index, double value);
  Statement& bind(int index, std::string_view text);          // Copied.
  Statement& bind(int index, std::span<const uint8_t> blob);  // Not copied: keep it until run().
  Statement& bind(int index, const std::vector<uint8_t>& blob) {
    return bind(index, std::span<const uint8_t>(blob));
  }
  Statement& bind(int index, const std::string& text) {
    return bind(index, std::string_view(text));
  }
  Statement& bind(int index, const char* text);  // nullptr: NULL.
  template <std::integral T>
  Statement& bind(int index, T value) {
    return bind_int(index, static_cast<int64_t>(value));
  }
  template <typename T>
  Statement& bind(int index, const std::optional<T>& value) {
    return value ? bind(index, *value) : bind(index, nullptr);
  }
  // Binds from 1 on.
  template <typename... T>
  Statement& bind_all(const T&... values) {
    int index = 0;
    (bind(++index, values), ...);
    return *this;
  }

  bool step();   // True: there is a row. False: done, and ready to be bound and stepped again.
  void run();    // Steps to the end.
  void reset();  // Ends it early.
  // The whole of an INSERT with prepared values: bind_all, run.
  template <typename... T>
  void run_with(const T&... values) {
    bind_all(values...);
    run();
  }

  int column_count() const;
  std::string column_name(int column) const;
  int column_type(int column) const;  // SQLITE_INTEGER, _FLOAT, _TEXT, _BLOB, _NULL
  bool is_null(int column) const;
  int64_t column_int(int column) const;
  uint64_t column_uint(int column) const { return static_cast<uint64_t>(column_int(column)); }
  double column_double(int column) const;
  std::string column_text(int column) const;
  std::span<const uint8_t> column_blob(int column) const;  // Valid until the next step.
  std::optional<int64_t> column_optional_int(int column) const;
  std::optional<std::string> column_optional_text(int column) const;

  sqlite3_stmt* handle() const { return stmt_; }

 private:
  [[noreturn]] void fail() const;
  void check(int code) const;
  sqlite3_stmt* stmt_ = nullptr;
};

class Database {
 public:
  Database() = default;
  explicit Database(sqlite3* owned, std::string path) : db_(owned), path_(std::move(path)) {}
  ~Database();
  Database(Database&& other) noexcept
      : db_(std::exchange(other.db_, nullptr)), path_(std::move(other.path_)) {}
  Database& operator=(Database&& other) noexcept {
    std::swap(db_, other.db_);
    std::swap(path_, other.path_);
    return *this;
  }

  void exec(const std::string& sql);  // Any number of statements; rows are thrown away.
  Statement prepare(std::string_view sql) { return Statement(db_, sql); }
  // The first column of the first row; nothing where there is none or it is NULL.
  std::optional<int64_t> query_int(std::string_view sql);
  std::optional<std::string> query_text(std::string_view sql);
  int64_t last_insert_id() const;
  int64_t changes() const;  // Rows changed by the last statement.
  void close();             // Reports what the destructor cannot. Statements must be gone.

  bool is_open() const { return db_ != nullptr; }
  sqlite3* handle() const { return db_; }
  const std::string& path() const { return path_; }

 private:
  sqlite3* db_ = nullptr;
  std::string path_;
};

// Rolls back unless commit() was called.
class Transaction {
 public:
  explicit Transaction(Database& db);
  ~Transaction();
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit();

 private:
  Database* db_;
};

// Makes an empty trace from schema.sql, with meta key `format`. An existing file is an error unless
// `overwrite`; left-over journals of that name are removed either way, because SQLite would play
// them back into the new file.
Database create_trace(const std::string& path, bool overwrite);

enum class OpenMode { kReadOnly, kReadWrite };
// Opens a trace and checks that it is one, of a version known here, and undamaged as far as its
// first page and its table list tell. Where its writer was killed in mid-commit the
// unfinished part is rolled back first, which needs write permission: the Error says so.
// The tables `event` and `fault` are registered.
Database open_trace(const std::string& path, OpenMode mode);

void set_meta(Database& db, std::string_view key, int64_t value);
void set_meta(Database& db, std::string_view key, std::string_view value);
inline void set_meta(Database& db, std::string_view key, const char* value) {
  set_meta(db, key, std::string_view(value));
}
std::optional<int64_t> meta_int(Database& db, std::string_view key);
std::optional<std::string> meta_text(Database& db, std::string_view key);

// The text of schema.sql, as compiled in.
std::string_view schema_sql();

}  // namespace heapledger::schema
