// SPDX-License-Identifier: Apache-2.0
#include "analyzer/symbols/demangle.h"

#include <cxxabi.h>
#include <libiberty/demangle.h>

#include <cstdlib>
#include <memory>

namespace heapledger::analyzer {

namespace {

struct Free {
  void operator()(char* text) const { std::free(text); }
};
using Text = std::unique_ptr<char, Free>;

}  // namespace

std::string demangle(const std::string& name) {
  if (!name.starts_with("_R") && !name.starts_with("_Z")) return name;
  // Rust first: its older scheme is valid C++ as well, but reads badly as that (`::h0123...E`).
  if (const Text rust{rust_demangle(name.c_str(), DMGL_NO_OPTS)}) return rust.get();
  int status = 0;
  const Text cpp{abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status)};
  return cpp ? std::string(cpp.get()) : name;
}

}  // namespace heapledger::analyzer
