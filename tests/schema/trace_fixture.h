// SPDX-License-Identifier: Apache-2.0
// A trace file of its own for each test, and a small language to fill it:
//     add_calls(1, rows);  add_faults(1, rows, attribution);  damage("event_batch", 3);
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "schema/event_batch.h"
#include "schema/fault_batch.h"
#include "schema/trace_db.h"

namespace heapledger::schema {

class TraceTest : public ::testing::Test {
 protected:
  TraceTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    directory_ = std::filesystem::temp_directory_path() /
                 ("heapledger-" + std::to_string(getpid()) + "-" + info->name());
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    path_ = (directory_ / "trace.db").string();
  }
  ~TraceTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  // One batch; returns its id.
  static int64_t add_calls(Database& db, int64_t process, const std::vector<CallRow>& rows) {
    db.prepare(
          "INSERT INTO event_batch(process, events, time_min_ns, time_max_ns, data) "
          "VALUES (?, ?, ?, ?, ?)")
        .run_with(process, rows.size(), rows.front().time_ns, rows.back().time_ns,
                  encode_calls(rows));
    return db.last_insert_id();
  }

  static int64_t add_faults(Database& db, int64_t process, const std::vector<FaultRow>& rows,
                            const std::vector<FaultAttribution>& attribution = {}) {
    Statement insert = db.prepare(
        "INSERT INTO fault_batch(process, faults, time_min_ns, time_max_ns, data, attribution) "
        "VALUES (?, ?, ?, ?, ?, ?)");
    const std::vector<uint8_t> data = encode_faults(rows);
    const std::vector<uint8_t> more = encode_attribution(attribution);
    insert.bind_all(process, rows.size(), rows.front().time_ns, rows.back().time_ns, data);
    if (!attribution.empty()) insert.bind(6, more);
    insert.run();
    return db.last_insert_id();
  }

  // Changes a byte in the middle of a batch's blob.
  static void damage(Database& db, const std::string& table, int64_t id) {
    Statement read = db.prepare("SELECT data FROM " + table + " WHERE id = ?");
    read.bind(1, id);
    ASSERT_TRUE(read.step());
    const auto blob = read.column_blob(0);
    std::vector<uint8_t> bytes(blob.begin(), blob.end());
    read.reset();
    bytes[bytes.size() - 1] ^= 0x55;
    db.prepare("UPDATE " + table + " SET data = ? WHERE id = ?").run_with(bytes, id);
  }

  std::filesystem::path directory_;
  std::string path_;
};

}  // namespace heapledger::schema
