// SPDX-License-Identifier: Apache-2.0
#include "schema/trace_db.h"

#include <sqlite3.h>
#include <sys/wait.h>

#include <cctype>
#include <fstream>
#include <functional>
#include <sstream>

#include "schema/error.h"
#include "tests/schema/trace_fixture.h"

namespace heapledger::schema {
namespace {

std::string text_of_error(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class TraceDb : public TraceTest {
 protected:
  std::string open_error(OpenMode mode = OpenMode::kReadOnly) {
    return text_of_error([&] { open_trace(path_, mode); });
  }
  void write_file(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  }
  std::string cannot_open(const std::string& why) const {
    return "cannot open trace '" + path_ + "': " + why;
  }
};

TEST(Error, ComposesWhatWhyAndContext) {
  Error error("cannot open trace 'x.db'", "no such file");
  EXPECT_STREQ(error.what(), "cannot open trace 'x.db': no such file");
  error.while_("reading batch 17").while_("making the report");
  EXPECT_STREQ(error.what(),
               "cannot open trace 'x.db': no such file (while reading batch 17, while making the "
               "report)");
  EXPECT_EQ(error.why(), "no such file");
}

TEST_F(TraceDb, KeepsWhatWasWritten) {
  {
    Database db = create_trace(path_, false);
    set_meta(db, "command", "true --fast");
    set_meta(db, "cpus", 8);
    set_meta(db, "cpus", 4);
    Transaction transaction(db);
    db.prepare("INSERT INTO process(id, pid, ppid, exe, recorded) VALUES (?, ?, ?, ?, ?)")
        .run_with(1, 77u, std::optional<int64_t>(), std::string("/bin/true"), true);
    transaction.commit();
    db.close();
  }
  Database db = open_trace(path_, OpenMode::kReadOnly);
  EXPECT_EQ(meta_text(db, "command"), "true --fast");
  EXPECT_EQ(meta_int(db, "cpus"), 4);
  EXPECT_EQ(meta_int(db, "format"), kFormatVersion);
  EXPECT_EQ(meta_int(db, "nonsense"), std::nullopt);
  Statement row = db.prepare("SELECT pid, ppid, exe, recorded FROM process");
  ASSERT_TRUE(row.step());
  EXPECT_EQ(row.column_int(0), 77);
  EXPECT_EQ(row.column_optional_int(1), std::nullopt);
  EXPECT_EQ(row.column_text(2), "/bin/true");
  EXPECT_EQ(row.column_int(3), 1);
  EXPECT_FALSE(row.step());
}

TEST_F(TraceDb, IsOneFileWithSmallPages) {
  Database db = create_trace(path_, false);
  EXPECT_EQ(db.query_int("PRAGMA page_size"), 2048);
  EXPECT_EQ(db.query_text("PRAGMA journal_mode"), "truncate");
  EXPECT_EQ(db.query_int("PRAGMA application_id"), kApplicationId);
  db.close();
  EXPECT_EQ(open_error(), "no error");
}

TEST_F(TraceDb, KeepsAnExistingFileUnlessTold) {
  write_file("precious");
  EXPECT_EQ(text_of_error([&] { create_trace(path_, false); }),
            "cannot create trace '" + path_ + "': the file exists");
  create_trace(path_, true);
  EXPECT_EQ(open_error(), "no error");
}

TEST_F(TraceDb, IsNotHarmedByTheJournalOfAnOlderFile) {
  // SQLite would play a journal of this name back into the new file.
  std::ofstream(path_ + "-journal") << std::string(4096, 'x');
  create_trace(path_, false);
  EXPECT_EQ(open_error(), "no error");
}

TEST_F(TraceDb, SaysWhyItCannotBeCreated) {
  path_ = (directory_ / "missing" / "trace.db").string();
  EXPECT_EQ(text_of_error([&] { create_trace(path_, false); }),
            "cannot create trace '" + path_ + "': unable to open database file");
}

TEST_F(TraceDb, RollsBackATransactionThatWasNotCommitted) {
  Database db = create_trace(path_, false);
  {
    Transaction transaction(db);
    set_meta(db, "lost", 1);
  }
  EXPECT_EQ(meta_int(db, "lost"), std::nullopt);
}

TEST_F(TraceDb, NamesTheStatementThatFails) {
  Database db = create_trace(path_, false);
  EXPECT_EQ(text_of_error([&] { db.prepare("SELECT wrong FROM meta"); }),
            "cannot prepare 'SELECT wrong FROM meta': no such column: wrong");
  EXPECT_EQ(text_of_error([&] { db.prepare("INSERT INTO\n  thread(id) VALUES (?)").run_with(1); }),
            "cannot run 'INSERT INTO thread(id) VALUES (?)': NOT NULL constraint failed: "
            "thread.process");
}

TEST_F(TraceDb, RefusesWhatIsNoTrace) {
  EXPECT_EQ(open_error(), cannot_open("no such file"));
  write_file("");
  EXPECT_EQ(open_error(), cannot_open("not a heapledger trace (the file is empty)"));
  write_file("just some text that goes on for a while\n");
  EXPECT_EQ(open_error(), cannot_open("not a heapledger trace (not an SQLite file)"));
  write_file(std::string("SQLite format 3\0", 16) + std::string(5000, 'x'));
  EXPECT_EQ(open_error(), cannot_open("the file is damaged: file is not a database"));
  const std::string directory = directory_.string();
  EXPECT_EQ(text_of_error([&] { open_trace(directory, OpenMode::kReadOnly); }),
            "cannot open trace '" + directory + "': not a regular file");
}

TEST_F(TraceDb, RefusesOtherApplicationsAndVersions) {
  create_trace(path_, false).exec("PRAGMA user_version = 7");
  EXPECT_EQ(open_error(), cannot_open("it has format version 7, this heapledger reads version 2; "
                                      "use a newer heapledger"));
  create_trace(path_, true).exec("PRAGMA user_version = 1");
  EXPECT_EQ(open_error(), cannot_open("it has format version 1, this heapledger reads version 2; "
                                      "read it with the heapledger that recorded it, or record "
                                      "it again"));
  create_trace(path_, true).exec("PRAGMA user_version = 0");
  EXPECT_EQ(open_error(), cannot_open("it has format version 0, which no heapledger writes; the "
                                      "file is damaged"));
  create_trace(path_, true).exec("PRAGMA application_id = 5");
  EXPECT_EQ(open_error(),
            cannot_open("not a heapledger trace (an SQLite file of another application)"));
  create_trace(path_, true).exec("DROP TABLE stack_batch");
  EXPECT_EQ(open_error(), cannot_open("the file is damaged: tables are missing"));
}

TEST_F(TraceDb, SurvivesBeingCutAnywhere) {
  // A copy that was cut short either opens (its end was unused) or is refused with a sentence.
  create_trace(path_, false);
  const auto whole = std::filesystem::file_size(path_);
  size_t refused = 0;
  for (uintmax_t length = whole - 1; length > 32; length -= std::min<uintmax_t>(length, 30011)) {
    std::filesystem::resize_file(path_, length);
    const std::string text = open_error();
    if (text == "no error") continue;
    ++refused;
    EXPECT_NE(text.find("damaged"), std::string::npos) << text;
  }
  EXPECT_GT(refused, 0u);
}

TEST_F(TraceDb, CannotBeWrittenThroughAReadOnlyOpen) {
  create_trace(path_, false);
  Database db = open_trace(path_, OpenMode::kReadOnly);
  EXPECT_NE(text_of_error([&] { set_meta(db, "x", 1); }).find("readonly"), std::string::npos);
}

TEST_F(TraceDb, CanBeReadWhileItIsWritten) {
  // The collector has an unfinished transaction: a reader sees what was there before it.
  Database writer = create_trace(path_, false);
  set_meta(writer, "a", 1);
  Transaction transaction(writer);
  set_meta(writer, "a", 2);
  Database reader = open_trace(path_, OpenMode::kReadOnly);
  EXPECT_EQ(meta_int(reader, "a"), 1);
  transaction.commit();
  EXPECT_EQ(meta_int(reader, "a"), 2);
}

TEST_F(TraceDb, OpensAfterItsWriterWasKilledInMidCommit) {
  // A child leaves a hot journal: with a cache of few pages it has to write into the file before
  // the end of its transaction. A read-only open must roll that back and show the state before.
  create_trace(path_, false)
      .exec(
          "PRAGMA journal_mode = TRUNCATE; INSERT INTO meta VALUES ('a', 1);"
          "CREATE TABLE filler(x)");
  const pid_t child = fork();
  if (child == 0) {
    Database db = open_trace(path_, OpenMode::kReadWrite);
    db.exec(
        "PRAGMA cache_size = 2; PRAGMA cache_spill = 1; BEGIN IMMEDIATE;"
        "UPDATE meta SET value = 2 WHERE key = 'a'");
    for (int i = 0; i < 64; ++i) db.exec("INSERT INTO filler VALUES (zeroblob(60000))");
    _exit(0);  // As sudden as SIGKILL for SQLite.
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  ASSERT_GT(std::filesystem::file_size(path_ + "-journal"), 512u) << "no hot journal was left";
  Database db = open_trace(path_, OpenMode::kReadOnly);
  EXPECT_EQ(meta_int(db, "a"), 1);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM filler"), 0);
  EXPECT_EQ(db.query_text("PRAGMA integrity_check"), "ok");
}

TEST_F(TraceDb, StoresAllBitsOfAnAddress) {
  Database db = create_trace(path_, false);
  Statement echo = db.prepare("SELECT ?");
  echo.bind(1, UINT64_MAX);
  ASSERT_TRUE(echo.step());
  EXPECT_EQ(echo.column_uint(0), UINT64_MAX);
}

TEST(Schema, HasACommentForEveryTableAndColumn) {
  // The schema is the documentation of the file: each table and view is explained in the line above
  // it, each column in its own line.
  std::istringstream lines{std::string(schema_sql())};
  std::string line, before, table;
  size_t tables = 0, columns = 0;
  while (std::getline(lines, line)) {
    const bool view = line.rfind("CREATE VIEW ", 0) == 0;
    if (view || line.rfind("CREATE TABLE ", 0) == 0) {
      ++tables;
      if (!view) table = line.substr(13);
      EXPECT_EQ(before.rfind("-- ", 0), 0u) << "no comment above " << line;
    } else if (line.rfind(")", 0) == 0) {
      table.clear();
    } else if (!table.empty() && line.size() > 2 && std::islower(line[2]) != 0) {
      ++columns;  // Constraints begin with a capital, comments with a dash.
      EXPECT_NE(line.find("  -- "), std::string::npos) << "no comment: " << table << line;
    }
    before = line;
  }
  // As many as SQLite sees, so that none escaped the patterns (arg0 to arg5 share a line).
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(":memory:", &db), SQLITE_OK);
  Database owner(db, ":memory:");
  owner.exec(std::string(schema_sql()));
  EXPECT_EQ(owner.query_int("SELECT count(*) FROM sqlite_master WHERE type != 'index'"), tables);
  EXPECT_EQ(owner.query_int("SELECT count(*) FROM sqlite_master m, pragma_table_info(m.name) "
                            "WHERE m.type = 'table'"),
            columns + 5);
}

}  // namespace
}  // namespace heapledger::schema
