// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/address_space.h"

#include <gtest/gtest.h>

#include "interposer/collector/call_tree.h"

namespace heapledger::collector {
namespace {

class FrameKeys : public ::testing::Test {
 protected:
  // The id of the module's row.
  static uint32_t load(AddressSpace& space, const char* path, uint64_t start, uint64_t end,
                       int64_t time_ns = 0) {
    Module module;
    module.path = path;
    module.base = module.start = start;
    module.end = end;
    module.start_ns = time_ns;
    const Module* row = space.load(module);
    return row == nullptr ? 0 : row->id;
  }
  // What the trace says of an address.
  Frame frame(AddressSpace& space, uint64_t pc, int64_t time_ns = 1) {
    const uint32_t id = frames_.frame(space.key(pc, time_ns));
    for (const Frame& row : frames_.fresh()) {
      if (row.id == id) return row;
    }
    return {};
  }

  FrameTable frames_;
  AddressSpace space_{frames_};
};

TEST_F(FrameKeys, AreTheSameForTheSameAddressAndNameModuleAndOffset) {
  // Goal: the quick way (an address in the module seen last) says what the slow one says. Method:
  // addresses of two far modules in turn, edges included, asked for twice.
  const uint32_t a = load(space_, "a.so", 0x7f0000000000, 0x7f0000003000);
  const uint32_t b = load(space_, "b.so", 0x400000, 0x500000);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(frame(space_, 0x7f0000000001).module, a);
    EXPECT_EQ(frame(space_, 0x400010).module, b);
    EXPECT_EQ(frame(space_, 0x400010).offset, 0x10U);
    EXPECT_EQ(frame(space_, 0x7f0000003000).module, a) << "one past the end returns into it";
    EXPECT_EQ(frame(space_, 0x7f0000003000).offset, 0x3000U);
    EXPECT_EQ(frame(space_, 0x7f0000003001).module, 0U);
    EXPECT_EQ(frame(space_, 0x7f0000000000).module, 0U) << "no call ends before its module";
    EXPECT_EQ(frame(space_, 0x500001).offset, 0x500001U);
  }
  EXPECT_EQ(frames_.fresh().size(), 7U) << "the incomplete frame and six others";
  EXPECT_EQ(frames_.fresh()[0].id, kIncompleteFrame);
}

TEST_F(FrameKeys, AModuleThatGoesTakesItsAddressesAlong) {
  // Goal: nothing is remembered beyond a module's end. Method: two libraries one after the other at
  // the same place; while they change, addresses are resolved by time.
  const uint32_t a = load(space_, "a.so", 0x10000, 0x20000);
  EXPECT_EQ(frame(space_, 0x10010).module, a);
  space_.unload(0x10000, 0x20000, 10);
  EXPECT_EQ(frame(space_, 0x10010, 11).module, 0U);
  const uint32_t b = load(space_, "b.so", 0x8000, 0x18000, 20);
  EXPECT_EQ(frame(space_, 0x10010, 21).module, b);
  EXPECT_EQ(frame(space_, 0x10010, 21).offset, 0x8010U);
  space_.set_changing(true);
  EXPECT_EQ(frame(space_, 0x10010, 21).module, b);
  EXPECT_EQ(frame(space_, 0x10010, 5).module, a);
  space_.set_changing(false);
  EXPECT_EQ(frame(space_, 0x10010, 30).module, b);
}

TEST_F(FrameKeys, OfOneFileAreSharedByAForkAndOtherwiseNot) {
  // Goal: stacks of a fork are its parent's. Method: a copied space, and another one.
  load(space_, "a.so", 0x10000, 0x20000);
  AddressSpace child(space_);
  AddressSpace other(frames_);
  EXPECT_EQ(child.key(0x10010, 1), space_.key(0x10010, 1));
  EXPECT_NE(other.key(0x10010, 1), space_.key(0x10010, 1));
}

TEST_F(FrameKeys, OddModulesAndAddressesHaveFramesToo) {
  // Goal: what does not fit into a key is not cut. Method: a module longer than a key's offset, one
  // whose base lies above it, the largest address.
  load(space_, "long.so", 0x1000, uint64_t{1} << 50);
  EXPECT_EQ(frame(space_, uint64_t{1} << 49).offset, (uint64_t{1} << 49) - 0x1000);
  EXPECT_EQ(frame(space_, 0x2000).offset, 0x1000U);
  Module module;
  module.base = UINT64_MAX - 0xfff;
  module.start = uint64_t{1} << 51;
  module.end = module.start + 0x1000;
  module.path = "low.so";
  AddressSpace other(frames_);
  const uint32_t id = other.load(module)->id;
  EXPECT_EQ(frame(other, module.start + 1).module, id);
  EXPECT_EQ(frame(other, module.start + 1).offset, module.start + 1 - module.base);
  EXPECT_EQ(frame(other, UINT64_MAX).offset, UINT64_MAX);
  EXPECT_EQ(frame(other, 0).offset, 1U) << "no code lies at 0";
}

}  // namespace
}  // namespace heapledger::collector
