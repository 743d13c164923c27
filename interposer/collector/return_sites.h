// SPDX-License-Identifier: Apache-2.0
// Whether an address in a module is one that a call returns to: the bytes before it, in the ELF
// file, are a call instruction. Tells a return address on a stack from other numbers.
//
// Thread safety: none (writer thread). Cost: a read of the file per new address, a lookup then.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "interposer/collector/address_space.h"
#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

class ReturnSites {
 public:
  // False also where the file cannot be read.
  bool is_return_site(const Module& module, uint64_t address);

 private:
  struct Segment {
    uint64_t start, end, file_offset;  // In the file's own addresses.
  };
  struct File {
    UniqueFd fd;
    std::vector<Segment> code;
    std::unordered_map<uint64_t, bool> known;  // By address.
  };
  File& file_of(const std::string& path);

  std::unordered_map<std::string, File> files_;
};

// Do these bytes, of which the last one is the last before the address, end with a call? x86-64.
bool ends_with_call(const uint8_t* bytes, size_t count);

}  // namespace heapledger::collector
