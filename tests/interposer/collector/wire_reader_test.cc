// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/wire_reader.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/interposer/collector/event_builder.h"

namespace heapledger::collector {
namespace {

using schema::EventKind;
using testing::allocation;
using testing::Bytes;
using testing::joined;
using testing::module;
using testing::release;
using testing::stack;

std::vector<EventKind> kinds_in(const Bytes& bytes, uint64_t* damaged = nullptr) {
  WireReader reader(bytes);
  WireEvent event;
  std::vector<EventKind> kinds;
  while (reader.next(event)) kinds.push_back(event.head.kind);
  if (damaged != nullptr) *damaged = reader.damaged();
  return kinds;
}

TEST(WireReader, ReadsOptionalWordsTextAndFrames) {
  // Goal: every part is found where event.h puts it. Method: one event with all of them each.
  const uint8_t both = schema::kHasUsable | schema::kHasAlignment;
  const Bytes bytes = joined(
      {allocation(EventKind::kMemalign, 5, 9, 0x1000, 100, stack({1, 2}, 3, both), {112, 64}),
       module(EventKind::kModuleLoad, 6, 0x4000, 0x8000, "/lib/x.so")});
  WireReader reader(bytes);
  WireEvent event;
  ASSERT_TRUE(reader.next(event));
  EXPECT_EQ(event.usable, 112U);
  EXPECT_EQ(event.alignment, 64U);
  EXPECT_EQ(event.head.keep, 3);
  EXPECT_EQ(event.frame(0), 1U);
  EXPECT_EQ(event.frame(1), 2U);
  EXPECT_EQ(event.as<schema::AllocEvent>().size, 100U);
  ASSERT_TRUE(reader.next(event));
  EXPECT_EQ(event.text, "/lib/x.so");
  EXPECT_FALSE(reader.next(event));
  EXPECT_EQ(reader.damaged(), 0U);
}

TEST(WireReader, PassesOverPadsAndUnknownKinds) {
  // Goal: rules 1 and 2 of event.h. Method: a one-word pad, a long pad and a kind of the future.
  Bytes pad(8);
  pad[2] = std::byte{1};
  Bytes long_pad(64);
  long_pad[2] = std::byte{8};
  Bytes future = release(1, 1, 1);
  future[0] = std::byte{200};
  uint64_t damaged = 1;
  EXPECT_EQ(
      kinds_in(joined({pad, release(1, 1, 1), long_pad, future, release(2, 2, 2), pad}), &damaged),
      (std::vector<EventKind>{EventKind::kFree, EventKind::kFree}));
  EXPECT_EQ(damaged, 0U);
}

TEST(WireReader, TruncatedAtAnyByteKeepsTheEventsBeforeTheCut) {
  // Goal: no read beyond the end, nothing invented. Method: cut a stream at every length.
  const Bytes first = allocation(EventKind::kMalloc, 1, 1, 0x10, 8, stack({1, 2, 3}));
  const Bytes second = module(EventKind::kModuleLoad, 2, 1, 2, "/a/path");
  const Bytes whole = joined({first, second});
  for (size_t cut = 0; cut < whole.size(); ++cut) {
    const Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(cut));
    EXPECT_EQ(kinds_in(part).size(), cut >= first.size() ? 1U : 0U) << cut;
  }
}

TEST(WireReader, EventWhosePartsDoNotFitIsDroppedAloneAndCounted) {
  // Goal: one bad event costs one event. Method: more frames, and more text, than `words` holds.
  Bytes frames = allocation(EventKind::kMalloc, 1, 1, 0x10, 8, stack({1}));
  frames[4] = std::byte{200};
  Bytes text = module(EventKind::kModuleLoad, 2, 1, 2, "/a");
  text[offsetof(schema::ModuleEvent, text_bytes) + 3] = std::byte{0xFF};
  uint64_t damaged = 0;
  EXPECT_EQ(kinds_in(joined({frames, release(1, 1, 1), text, release(2, 2, 2)}), &damaged).size(),
            2U);
  EXPECT_EQ(damaged, 2U);
}

TEST(WireReader, AnyBytesAtAllAreReadToTheirEnd) {
  // Goal: a ring that was written over neither crashes nor hangs. Method: flip each byte of a small
  // stream to several values, and read random bytes.
  const Bytes whole =
      joined({allocation(EventKind::kMalloc, 1, 1, 0x10, 8, stack({1, 2})),
              module(EventKind::kModuleLoad, 2, 1, 2, "/a/path"), release(3, 1, 0x10)});
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const int value : {0, 1, 0x7F, 0x80, 0xFF}) {
      Bytes damaged = whole;
      damaged[i] = static_cast<std::byte>(value);
      EXPECT_LE(kinds_in(damaged).size(), whole.size() / 16);
    }
  }
  std::minstd_rand random(5);
  for (int round = 0; round < 200; ++round) {
    Bytes noise(512);
    for (std::byte& byte : noise) byte = static_cast<std::byte>(random() & 0x2F);
    EXPECT_LE(kinds_in(noise).size(), noise.size() / 16);
  }
}

}  // namespace
}  // namespace heapledger::collector
