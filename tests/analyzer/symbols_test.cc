// SPDX-License-Identifier: Apache-2.0
// Names for addresses of a small library built for this test, and demangling.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include "analyzer/symbols/demangle.h"
#include "analyzer/symbols/module_symbols.h"
#include "tests/analyzer/symbol_victim.h"

namespace heapledger::analyzer {
namespace {

uint64_t address_of(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// Goal: function, file and line of a call, with the inlined function around it. Method: the library
// hands out a return address whose place it knows by __LINE__.
TEST(ModuleSymbols, NamesAnInlinedCall) {
  Dl_info module{};
  const VictimPlace place = victim::outer();
  ASSERT_NE(0, dladdr(place.return_address, &module));
  const uint64_t offset = address_of(place.return_address) - address_of(module.dli_fbase);
  const ModuleSymbols symbols(module.dli_fname, "");
  const auto found = symbols.look_up({offset - 1, 1});
  ASSERT_EQ(2u, found.size());
  ASSERT_EQ(2u, found[0].size());
  EXPECT_EQ("heapledger::victim::outer()", found[0][0].function);
  EXPECT_EQ(place.outer_line, found[0][0].line);
  EXPECT_NE(std::string::npos, found[0][1].function.find("inner"));
  EXPECT_EQ(place.inner_line, found[0][1].line);
  EXPECT_NE(std::string::npos, found[0][1].file.find("symbol_victim.cc"));
  EXPECT_TRUE(found[1].empty()) << "there is no code at address 1";
}

// Goal: a file that was replaced gives no names rather than wrong ones.
TEST(ModuleSymbols, RefusesAnotherBuild) {
  Dl_info module{};
  ASSERT_NE(0, dladdr(victim::outer().return_address, &module));
  EXPECT_TRUE(ModuleSymbols(module.dli_fname, "").is_open());
  EXPECT_FALSE(ModuleSymbols(module.dli_fname, "00112233").is_open());
  EXPECT_FALSE(ModuleSymbols("/nonexistent/lib.so", "").is_open());
}

// Goal: without debug information there is still the symbol table. Method: a stripped copy of the
// library (strip -g), made when it was built.
TEST(ModuleSymbols, FallsBackToTheSymbolTable) {
  Dl_info module{};
  const VictimPlace place = victim::outer();
  ASSERT_NE(0, dladdr(place.return_address, &module));
  const uint64_t offset = address_of(place.return_address) - address_of(module.dli_fbase);
  const ModuleSymbols symbols(HL_STRIPPED_VICTIM, "");
  ASSERT_TRUE(symbols.is_open());
  const auto found = symbols.look_up({offset - 1});
  ASSERT_EQ(1u, found[0].size());
  EXPECT_EQ("heapledger::victim::outer()", found[0][0].function);
  EXPECT_EQ("", found[0][0].file);
}

TEST(Demangle, KnowsCppAndBothRustSchemes) {
  EXPECT_EQ("foo::bar(int)", demangle("_ZN3foo3barEi"));
  EXPECT_EQ("core::fmt::Formatter::pad",
            demangle("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE"));
  EXPECT_EQ("<alloc::vec::Vec<T> as core::ops::drop::Drop>::drop",
            demangle("_ZN66_$LT$alloc..vec..Vec$LT$T$GT$$u20$as$u20$core..ops..drop..Drop$GT$4drop"
                     "17h0123456789abcdefE"));
  EXPECT_EQ("mycrate::foo::bar", demangle("_RNvNtC7mycrate3foo3bar"));
  EXPECT_EQ("mycrate::foo::<u8>", demangle("_RINvC7mycrate3foohE"));
  EXPECT_EQ("main", demangle("main"));
  EXPECT_EQ("_Zbroken", demangle("_Zbroken"));
}

}  // namespace
}  // namespace heapledger::analyzer
