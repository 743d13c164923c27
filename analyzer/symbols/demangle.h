// SPDX-License-Identifier: Apache-2.0
// Linker names to names as the programmer wrote them: C++ (Itanium ABI) and Rust (both schemes).
// Thread safety: pure.
#pragma once

#include <string>

namespace heapledger::analyzer {

// The name itself where it is not mangled, or not understood. Rust's hash at the end is left out.
std::string demangle(const std::string& name);

}  // namespace heapledger::analyzer
