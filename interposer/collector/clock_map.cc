// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/clock_map.h"

#include <time.h>
#include <x86intrin.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

namespace heapledger::collector {
namespace {

// A correction is spread over this long, so that a slope changes by parts per million only.
constexpr double kCorrectionNs = 100e6;
// No piece may differ more from the long-term slope: keeps the map rising whatever a pair says.
constexpr double kSlopeChangeMax = 0.01;

bool file_has_word(const char* path, const std::string& word) {
  std::ifstream file(path);
  for (std::string item; file >> item;) {
    if (item == word) return true;
  }
  return false;
}

}  // namespace

int64_t raw_now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

schema::Clock best_clock() {
  const bool steady = file_has_word("/proc/cpuinfo", "constant_tsc") &&
                      file_has_word("/proc/cpuinfo", "nonstop_tsc");
  // The kernel takes "tsc" off this list when it finds the processors' counters apart.
  const bool trusted =
      file_has_word("/sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc");
  return steady && trusted ? schema::Clock::kTsc : schema::Clock::kMonotonicRaw;
}

ClockPair read_clock_pair(schema::Clock clock) {
  if (clock == schema::Clock::kMonotonicRaw) {
    const int64_t now = raw_now_ns();
    return {static_cast<uint64_t>(now), now, 0};
  }
  ClockPair best;
  uint64_t best_ticks = UINT64_MAX;
  for (int i = 0; i < 5; ++i) {
    const uint64_t before = __rdtsc();
    const int64_t now = raw_now_ns();
    const uint64_t after = __rdtsc();
    if (after - before >= best_ticks) continue;
    best_ticks = after - before;
    best = {before + best_ticks / 2, now, best_ticks / 2};  // Ticks are below a nanosecond.
  }
  return best;
}

ClockMap::ClockMap(schema::Clock clock, const ClockPair& first, const ClockPair& second)
    : clock_(clock), first_(first), slope_(1.0) {
  if (clock == schema::Clock::kTsc && second.tick > first.tick) {
    slope_ = static_cast<double>(second.raw_ns - first.raw_ns) /
             static_cast<double>(second.tick - first.tick);
  }
  pieces_.push_back({first.tick, first.raw_ns, slope_});
  error_ns_ = first.uncertain_ns;
}

void ClockMap::add(const ClockPair& pair) {
  if (clock_ == schema::Clock::kMonotonicRaw || pair.tick <= pieces_.back().tick) return;
  const int64_t said = to_ns(pair.tick);
  const auto error = static_cast<double>(pair.raw_ns - said);
  error_ns_ = std::max(error_ns_, static_cast<uint64_t>(std::fabs(error)) + pair.uncertain_ns);
  slope_ = static_cast<double>(pair.raw_ns - first_.raw_ns) /
           static_cast<double>(pair.tick - first_.tick);
  const double change = std::clamp(error / kCorrectionNs, -kSlopeChangeMax, kSlopeChangeMax);
  pieces_.push_back({pair.tick, said, slope_ * (1.0 + change)});
}

int64_t ClockMap::to_ns(uint64_t tick) const {
  size_t index = pieces_.size() - 1;
  if (tick < pieces_[index].tick && index > 0) {
    --index;  // The usual case of those that are not in the newest.
    if (tick < pieces_[index].tick) {
      const auto after =
          std::upper_bound(pieces_.begin(), pieces_.end(), tick,
                           [](uint64_t wanted, const Piece& piece) { return wanted < piece.tick; });
      index = after == pieces_.begin() ? 0 : static_cast<size_t>(after - pieces_.begin()) - 1;
    }
  }
  const Piece& piece = pieces_[index];
  // Floor, not truncation: rounding must not fold two sides of a piece's start onto each other.
  constexpr int64_t kFarthest = int64_t{1} << 60;  // A damaged stamp must not overflow.
  const int64_t distance =
      std::clamp(static_cast<int64_t>(tick - piece.tick), -kFarthest, kFarthest);
  const auto ticks = static_cast<double>(distance);
  return piece.ns + static_cast<int64_t>(std::floor(ticks * piece.slope));
}

void ClockMap::Cursor::find(uint64_t tick) {
  const auto& pieces = map_->pieces_;
  const auto after =
      std::upper_bound(pieces.begin(), pieces.end(), tick,
                       [](uint64_t wanted, const Piece& piece) { return wanted < piece.tick; });
  ticks_ = 0;
  if (after == pieces.begin()) return;  // Before the first: to_ns() knows.
  const Piece& piece = *(after - 1);
  constexpr uint64_t kFarthest = uint64_t{1} << 60;
  tick_ = piece.tick;
  ticks_ = after == pieces.end() ? kFarthest : after->tick - piece.tick;
  ns_ = piece.ns;
  slope_ = piece.slope;
}

int64_t ClockMap::duration_ns(uint64_t ticks) const {
  return static_cast<int64_t>(static_cast<double>(ticks) * pieces_.back().slope);
}

uint64_t ClockMap::tick_hz() const { return static_cast<uint64_t>(std::llround(1e9 / slope_)); }

}  // namespace heapledger::collector
