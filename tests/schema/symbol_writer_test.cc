// SPDX-License-Identifier: Apache-2.0
// Names of frames, as they are written and as SQL sees them.
#include "schema/symbol_writer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

namespace heapledger::schema {
namespace {

class Symbols : public ::testing::Test {
 protected:
  Symbols()
      : path_((std::filesystem::temp_directory_path() /
               ("symbols." + std::to_string(getpid()) + ".db"))
                  .string()),
        db_(create_trace(path_, true)) {}
  ~Symbols() override {
    db_.close();
    std::filesystem::remove(path_);
  }
  void write_some() {
    SymbolWriter writer(db_);
    writer.write(2, 0, "outer", "a.cc", 10);
    writer.write(2, 1, "inlined", "a.h", 5);
    writer.write(3, 0, "outer", "a.cc", 12);
    writer.write(4, 0, "a.cc", "", 0);  // A function of a file's name.
    writer.write(5, 0, "", "a.h", 0);
  }
  std::string rows() {
    return db_
        .query_text(
            "SELECT group_concat(frame || ' ' || inline_depth || ' ' || coalesce(function, '-') ||"
            " ' ' || coalesce(file, '-') || ' ' || coalesce(line, '-'), ';') FROM"
            " (SELECT * FROM symbol ORDER BY frame, inline_depth)")
        .value_or("");
  }
  static constexpr const char* kRows =
      "2 0 outer a.cc 10;2 1 inlined a.h 5;3 0 outer a.cc 12;4 0 a.cc - -;5 0 - a.h -";

  std::string path_;
  Database db_;
};

TEST_F(Symbols, AreSeenAsRowsWithTexts) {
  // Goal: SQL need not know how names are kept, and each is kept once, also by a second writer.
  write_some();
  EXPECT_EQ(rows(), kRows);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM symbol_name"), 4);
  SymbolWriter(db_).write(6, 0, "inlined", "b.h", 1);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM symbol_name"), 5);
  EXPECT_EQ(db_.query_text("SELECT function || file FROM symbol WHERE frame = 6"), "inlinedb.h");
}

TEST_F(Symbols, GoIntoTheTableOfAnOlderTrace) {
  // Goal: a recording made before an update is still finalized. Method: the table as it was.
  db_.exec(
      "DROP VIEW symbol; DROP VIEW stack_text; DROP TABLE symbol_place; DROP TABLE symbol_name;"
      "CREATE TABLE symbol(frame INTEGER NOT NULL, inline_depth INTEGER NOT NULL, function TEXT,"
      " file TEXT, line INTEGER, PRIMARY KEY (frame, inline_depth)) WITHOUT ROWID");
  write_some();
  EXPECT_EQ(rows(), kRows);
}

TEST_F(Symbols, AreInTheTextOfAStack) {
  // Goal: stack_text names each frame with its inlined functions, innermost first.
  write_some();
  db_.exec(
      "INSERT INTO frame VALUES (2, NULL, 32), (4, NULL, 64), (9, NULL, 255);"
      "INSERT INTO stack VALUES (1, 0, 4), (2, 1, 9), (3, 2, 2)");
  EXPECT_EQ(db_.query_text("SELECT text FROM stack_text WHERE id = 3"),
            "inlined (a.h:5)\nouter (a.cc:10)\n0xff\na.cc");
}

}  // namespace
}  // namespace heapledger::schema
