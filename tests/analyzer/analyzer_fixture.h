// SPDX-License-Identifier: Apache-2.0
// A folder of its own for each test, which is the working directory: traces have short names, so
// that the commands in findings are the same everywhere.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "analyzer/reports/open_trace.h"
#include "tests/analyzer/sample_traces.h"

namespace heapledger::analyzer {

class AnalyzerTest : public ::testing::Test {
 protected:
  AnalyzerTest() {
    std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    for (char& c : name) c = c == '/' ? '_' : c;
    folder_ = std::filesystem::temp_directory_path() /
              ("heapledger-analyzer-" + std::to_string(getpid()) + "-" + name);
    std::filesystem::create_directories(folder_);
    before_ = std::filesystem::current_path();
    std::filesystem::current_path(folder_);
  }
  ~AnalyzerTest() override {
    std::filesystem::current_path(before_);
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  static Trace open(const TraceBuilder& builder, const std::string& path = "trace.db") {
    builder.write(path);
    return open_for_report(path);
  }

 private:
  std::filesystem::path folder_, before_;
};

}  // namespace heapledger::analyzer
