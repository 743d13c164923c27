// SPDX-License-Identifier: Apache-2.0
//
// The initial environment and auxiliary vector agree with what libc says of them.
#include "interposer/base/env.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <sys/auxv.h>

#include <cstdlib>
#include <cstring>
#include <utility>

namespace heapledger::base {
namespace {

// As the shim does, before main: GoogleTest takes its own arguments out of argv, in place, which
// moves the null behind which the environment is looked for.
[[maybe_unused]] const char* const* const kSeenBeforeMain = env_entries();

TEST(Env, EntriesAreTheProcesssOwn) {
  // libc's environ starts out as the same array of the same strings.
  int count = 0;
  for (const char* const* entry = env_entries(); *entry != nullptr; ++entry) {
    const char* equals = std::strchr(*entry, '=');
    ASSERT_NE(equals, nullptr);
    ++count;
  }
  EXPECT_GT(count, 0);
  ASSERT_NE(std::getenv("PATH"), nullptr);
  EXPECT_STREQ(env_lookup("PATH"), std::getenv("PATH"));
  EXPECT_EQ(env_lookup("PAT"), nullptr);
  EXPECT_EQ(env_lookup("HEAPLEDGER_NO_SUCH_NAME"), nullptr);
}

// What putenv adds later is not seen: the allocator's settings are those of the start, as glibc's
// tunables are.
TEST(Env, LaterAdditionsAreNotSeen) {
  ::setenv("HEAPLEDGER_SET_LATER", "1", 1);
  EXPECT_EQ(env_lookup("HEAPLEDGER_SET_LATER"), nullptr);
  ::unsetenv("HEAPLEDGER_SET_LATER");
}

TEST(Env, ArgumentsStartWithTheProgram) {
  EXPECT_NE(std::strstr(program_arguments()[0], "base_test"), nullptr);
}

TEST(Env, AuxiliaryValuesAreLibcs) {
  EXPECT_EQ(aux_value(AT_PAGESZ), ::getauxval(AT_PAGESZ));
  EXPECT_EQ(aux_value(AT_PHDR), ::getauxval(AT_PHDR));
  EXPECT_EQ(aux_value(AT_RANDOM), ::getauxval(AT_RANDOM));
  EXPECT_EQ(aux_value(4711), 0U);
  EXPECT_FALSE(is_secure());
}

// As the linker and unsetenv do it: the list ends earlier, and what follows its null is an entry.
TEST(Env, AuxiliaryValuesAreFoundBehindAShorterEnvironment) {
  auto* entries = const_cast<const char**>(env_entries());
  ASSERT_NE(entries[0], nullptr);
  while (entries[1] != nullptr) ++entries;
  const char* last = std::exchange(entries[0], nullptr);
  EXPECT_EQ(aux_value(AT_PAGESZ), ::getauxval(AT_PAGESZ));
  entries[0] = last;
}

TEST(Env, ANameMustMatchWhole) {
  EXPECT_STREQ(env_value_if_named("A=b=c", "A"), "b=c");
  EXPECT_STREQ(env_value_if_named("A=", "A"), "");
  EXPECT_EQ(env_value_if_named("AB=c", "A"), nullptr);
  EXPECT_EQ(env_value_if_named("A", "A"), nullptr);
}

}  // namespace
}  // namespace heapledger::base
