// SPDX-License-Identifier: Apache-2.0
// Every report over a trace whose values make no sense. The input says which sample trace, whether
// its final pass was done before the damage or comes after, and what is changed:
//
//     byte 0     the sample; bit 7: finalized first; bit 6: with the models, which take longest
//     8 bytes    a change each: table, row (2), column, kind, value (3)
//
// SQLite finds such a file whole, so the damage reaches the reports' own code; damage of the file
// as such is for tests/tools/damage_test.py. Whatever a report does with it is right, as long as it
// is an answer or an exception.
#include <sqlite3.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "analyzer/advise_command.h"
#include "analyzer/export/export.h"
#include "analyzer/render/render.h"
#include "analyzer/reports/open_trace.h"
#include "analyzer/reports/report.h"
#include "analyzer/sweep_command.h"
#include "tests/analyzer/sample_traces.h"
#include "tests/schema/blob_damage.h"

namespace heapledger::analyzer {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChangeBytes = 8;
constexpr size_t kChangesMax = 16;

class Folder {
 public:
  Folder() {
    const fs::path memory = "/dev/shm";
    std::error_code error;
    const bool usable = fs::is_directory(memory, error) && access(memory.c_str(), W_OK) == 0;
    path_ = (usable ? memory : fs::temp_directory_path()) /
            ("heapledger-fuzz-" + std::to_string(getpid()));
    fs::create_directories(path_);
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

using Bytes = std::vector<char>;

Bytes bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Each sample as its recording left it, and finalized.
std::vector<std::array<Bytes, 2>> make_samples(const Folder& folder) {
  std::vector<std::array<Bytes, 2>> samples;
  const std::string path = folder / "sample.db";
  for (const SampleTrace& sample : sample_traces()) {
    fs::remove(path);
    sample.make().write(path);
    samples.push_back({bytes_of(path), {}});
    finalize_file(path);
    samples.back()[1] = bytes_of(path);
  }
  return samples;
}

// One change, as the input says it.
struct Change {
  uint8_t table, column, kind;
  uint16_t row;
  uint8_t value[3];

  explicit Change(const uint8_t* from)
      : table(from[0]),
        column(from[3]),
        kind(from[4]),
        row(static_cast<uint16_t>(from[1] | from[2] << 8)),
        value{from[5], from[6], from[7]} {}
};

std::vector<std::string> texts(schema::Database& db, const std::string& query) {
  std::vector<std::string> result;
  schema::Statement statement = db.prepare(query);
  while (statement.step()) result.push_back(statement.column_text(0));
  return result;
}

int64_t strange_number(const Change& change) {
  constexpr int64_t kStrange[] = {0,         1,         -1,        255,       4095,      INT32_MAX,
                                  INT32_MIN, INT64_MAX, INT64_MIN, 1LL << 47, 1LL << 62, 1 << 16};
  // Wraps around at the ends.
  return static_cast<int64_t>(
      static_cast<uint64_t>(kStrange[change.value[1] % std::size(kStrange)]) +
      static_cast<uint64_t>(static_cast<int8_t>(change.value[2]) % 3));
}

// Bytes changed, or an end cut off; some with checksums that fit.
std::vector<uint8_t> damaged(std::span<const uint8_t> blob, const Change& change) {
  std::vector<uint8_t> result(blob.begin(), blob.end());
  if (result.empty()) return result;
  const size_t at = (change.row * 251U + change.value[1]) % result.size();
  if (change.value[0] % 8 == 0) {
    result.resize(at);
  } else {
    result[at] = static_cast<uint8_t>(result[at] ^ (change.value[2] | 1U));
  }
  if (change.value[0] % 2 == 0) schema::fix_checksums(result);
  return result;
}

void set_value(schema::Database& db, const std::string& table, const std::string& column,
               int64_t rowid, const Change& change) {
  const std::string where = " WHERE rowid = " + std::to_string(rowid);
  const std::string set = "UPDATE \"" + table + "\" SET \"" + column + "\" = ";
  schema::Statement old = db.prepare("SELECT typeof(\"" + column + "\"), \"" + column +
                                     "\" FROM \"" + table + "\"" + where);
  if (!old.step()) return;
  const std::string type(old.column_text(0));
  switch (change.kind % 8) {
    case 0:
      db.exec("DELETE FROM \"" + table + "\"" + where);
      return;
    case 1:
      db.exec(set + "NULL" + where);
      return;
    case 2:
      db.exec(set + "'text'" + where);
      return;
    case 3:
      db.exec(set + "x'00ff80'" + where);
      return;
    case 4:
      db.exec(set + "(SELECT \"" + column + "\" FROM \"" + table +
              "\" ORDER BY rowid LIMIT 1 OFFSET " + std::to_string(change.value[0] % 32) + ")" +
              where);
      return;
    default:
      break;
  }
  if (type == "blob") {
    const std::vector<uint8_t> blob = damaged(old.column_blob(1), change);
    db.prepare(set + "?" + where).run_with(std::span<const uint8_t>(blob));
  } else if (change.kind % 8 == 5) {
    db.exec(set + "\"" + column + "\" + " + std::to_string(static_cast<int8_t>(change.value[0])) +
            where);
  } else {
    db.prepare(set + "?" + where).run_with(strange_number(change));
  }
}

void apply(schema::Database& db, const Change& change) {
  const auto tables =
      texts(db,
            "SELECT name FROM sqlite_schema WHERE type = 'table'"
            " AND sql NOT LIKE '%WITHOUT ROWID%' AND sql NOT LIKE '%VIRTUAL%' ORDER BY name");
  const std::string& table = tables[change.table % tables.size()];
  const auto columns = texts(db, "SELECT name FROM pragma_table_info('" + table + "')");
  const int64_t rows = db.query_int("SELECT count(*) FROM \"" + table + "\"").value_or(0);
  if (rows == 0 || columns.empty()) return;
  const auto rowid =
      db.query_int("SELECT rowid FROM \"" + table + "\" ORDER BY rowid LIMIT 1 OFFSET " +
                   std::to_string(change.row % rows));
  if (rowid) set_value(db, table, columns[change.column % columns.size()], *rowid, change);
}

void change_trace(const std::string& path, std::span<const uint8_t> changes) {
  schema::Database db = schema::open_trace(path, schema::OpenMode::kReadWrite);
  db.exec(
      "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA ignore_check_constraints = ON");
  for (size_t i = 0; i < kChangesMax && (i + 1) * kChangeBytes <= changes.size(); ++i) {
    try {
      apply(db, Change(changes.data() + i * kChangeBytes));
    } catch (const std::exception&) {
      // The schema forbids it.
    }
  }
}

template <class Work>
void tolerate(Work work) {
  try {
    work();
  } catch (const std::exception&) {
    // The analyzer prints it as one line.
  }
}

void render(const Document& document) {
  if (render_json(document).empty() || render_text(document).empty()) std::abort();
}

void ask_everything(const std::string& path, bool with_models) {
  const ReportOptions options;
  for (const Report& report : reports()) {
    tolerate([&] {
      std::vector<Trace> traces;
      for (int i = 0; i < report.trace_count_min(); ++i) traces.push_back(open_for_report(path));
      render(report.run({traces, options}));
    });
  }
  tolerate([&] {
    Trace trace = open_for_report(path);
    export_folded({{&trace, 1}, options}, 0);
    export_pprof({{&trace, 1}, options});
  });
  if (!with_models) return;
  tolerate([&] {
    Trace trace = open_for_report(path);
    render(run_sweep(trace, {}, options));
  });
  tolerate([&] {
    Trace trace = open_for_report(path);
    render(run_advise(trace, options));
  });
}

}  // namespace
}  // namespace heapledger::analyzer

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heapledger::analyzer;
  static const Folder folder;
  static const auto samples = make_samples(folder);
  if (size == 0) return 0;
  const std::string path = folder / "trace.db";
  const Bytes& good = samples[(data[0] & 0x3f) % samples.size()][data[0] >> 7];
  {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file.write(good.data(), static_cast<std::streamsize>(good.size()));
  }
  tolerate([&] { change_trace(path, {data + 1, size - 1}); });
  ask_everything(path, (data[0] & 0x40) != 0);
  return 0;
}
