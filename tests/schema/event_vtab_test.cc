// SPDX-License-Identifier: Apache-2.0
#include "schema/event_vtab.h"

#include <cstdio>
#include <random>
#include <sstream>

#include "schema/error.h"
#include "tests/schema/plausible_calls.h"
#include "tests/schema/trace_fixture.h"

namespace heapledger::schema {
namespace {

// A trace with calls of two processes in five batches, and beside them the same rows in ordinary
// tables, made without the code under test: each query must give the same on both.
class EventTables : public TraceTest {
 protected:
  EventTables() {
    create_trace(path_, false);
    db_ = open_trace(path_, OpenMode::kReadWrite);
    Transaction transaction(db_);
    db_.exec(
        "CREATE TABLE plain_event(time_ns INTEGER, process INTEGER, thread INTEGER, kind TEXT, "
        "id INTEGER, address INTEGER, size INTEGER, usable INTEGER, alignment INTEGER, "
        "ended_id INTEGER, stack INTEGER);"
        "CREATE TABLE plain_fault(time_ns INTEGER, process INTEGER, thread INTEGER, "
        "address INTEGER, ip INTEGER, major INTEGER, kernel INTEGER, block_id INTEGER, "
        "site INTEGER, touch TEXT)");
    fill_events();
    fill_faults();
    transaction.commit();
  }

  void fill_events() {
    for (const int64_t process : {1, 2}) {
      PlausibleCalls calls(static_cast<uint64_t>(process), 3);
      for (size_t batch = 0; batch < 3; ++batch) {
        std::vector<CallRow> rows = calls.take(400 + 100 * batch);
        make_odd(rows[5], rows[6]);
        add_calls(db_, process, rows);
        for (const CallRow& row : rows) add_plain(process, row);
      }
    }
  }

  // Two rows with what the plausible stream lacks: a failed call, and an aligned one.
  static void make_odd(CallRow& failed, CallRow& aligned) {
    for (CallRow* row : {&failed, &aligned}) {
      const int64_t time = row->time_ns;
      *row = CallRow{};
      row->time_ns = row->ended_ns = time;
      row->thread = 2;
      row->kind = EventKind::kPosixMemalign;
      row->size = 100;
      row->alignment = 4096;
    }
    failed.flags = kFailed;
    aligned.id = make_id(40, 7);
    aligned.address = 0x777000;
    aligned.usable = 4080;
  }

  static std::optional<uint64_t> unless_zero(uint64_t value) {
    return value != 0 ? std::optional(value) : std::nullopt;
  }

  void add_plain(int64_t process, const CallRow& row) {
    const bool frees = kind_row(row.kind)->role == 'f';
    db_.prepare("INSERT INTO plain_event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .run_with(row.time_ns, process, row.thread, kind_row(row.kind)->name, unless_zero(row.id),
                  unless_zero(row.address),
                  frees ? std::nullopt : std::optional<uint64_t>(row.size), unless_zero(row.usable),
                  unless_zero(row.alignment), unless_zero(row.ended_id), row.stack);
  }

  void fill_faults() {
    std::mt19937_64 random(11);
    for (const bool attributed : {true, false}) {
      std::vector<FaultRow> rows(200);
      std::vector<FaultAttribution> attribution(attributed ? rows.size() : 0);
      for (size_t i = 0; i < rows.size(); ++i) {
        rows[i] = {static_cast<int64_t>(100 * i),
                   0,
                   0x1000 * (random() % 50),
                   0x40,
                   i % 7 == 0,
                   i % 5 == 0};
        rows[i].thread = static_cast<uint32_t>(1 + i % 2);
        if (!attributed) continue;
        attribution[i].touch = static_cast<Touch>(random() % kTouchCount);
        if (i % 3 != 0) attribution[i].block_id = 1 + random() % 9;
        if (i % 3 != 0) attribution[i].site = static_cast<uint32_t>(1 + random() % 4);
      }
      add_faults(db_, 1, rows, attribution);
      for (size_t i = 0; i < rows.size(); ++i) {
        const FaultAttribution known = attributed ? attribution[i] : FaultAttribution{};
        db_.prepare("INSERT INTO plain_fault VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?)")
            .run_with(rows[i].time_ns, rows[i].thread, rows[i].address, rows[i].ip, rows[i].major,
                      rows[i].kernel, unless_zero(known.block_id), unless_zero(known.site),
                      touch_name(known.touch));
      }
    }
  }

