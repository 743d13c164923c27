// SPDX-License-Identifier: Apache-2.0
//
// A small language for allocator tests: an allocator of one's own over a simulated space, and one
// thread that calls it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "interposer/heap/allocator.h"
#include "tests/interposer/heap/simulated_os.h"

namespace heapledger::heap {

extern template class Allocator<Header16, SimulatedOs>;
extern template class Allocator<Glibc, SimulatedOs>;
using TestAllocator = Allocator<Header16, SimulatedOs>;

template <class Layout>
class HeapTestOf : public ::testing::Test {
 protected:
  using AllocatorType = Allocator<Layout, SimulatedOs>;

  // The allocator is made at the first use, with the space's settings as they are then.
  AllocatorType& heap() {
    if (heap_ == nullptr) heap_ = std::make_unique<AllocatorType>(SimulatedOs{&space_});
    return *heap_;
  }
  char* alloc(size_t size) { return static_cast<char*>(heap().allocate(thread_, size)); }
  char* zeroed(size_t size) { return static_cast<char*>(heap().allocate_zeroed(thread_, 1, size)); }
  char* resize(void* block, size_t size) {
    return static_cast<char*>(heap().reallocate(thread_, block, size));
  }
  char* aligned(size_t alignment, size_t size) {
    return static_cast<char*>(heap().allocate_aligned(thread_, alignment, size));
  }
  void release(void* block) { heap().release(thread_, block); }

  // The system calls since the last question.
  std::string calls() { return space_.take_text(); }

  void TearDown() override { expect_valid(); }
  void expect_valid() {
    if (heap_ == nullptr) return;
    const char* why = nullptr;
    EXPECT_TRUE(heap().arena_is_valid(&thread_, &why)) << why;
  }

  SimulatedSpace space_;
  Settings& settings_ = space_.settings;
  Thread<Layout> thread_;

 private:
  std::unique_ptr<AllocatorType> heap_;
};

using HeapTest = HeapTestOf<Header16>;

}  // namespace heapledger::heap
