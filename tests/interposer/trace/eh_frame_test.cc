// SPDX-License-Identifier: Apache-2.0
// Recipes compiled from real files, against elfutils' reading of the same files.
#include "interposer/trace/eh_frame.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstring>
#include <iostream>
#include <map>
#include <random>

#include "tests/interposer/trace/cfi_oracle.h"
#include "tests/interposer/trace/elf_image.h"

namespace heapledger::testing {
namespace {

using trace::Recipe;
using trace::RecipeType;

// Counts of one file, by outcome.
struct Tally {
  size_t asked = 0;
  size_t other = 0;  // kOther, rightly.
  std::map<std::string, size_t> reasons;
};

struct File {
  const char* path;
  size_t other_per_10000;  // More return addresses beyond recipes than that are too many.
};
void PrintTo(const File& file, std::ostream* out) { *out << file.path; }

// Compilers write next to none. Assembler does: the linker's lazy binding keeps its CFA in rbx, and
// cryptographic kernels keep theirs in memory.
constexpr File kFiles[] = {{"/proc/self/exe", 9},
                           {"/lib/x86_64-linux-gnu/libc.so.6", 9},
                           {"/lib64/ld-linux-x86-64.so.2", 100},
                           {"/usr/lib/x86_64-linux-gnu/libstdc++.so.6", 9},
                           {"/usr/lib/x86_64-linux-gnu/libsqlite3.so.0", 9},
                           {"/usr/lib/x86_64-linux-gnu/libcrypto.so.3", 20},
                           {"/usr/bin/python3", 9},
                           {"/usr/bin/perl", 9},
                           {"/usr/bin/node", 9},
                           {"/usr/lib/x86_64-linux-gnu/libnode.so.108", 9},
                           {"/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", 9}};

// Debian's node is a launcher of libnode, others' is all there is.
constexpr uint64_t kCodeBytesMin = 16384;

class CompiledFromFile : public ::testing::TestWithParam<File> {
 protected:
  void SetUp() override {
    image_ = ElfImage::load(GetParam().path);
    if (!image_) GTEST_SKIP() << GetParam().path << " is not here";
    uint64_t bytes = 0;
    for (const ElfImage::Code& code : image_->code()) bytes += code.end - code.start;
    if (bytes < kCodeBytesMin) GTEST_SKIP() << GetParam().path << " only starts a library";
    oracle_ = std::make_unique<CfiOracle>(GetParam().path);
    ASSERT_TRUE(oracle_->opened());
  }

  // Compares one address; what the oracle knows about its row.
  std::optional<CfiOracle::Answer> compare(uint64_t address, Tally* tally) {
    const Recipe recipe = trace::compile_recipe(image_->table(), image_->at(address));
    const auto answer = oracle_->ask(address);
    ++tally->asked;
    EXPECT_EQ(recipe.type == RecipeType::kNoCfi, !answer) << std::hex << address;
    if (!answer) return answer;
    if (recipe.type == RecipeType::kOther) {
      EXPECT_NE(answer->beyond_recipes, "") << std::hex << address;
      ++tally->other;
      ++tally->reasons[answer->beyond_recipes];
      return answer;
    }
    EXPECT_EQ(follow(recipe, MadeUpFrame{address}), answer->caller)
        << std::hex << address << " type " << static_cast<int>(recipe.type);
    return answer;
  }

  static void print(const Tally& tally, const char* what) {
    std::cout << GetParam().path << ": " << tally.asked << what << tally.other
              << " beyond recipes\n";
    for (const auto& [reason, count] : tally.reasons) {
      std::cout << "  " << count << " " << reason << "\n";
    }
  }