  // All rows of a query as text, sorted, so that order does not count.
  std::string rows_of(const std::string& sql) {
    Statement statement = db_.prepare(sql);
    std::vector<std::string> lines;
    while (statement.step()) {
      std::string line;
      for (int i = 0; i < statement.column_count(); ++i) {
        line += (statement.is_null(i) ? "NULL" : statement.column_text(i)) + "|";
      }
      lines.push_back(line);
    }
    std::sort(lines.begin(), lines.end());
    std::string text = std::to_string(lines.size()) + " rows\n";
    for (const std::string& line : lines) text += line + "\n";
    return text;
  }

  // `sql` names the table as T.
  void expect_same(const std::string& table, const std::string& sql) {
    const auto with = [&](const std::string& name) {
      std::string text = sql;
      for (size_t at = 0; (at = text.find("T", at)) != std::string::npos;) {
        const bool word = (at == 0 || text[at - 1] == ' ') &&
                          (at + 1 == text.size() || text[at + 1] == ' ' || text[at + 1] == ',');
        if (word) text.replace(at, 1, name);
        at += word ? name.size() : 1;
      }
      return text;
    };
    EXPECT_EQ(rows_of(with(table)), rows_of(with("plain_" + table))) << sql;
  }

  Database db_;
};

TEST_F(EventTables, GiveTheSameAsPlainRows) {
  for (const char* sql :
       {"SELECT * FROM T", "SELECT count(*) FROM T", "SELECT kind, count(*) FROM T GROUP BY kind",
        "SELECT sum(size), sum(usable) FROM T WHERE kind = 'malloc'",
        "SELECT * FROM T WHERE process = 2", "SELECT count(*) FROM T WHERE process = 3",
        "SELECT * FROM T WHERE kind = 'posix_memalign'", "SELECT * FROM T WHERE kind = 'no such'",
        "SELECT * FROM T WHERE id = 1099511627780", "SELECT * FROM T WHERE id IS NULL",
        "SELECT * FROM T WHERE ended_id = 1099511627780 AND process = 1",
        "SELECT * FROM T WHERE time_ns > 20000 AND time_ns <= 90000",
        "SELECT * FROM T WHERE time_ns BETWEEN 100000 AND 200000 AND kind = 'free'",
        "SELECT * FROM T WHERE stack = 1 AND thread = 2",
        "SELECT kind FROM T WHERE process IN (1, 5)", "SELECT stack FROM T WHERE usable = 4080",
        "SELECT a.id, b.time_ns - a.time_ns FROM T AS a, T AS b WHERE b.ended_id = a.id AND "
        "a.process = 1 AND b.process = 1 AND a.time_ns < 5000",
        "SELECT time_ns FROM T ORDER BY time_ns DESC LIMIT 7"}) {
    expect_same("event", sql);
  }
}

TEST_F(EventTables, ConvertValuesAsSqlDoes) {
  // Values of other types than the column's: nothing may be pushed down that changes the answer.
  for (const char* sql :
       {"SELECT count(*) FROM T WHERE process = '1'", "SELECT count(*) FROM T WHERE process = 1.0",
        "SELECT count(*) FROM T WHERE process = 1.5", "SELECT count(*) FROM T WHERE process = NULL",
        "SELECT count(*) FROM T WHERE time_ns < 50000.5",
        "SELECT count(*) FROM T WHERE time_ns >= 49999.5",
        "SELECT count(*) FROM T WHERE time_ns < '50000'",
        "SELECT count(*) FROM T WHERE time_ns > 1e300",
        "SELECT count(*) FROM T WHERE time_ns < 1e300",
        "SELECT count(*) FROM T WHERE time_ns > -1e300",
        "SELECT count(*) FROM T WHERE time_ns < 'x'", "SELECT count(*) FROM T WHERE time_ns > x''",
        "SELECT count(*) FROM T WHERE id = '1099511627780'", "SELECT count(*) FROM T WHERE id = 0",
        "SELECT count(*) FROM T WHERE size = 0", "SELECT count(*) FROM T WHERE kind = 'MALLOC'",
        "SELECT count(*) FROM T WHERE kind = 'MALLOC' COLLATE NOCASE",
        "SELECT count(*) FROM T WHERE kind = 1"}) {
    expect_same("event", sql);
  }
}

TEST_F(EventTables, GiveTheSameAsPlainRowsForRandomConditions) {
  std::mt19937_64 random(5);
  const char* kColumns[] = {"time_ns", "process", "thread", "size", "usable", "stack", "address"};
  const char* kOperators[] = {"=", "<", "<=", ">", ">=", "!="};
  for (int round = 0; round < 60; ++round) {
    std::string sql = "SELECT kind, id, ended_id FROM T WHERE 1";
    for (uint64_t i = 0; i <= random() % 3; ++i) {
      const char* column = kColumns[random() % std::size(kColumns)];
      // A value that some row has, so that answers are not all empty.
      const std::string value = db_.query_text(std::string("SELECT coalesce(") + column +
                                               ", 0) FROM plain_event LIMIT 1 "
                                               "OFFSET " +
                                               std::to_string(random() % 3000))
                                    .value_or("1");
      sql += std::string(" AND ") + column + " " + kOperators[random() % std::size(kOperators)] +
             " " + value;
    }
    expect_same("event", sql);
  }
}

TEST_F(EventTables, GiveTheSameAsPlainRowsForFaults) {
  for (const char* sql :
       {"SELECT * FROM T", "SELECT count(*) FROM T", "SELECT touch, count(*) FROM T GROUP BY touch",
        "SELECT * FROM T WHERE site = 2", "SELECT * FROM T WHERE block_id IS NULL",
        "SELECT * FROM T WHERE touch = 'first'", "SELECT * FROM T WHERE major = 1 AND kernel = 0",
        "SELECT address FROM T WHERE time_ns >= 300 AND time_ns < 900",
        "SELECT time_ns FROM T WHERE block_id = 3 AND site = 1", "SELECT ip FROM T WHERE ip = 64",
        "SELECT count(*) FROM T WHERE process = 2",
        "SELECT thread, touch FROM T WHERE thread = 2"}) {
    expect_same("fault", sql);
  }
}

TEST_F(EventTables, HaveRowidsThatAreTheirOwn) {
  EXPECT_EQ(db_.query_int("SELECT count(DISTINCT rowid) = count(*) FROM event"), 1);
}

TEST_F(EventTables, AreNotNamedInTheFile) {
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM sqlite_master WHERE sql LIKE '%VIRTUAL%'"), 0);
}

TEST_F(EventTables, CannotBeCreatedOrWritten) {
  EXPECT_THROW(db_.exec("CREATE VIRTUAL TABLE mine USING event"), Error);
  EXPECT_THROW(db_.exec("DELETE FROM event"), Error);
}

TEST_F(EventTables, SayWhichBatchIsDamaged) {
  damage(db_, "event_batch", 2);
  try {
    db_.query_int("SELECT sum(stack) FROM event");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.why(),
              "batch 2: cannot decode a packed batch: the checksum of column 17 is wrong");
  }
  // The others can be read, and so can the sound columns of this one.
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM event WHERE process = 2 AND stack >= 0"), 1500);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM event WHERE size IS NULL OR size >= 0"), 3000);
}

