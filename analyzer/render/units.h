// SPDX-License-Identifier: Apache-2.0
// Numbers for people. Thread safety: pure.
#pragma once

#include <cstdint>
#include <string>

namespace heapledger::analyzer {

std::string human_bytes(int64_t bytes);   // 512 B, 1.25 KiB, 310.0 MiB
std::string human_ns(int64_t ns);         // 340 ns, 12.5 us, 3.20 ms, 1.04 s
std::string human_count(int64_t count);   // 1,234,567
std::string human_time(int64_t ns);       // 0.001234 s: a moment of the recording
std::string human_ratio(double ratio);    // 12.3 %
std::string human_factor(double factor);  // 1.00x, 203x

// "1 block", "3 blocks".
std::string counted(int64_t count, const std::string& noun);

}  // namespace heapledger::analyzer