  // Addresses after what looks like a direct call of a described function, at most about `most`.
  std::vector<uint64_t> call_sites(size_t most) const {
    std::vector<uint64_t> sites;
    for (const ElfImage::Code& code : image_->code()) {
      for (uint64_t at = code.start; at + 5 <= code.end; ++at) {
        if (*image_->bytes(at) != std::byte{0xe8}) continue;
        int32_t distance;
        std::memcpy(&distance, image_->bytes(at + 1), sizeof(distance));
        const uint64_t target = at + 5 + static_cast<uint64_t>(int64_t{distance});
        if (target >= code.start && target < code.end && target % 16 == 0) sites.push_back(at + 5);
      }
    }
    if (sites.size() <= most) return sites;
    std::vector<uint64_t> some;
    const size_t stride = sites.size() / most + 1;
    for (size_t i = 0; i < sites.size(); i += stride) some.push_back(sites[i]);
    return some;
  }

  std::optional<ElfImage> image_;
  std::unique_ptr<CfiOracle> oracle_;
};

// Goal: the recipe of a return address is what libdw says, and nearly never kOther. Method: the
// byte before each address after a call instruction (found by their opcode and target).
TEST_P(CompiledFromFile, AgreesWithLibdwAtReturnAddresses) {
  Tally tally;
  for (const uint64_t site : call_sites(20000)) {
    compare(site - 1, &tally);
    if (HasFailure()) break;
  }
  print(tally, " return addresses, ");
  EXPECT_GT(tally.asked, 100U);
  EXPECT_LE(tally.other * 10000, tally.asked * GetParam().other_per_10000);
}

// Goal: every kind of row is read right, prologues, epilogues and PLT entries too. Method: the rows
// that evenly spaced addresses hit, at their first and last byte.
TEST_P(CompiledFromFile, AgreesWithLibdwOnWholeRows) {
  Tally tally;
  uint64_t bytes = 0;
  for (const ElfImage::Code& code : image_->code()) bytes += code.end - code.start;
  const uint64_t stride = bytes / 10000 + 1;
  for (const ElfImage::Code& code : image_->code()) {
    for (uint64_t at = code.start; at < code.end && !HasFailure(); at += stride) {
      const auto answer = compare(at, &tally);
      if (!answer) continue;
      compare(answer->row_start, &tally);
      compare(answer->row_end - 1, &tally);
    }
  }
  print(tally, " addresses, ");
  EXPECT_GT(tally.asked, 1000U);
}

INSTANTIATE_TEST_SUITE_P(Files, CompiledFromFile, ::testing::ValuesIn(kFiles),
                         [](const auto& file) {
                           std::string name = file.param.path;
                           for (char& c : name) {
                             if (isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
                           }
                           return name;
                         });

// Goal: a program whose segments lie apart has recipes too: there _dl_find_object tells one segment
// alone, without the ELF header and without the unwind information. Method: this program is linked
// that way.
TEST(CompiledFromProgram, IsFoundThoughItsSegmentsLieApart) {
  dl_find_object object;
  const auto here = reinterpret_cast<uintptr_t>(&PrintTo);
  ASSERT_EQ(_dl_find_object(reinterpret_cast<void*>(here), &object), 0);
  EXPECT_GT(object.dlfo_eh_frame, object.dlfo_map_end);
  const RecipeType type = trace::compile_recipe(here).type;
  EXPECT_TRUE(type == RecipeType::kRsp || type == RecipeType::kRbp) << static_cast<int>(type);
}

// A copy of a file's unwind information between inaccessible pages, ending or beginning exactly at
// one of them.
class DamagedEhFrame : public ::testing::Test {
 protected:
  void SetUp() override {
    image_ = ElfImage::load("/lib/x86_64-linux-gnu/libc.so.6");
    if (!image_) GTEST_SKIP() << "libc is not here";
    const trace::UnwindTable& table = image_->table();
    bytes_ = static_cast<size_t>(table.end - table.start);
    mapped_ = (bytes_ + 3 * kPage - 1) / kPage * kPage;
    memory_ = static_cast<std::byte*>(
        mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory_ + kPage, mapped_ - 2 * kPage, PROT_READ | PROT_WRITE);
  }
  void TearDown() override {
    if (memory_ != nullptr) munmap(memory_, mapped_);
  }

  // A fresh copy, of which `cut` bytes are missing at the end.
  void place(bool at_end, size_t cut) {
    const trace::UnwindTable& table = image_->table();
    std::byte* start = at_end ? memory_ + mapped_ - kPage - (bytes_ - cut) : memory_ + kPage;
    std::memcpy(start, table.start, bytes_ - cut);
    copy_ = {start + (table.header - table.start), start, start + (bytes_ - cut)};
  }
  std::byte* header() { return const_cast<std::byte*>(copy_.header); }
  // The search table's `index`th pair: where code starts, where its FDE is.
  std::pair<uintptr_t, std::byte*> entry(size_t index) {
    int32_t words[2];
    std::memcpy(words, header() + 12 + index * 8, sizeof(words));
    return {reinterpret_cast<uintptr_t>(header()) + static_cast<uintptr_t>(intptr_t{words[0]}),
            header() + words[1]};
  }
  size_t entry_count() {
    uint32_t count;
    std::memcpy(&count, header() + 8, sizeof(count));
    return count;
  }

  static constexpr size_t kPage = 4096;
  std::optional<ElfImage> image_;
  size_t bytes_ = 0;
  size_t mapped_ = 0;
  std::byte* memory_ = nullptr;
  trace::UnwindTable copy_{};
};

// Goal: nonsense in a file never makes the compiler read outside the file's segment. Method: bytes
// of the descriptions that are then asked for, of their CIEs and of the header are overwritten at
// random, between inaccessible pages; a read outside ends the test.
TEST_F(DamagedEhFrame, IsNeverReadOutsideItsSegment) {
  std::mt19937_64 random(20260729);
  size_t answers[16] = {};
  place(true, 0);
  const size_t entries = entry_count();
  for (int round = 0; round < 3000; ++round) {
    if (round % 20 == 0) place(round % 40 == 0, 0);
    // In range even where the entries are damaged by now: the original's.
    const std::byte* original = image_->table().header;
    int32_t words[2];
    std::memcpy(words, original + 12 + random() % entries * 8, sizeof(words));
    std::byte* fde = header() + words[1];
    const uintptr_t code =
        reinterpret_cast<uintptr_t>(header()) + static_cast<uintptr_t>(intptr_t{words[0]});
    uint32_t back;
    std::memcpy(&back, original + words[1] + 4, sizeof(back));
    // The header last: once it is damaged, nothing else is looked at.
    std::byte* const targets[] = {fde, fde, fde + 4 - back, round % 20 < 18 ? fde : header()};
    for (size_t flips = 1 + random() % 4; flips != 0; --flips) {
      std::byte* target = targets[random() % 4] + random() % 24;
      if (target < copy_.end) *target = static_cast<std::byte>(random());
    }
    for (int i = 0; i < 16; ++i) {
      const Recipe recipe = trace::compile_recipe(copy_, code + random() % 64);
      ++answers[static_cast<size_t>(recipe.type)];
    }
  }
  // It did meet damage, and not only that.
  EXPECT_GT(answers[static_cast<size_t>(RecipeType::kOther)], 1000U);
  EXPECT_GT(answers[static_cast<size_t>(RecipeType::kRsp)], 1000U);
  EXPECT_EQ(answers[static_cast<size_t>(RecipeType::kNone)], 0U);
}

// Goal: the same for information that ends early. Method: the end cut off at many lengths.
TEST_F(DamagedEhFrame, MayEndAnywhere) {
  std::mt19937_64 random(20260729);
  place(true, 0);
  const size_t entries = entry_count();
  const size_t header_offset = static_cast<size_t>(copy_.header - copy_.start);
  for (int round = 0; round < 300; ++round) {
    place(true, random() % (bytes_ - header_offset));
    const std::byte* original = image_->table().header;
    for (int i = 0; i < 64; ++i) {
      int32_t start;
      std::memcpy(&start, original + 12 + random() % entries * 8, sizeof(start));
      const uintptr_t code =
          reinterpret_cast<uintptr_t>(header()) + static_cast<uintptr_t>(intptr_t{start});
      EXPECT_NE(trace::compile_recipe(copy_, code + random() % 32).type, RecipeType::kNone);
    }
  }
}

}  // namespace
}  // namespace heapledger::testing