#ifdef HL_SQLITE_SHELL
// What a shell command prints.
std::string output_of(const std::string& command) {
  std::string text;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return "cannot run it";
  char buffer[4096];
  for (size_t count; (count = fread(buffer, 1, sizeof(buffer), pipe)) > 0;)
    text.append(buffer, count);
  pclose(pipe);
  return text;
}

class SqliteShell : public EventTables {
 protected:
  SqliteShell() { db_.close(); }
};

TEST_F(SqliteShell, ReadsEventsAndFaultsAfterLoad) {
  const std::string load = std::string(HL_SQLITE_SHELL) + " -cmd '.load " + HL_EXTENSION + "' ";
  EXPECT_EQ(output_of(load + path_ +
                      " 'SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM "
                      "fault), (SELECT sum(size) FROM event) = (SELECT sum(size) "
                      "FROM plain_event)'"),
            "3000|400|1\n");
  EXPECT_EQ(output_of(load + path_ + " 'SELECT * FROM event EXCEPT SELECT * FROM plain_event'"),
            "");
}

TEST_F(SqliteShell, DumpsATraceWithoutTheExtension) {
  // A dump that is read back has the same batches: the file needs nobody's module.
  const std::string shell = HL_SQLITE_SHELL;
  const std::string copy = path_ + ".copy";
  EXPECT_EQ(output_of(shell + " " + path_ + " .dump | " + shell + " " + copy), "");
  EXPECT_EQ(output_of(shell + " " + copy +
                      " 'SELECT count(*), sum(length(data)) > 0 FROM event_batch; SELECT count(*) "
                      "FROM stack_text; PRAGMA integrity_check'"),
            "6|1\n0\nok\n");
  EXPECT_NE(output_of(shell + " " + path_ + " 'SELECT * FROM event'").find("no such table"),
            std::string::npos);
}
#endif

}  // namespace
}  // namespace heapledger::schema
