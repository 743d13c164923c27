// SPDX-License-Identifier: Apache-2.0
// Names for addresses of a small library built for this test, and demangling.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "analyzer/symbols/demangle.h"
#include "analyzer/symbols/jit_map.h"
#include "analyzer/symbols/module_symbols.h"
#include "tests/analyzer/symbol_victim.h"

namespace heapledger::analyzer {
namespace {

SymbolFiles files({});

uint64_t address_of(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// Goal: function, file and line of a call, with the inlined function around it. Method: the library
// hands out a return address whose place it knows by __LINE__.
TEST(ModuleSymbols, NamesAnInlinedCall) {
  Dl_info module{};
  const VictimPlace place = victim::outer();
  ASSERT_NE(0, dladdr(place.return_address, &module));
  const uint64_t offset = address_of(place.return_address) - address_of(module.dli_fbase);
  const ModuleSymbols symbols(files, module.dli_fname, "");
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
  EXPECT_TRUE(ModuleSymbols(files, module.dli_fname, "").is_open());
  EXPECT_FALSE(ModuleSymbols(files, module.dli_fname, "00112233").is_open());
  EXPECT_FALSE(ModuleSymbols(files, "/nonexistent/lib.so", "").is_open());
}

// Goal: without debug information there is still the symbol table. Method: a stripped copy of the
// library (strip -g), made when it was built.
TEST(ModuleSymbols, FallsBackToTheSymbolTable) {
  Dl_info module{};
  const VictimPlace place = victim::outer();
  ASSERT_NE(0, dladdr(place.return_address, &module));
  const uint64_t offset = address_of(place.return_address) - address_of(module.dli_fbase);
  const ModuleSymbols symbols(files, HL_STRIPPED_VICTIM, "");
  ASSERT_TRUE(symbols.is_open());
  const auto found = symbols.look_up({offset - 1});
  ASSERT_EQ(1u, found[0].size());
  EXPECT_EQ("heapledger::victim::outer()", found[0][0].function);
  EXPECT_EQ("", found[0][0].file);
}

// Goal: a file is found below a sysroot, and by its build id where it was deleted or replaced; and
// so kept names open elsewhere. Method: a copy of the library under the sysroot, as itself and as
// /usr/lib/debug names it.
TEST(ModuleSymbols, FindsFilesBelowASysrootAndByBuildId) {
  Dl_info module{};
  const VictimPlace place = victim::outer();
  ASSERT_NE(0, dladdr(place.return_address, &module));
  const uint64_t offset = address_of(place.return_address) - address_of(module.dli_fbase);
  const std::string build_id = ElfFile::open(module.dli_fname, "")->build_id();
  ASSERT_GT(build_id.size(), 8u) << "the victim is linked without a build id";
  const std::filesystem::path root =
      std::filesystem::temp_directory_path() / ("heapledger-sysroot-" + std::to_string(getpid()));
  const std::filesystem::path debug = root / "usr/lib/debug/.build-id" / build_id.substr(0, 2);
  std::filesystem::create_directories(root / "opt");
  std::filesystem::create_directories(debug);
  std::filesystem::copy_file(module.dli_fname, root / "opt/lib.so");
  std::filesystem::copy_file(module.dli_fname, debug / (build_id.substr(2) + ".debug"));
  SymbolFiles below({.sysroot = root.string()});
  for (const char* path : {"/opt/lib.so", "/opt/deleted.so"}) {
    const ModuleSymbols symbols(below, path, build_id);
    ASSERT_TRUE(symbols.is_open()) << path;
    EXPECT_EQ("heapledger::victim::outer()", symbols.look_up({offset - 1})[0][0].function) << path;
  }
  EXPECT_FALSE(ModuleSymbols(below, "/opt/deleted.so", "00112233").is_open());
  std::filesystem::remove_all(root);
}

// Goal: names of code made at run time, as it is when the recording ends; a damaged file is no
// crash.
TEST(JitMap, TheLastLineOfAPlaceWins) {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("heapledger-jit-" + std::to_string(getpid()));
  std::ofstream(path) << "1000 20 first\nnonsense\n1020 10 LazyCompile:~second /a b.js:1\n"
                      << "ffffffffffffffff 10 wraps\n1008 4 third\n3000 0 empty\n";
  JitMap map;
  map.load("/nonexistent/perf.map");
  EXPECT_TRUE(map.empty());
  map.load(path.string());
  std::filesystem::remove(path);
  EXPECT_EQ("third", map.name(0x1008));
  EXPECT_EQ("", map.name(0x1000)) << "its code was replaced";
  EXPECT_EQ("LazyCompile:~second /a b.js:1", map.name(0x102f));
  EXPECT_EQ("", map.name(0x1030));
  EXPECT_EQ("", map.name(0x3000));
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
