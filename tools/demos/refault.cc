// SPDX-License-Identifier: Apache-2.0
// refault: the same memory paid for again and again.
//
// Each round builds a working set of 4 MB from blocks below the mmap threshold and frees it. The
// free memory lies at the top of the heap; where it is more than the trim threshold (128 KiB),
// free() gives it back by moving the break down. The next round moves the break up and touches the
// pages again: a system call and a page fault for each page, every round, for memory the program
// never stopped needing.
//
//   heapledger faults TRACE                   shows the repeat faults of build_working_set
//   heapledger record --trim-threshold 64M    keeps the memory: each page is paid once
#include "tools/demos/demo.h"

namespace {

constexpr size_t kRounds = 500;
constexpr size_t kBlocks = 64;
constexpr size_t kBlockBytes = size_t{64} << 10;

struct WorkingSet {
  char* blocks[kBlocks] = {};
};

DEMO_FUNCTION void build_working_set(WorkingSet& set) {
  for (char*& block : set.blocks) {
    block = static_cast<char*>(std::malloc(kBlockBytes));
    if (block == nullptr) std::abort();
    demo::touch_pages(block, kBlockBytes);
  }
}

DEMO_FUNCTION void drop_working_set(WorkingSet& set) {
  for (char* block : set.blocks) std::free(block);
}

DEMO_FUNCTION void run_rounds(size_t count) {
  for (size_t i = 0; i < count; ++i) {
    WorkingSet set;
    build_working_set(set);
    drop_working_set(set);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t count = demo::scaled(kRounds, argc, argv);
  run_rounds(count);
  std::printf("refault: %zu rounds over the same 4 MB\n", count);
}
