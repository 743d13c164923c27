// SPDX-License-Identifier: Apache-2.0
// Names of code made at run time, from the file that JIT compilers write for perf:
// /tmp/perf-PID.map, lines "START SIZE NAME" with numbers in hex.
// Thread safety: plain values.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace heapledger::analyzer {

class JitMap {
 public:
  // Adds the file's lines; one that is not understood is left out. A later line wins: the place
  // was used again.
  void load(const std::string& path);
  bool empty() const { return places_.empty(); }
  // Empty: no code of the map has this address.
  std::string name(uint64_t address) const;

 private:
  struct Place {
    uint64_t end;
    std::string name;
  };
  std::map<uint64_t, Place> places_;
};

}  // namespace heapledger::analyzer
