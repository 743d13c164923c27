// SPDX-License-Identifier: Apache-2.0
//
// Both number syntaxes at their edges.
#include "interposer/base/options.h"

#include <gtest/gtest.h>

namespace heapledger::base {
namespace {

TEST(Options, TunableNumbersFollowGlibc) {
  EXPECT_EQ(parse_tunable_number("65536"), 65536U);
  EXPECT_EQ(parse_tunable_number(" \t12"), 12U);
  EXPECT_EQ(parse_tunable_number("64K"), 64U);
  EXPECT_EQ(parse_tunable_number("0x1F"), 31U);
  EXPECT_EQ(parse_tunable_number("010"), 8U);
  EXPECT_EQ(parse_tunable_number("+5"), 5U);
  EXPECT_EQ(parse_tunable_number("-1"), UINT64_MAX);
  EXPECT_EQ(parse_tunable_number(""), 0U);
  EXPECT_EQ(parse_tunable_number("x"), 0U);
  EXPECT_EQ(parse_tunable_number("0"), 0U);
  EXPECT_EQ(parse_tunable_number("18446744073709551615"), UINT64_MAX);
  EXPECT_EQ(parse_tunable_number("99999999999999999999"), UINT64_MAX);
}

TEST(Options, SizesTakeSuffixesAndNothingElse) {
  uint64_t bytes = 0;
  EXPECT_TRUE(parse_size("0", &bytes));
  EXPECT_EQ(bytes, 0U);
  EXPECT_TRUE(parse_size("128K", &bytes));
  EXPECT_EQ(bytes, 131072U);
  EXPECT_TRUE(parse_size("32m", &bytes));
  EXPECT_EQ(bytes, 32U << 20);
  EXPECT_TRUE(parse_size("17179869183G", &bytes));
  EXPECT_EQ(bytes, 0x3ffffffffULL << 30);
  bytes = 7;
  for (const char* bad :
       {"", "K", "-1", " 1", "1 ", "1KB", "1.5M", "0x10", "17179869184G", "99999999999999999999"}) {
    EXPECT_FALSE(parse_size(bad, &bytes)) << bad;
  }
  EXPECT_EQ(bytes, 7U);
}

TEST(Options, ThresholdsHaveTwoNames) {
  EXPECT_EQ(parse_threshold("brk-only").kind, ThresholdKind::kBrkOnly);
  EXPECT_EQ(parse_threshold("mmap-only").kind, ThresholdKind::kMmapOnly);
  EXPECT_EQ(parse_threshold("4K").bytes, 4096U);
  EXPECT_EQ(parse_threshold("4K").kind, ThresholdKind::kBytes);
  EXPECT_EQ(parse_threshold("brk").kind, ThresholdKind::kInvalid);
}

}  // namespace
}  // namespace heapledger::base
