// SPDX-License-Identifier: Apache-2.0
#include "analyzer/sql_command.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "analyzer/render/render.h"
#include "analyzer/reports/open_trace.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

struct Finalizer {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using StatementPtr = std::unique_ptr<sqlite3_stmt, Finalizer>;

std::string column_string(sqlite3_stmt* statement, int column) {
  const void* bytes = sqlite3_column_blob(statement, column);
  const int length = sqlite3_column_bytes(statement, column);
  if (sqlite3_column_type(statement, column) == SQLITE_BLOB) {
    return bytes == nullptr
               ? ""
               : std::string(static_cast<const char*>(bytes), static_cast<size_t>(length));
  }
  const unsigned char* text = sqlite3_column_text(statement, column);
  return text == nullptr ? ""
                         : std::string(static_cast<const char*>(static_cast<const void*>(text)));
}

nlohmann::ordered_json column_json(sqlite3_stmt* statement, int column) {
  switch (sqlite3_column_type(statement, column)) {
    case SQLITE_INTEGER:
      return sqlite3_column_int64(statement, column);
    case SQLITE_FLOAT:
      return sqlite3_column_double(statement, column);
    case SQLITE_NULL:
      return nullptr;
    default:
      return column_string(statement, column);
  }
}

class Printer {
 public:
  Printer(SqlFormat format, bool header, std::FILE* out)
      : format_(format), header_(header || format == SqlFormat::kCsv), out_(out) {}

  void begin(sqlite3_stmt* statement) {
    if (format_ == SqlFormat::kJson || !header_) return;
    std::string line;
    for (int i = 0; i < sqlite3_column_count(statement); ++i) {
      add_field(sqlite3_column_name(statement, i), i, line);
    }
    end_line(line);
  }

  void row(sqlite3_stmt* statement) {
    if (format_ == SqlFormat::kJson) {
      nlohmann::ordered_json object = nlohmann::ordered_json::object();
      for (int i = 0; i < sqlite3_column_count(statement); ++i) {
        object[sqlite3_column_name(statement, i)] = column_json(statement, i);
      }
      write((rows_++ == 0 ? "[" : ",\n") +
            object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
      return;
    }
    std::string line;
    for (int i = 0; i < sqlite3_column_count(statement); ++i) {
      add_field(column_string(statement, i), i, line);
    }
    end_line(line);
  }

  void end() {
    if (format_ == SqlFormat::kJson) write(rows_ == 0 ? "[]\n" : "]\n");
  }

 private:
  void add_field(const std::string& text, int index, std::string& line) const {
    if (index != 0) line += format_ == SqlFormat::kCsv ? "," : "|";
    line += format_ == SqlFormat::kCsv ? csv_field(text) : text;
  }
  void end_line(const std::string& line) {
    write(line + (format_ == SqlFormat::kCsv ? "\r\n" : "\n"));
  }
  void write(const std::string& text) { std::fwrite(text.data(), 1, text.size(), out_); }

  SqlFormat format_;
  bool header_;
  std::FILE* out_;
  size_t rows_ = 0;
};

}  // namespace

void run_sql(const std::string& trace_path, const std::string& sql, SqlFormat format, bool header,
             std::FILE* out) {
  Trace trace = open_for_report(trace_path);
  sqlite3* db = trace.db.handle();
  // The temporary copy of a trace that cannot be written is writable; a query must not be.
  trace.db.exec("PRAGMA query_only = 1");
  Printer printer(format, header, out);
  const char* rest = sql.c_str();
  while (*rest != '\0') {
    sqlite3_stmt* raw = nullptr;
    if (sqlite3_prepare_v2(db, rest, -1, &raw, &rest) != SQLITE_OK) {
      throw schema::Error("cannot run the query", sqlite3_errmsg(db));
    }
    const StatementPtr statement(raw);
    if (!statement) continue;  // Blanks or a comment.
    if (sqlite3_column_count(raw) != 0) printer.begin(raw);
    int code = SQLITE_OK;
    while ((code = sqlite3_step(raw)) == SQLITE_ROW) printer.row(raw);
    if (code != SQLITE_DONE) throw schema::Error("cannot run the query", sqlite3_errmsg(db));
  }
  printer.end();
}

}  // namespace heapledger::analyzer
