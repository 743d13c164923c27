// SPDX-License-Identifier: Apache-2.0
#include "schema/time_column.h"

#include <algorithm>
#include <cmath>

#include "schema/error.h"

namespace heapledger::schema {
namespace {

constexpr int kStepBits = 16;
constexpr uint64_t kOneNs = uint64_t{1} << kStepBits;
constexpr uint64_t kStepMax = 256;                   // Nanoseconds.
constexpr uint64_t kInStepsMax = uint64_t{1} << 33;  // Longer differences are written whole.
constexpr size_t kSample = 512;

uint64_t in_ns(uint64_t steps, uint64_t step) { return steps * step >> kStepBits; }

// The largest whole number of which nearly all short differences are multiples, or one more; 0:
// none. Of 4 or less any number is, or nearly.
uint64_t coarse_step(std::span<const uint64_t> sorted) {
  constexpr size_t kEnough = 64;
  for (uint64_t step = 64; step > 4; --step) {
    const auto short_ones = sorted.first(static_cast<size_t>(
        std::lower_bound(sorted.begin(), sorted.end(), 32 * step) - sorted.begin()));
    if (short_ones.size() < kEnough) continue;
    // Most steps are refused after a few differences.
    size_t may_fail = short_ones.size() / 50;
    const bool fits = std::all_of(short_ones.begin(), short_ones.end(), [&](uint64_t difference) {
      return difference % step <= 1 || may_fail-- > 0;
    });
    if (fits) return step;
  }
  return 0;
}

}  // namespace

uint64_t find_clock_step(std::span<uint64_t> differences) {
  std::sort(differences.begin(), differences.end());
  const auto zeros = std::upper_bound(differences.begin(), differences.end(), uint64_t{0});
  const auto sorted = differences.subspan(static_cast<size_t>(zeros - differences.begin()));
  double step = static_cast<double>(coarse_step(sorted));
  if (step == 0) return kOneNs;
  // Least squares, from the short ones to the long ones: each says how many steps the next is.
  double products = 0;
  double squares = 0;
  for (const uint64_t difference : sorted) {
    const auto length = static_cast<double>(difference);
    const double steps = std::round(length / step);
    if (steps < 1 || std::abs(length - steps * step) > step / 4) continue;
    products += steps * length;
    squares += steps * steps;
    step = products / squares;
  }
  return static_cast<uint64_t>(std::llround(step * static_cast<double>(kOneNs)));
}

void TimeColumnWriter::finish(SplitWriter out) {
  const std::span<const uint64_t> differences(differences_.data(), count_);
  out.first.start(2 * differences_.size() + 1);
  out.rest.start(2 * differences_.size() + 1);
  uint64_t step = kOneNs;
  if (count_ > kSample) {
    sample_.assign(differences.begin() + 1, differences.begin() + kSample + 1);
    step = find_clock_step(sample_);
  }
  out.rest.put(step);
  if (step == kOneNs) {
    out.put_all(count_, rests_, [&](size_t i) { return differences[i]; });
    return;
  }
  if (rests_.size() < 2 * count_) rests_.resize(2 * count_);
  uint64_t* next_rest = rests_.data();
  uint8_t* next = out.first.cursor().at;
  const auto put = [&](uint64_t value) {
    const uint64_t more = is_above(value, 0x7f);
    *next++ = static_cast<uint8_t>((value & 0x7f) | more << 7);
    *next_rest = value >> 7;
    next_rest += more;
  };
  // A step is more than 2^18, so that a difference times this fits. What it is too small by is a
  // step for half a second and more: that is then written whole.
  constexpr int kInverseBits = 32;
  const uint64_t inverse = (kOneNs << kInverseBits) / step;
  for (const uint64_t difference : differences) {
    // One more, so that what rounding took away does not take a whole step.
    const uint64_t steps = (std::min(difference, kInStepsMax) + 1) * inverse >> kInverseBits;
    const uint64_t rest = difference - in_ns(steps, step);
    if (rest <= 1) {
      put(1 + 2 * steps + rest);
      continue;
    }
    *next++ = 0;
    *next++ = static_cast<uint8_t>((difference & 0x7f) | (difference > 0x7f ? 0x80 : 0));
    if (difference > 0x7f) *next_rest++ = difference >> 7;
  }
  out.first.advance_to({next});
  VarintCursor cursor = out.rest.cursor();
  for (const uint64_t* at = rests_.data(); at != next_rest; ++at) cursor.put(*at);
  out.rest.advance_to(cursor);
}

void read_times(SplitReader section, NumberColumn& numbers, std::span<int64_t> times) {
  const uint64_t step = section.rest.take();
  if (step == 0 || step > kStepMax * kOneNs) VarintReader::fail();
  NumberCursor in = numbers.read(section);
  uint64_t time = 0;
  for (size_t i = 0; i < times.size(); ++i) {
    uint64_t difference = in.take();
    if (step != kOneNs) {
      if (difference == 0) {
        difference = in.take();
      } else {
        --difference;
        difference = in_ns(difference >> 1, step) + (difference & 1);
      }
    }
    const uint64_t before = time;
    time += difference;
    times[i] = static_cast<int64_t>(time);
    if (i > 0 && times[i] < static_cast<int64_t>(before)) {
      throw Error("cannot decode a packed batch", "its times go backwards");
    }
  }
  in.finish();
}

}  // namespace heapledger::schema
