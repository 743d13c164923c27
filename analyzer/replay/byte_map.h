// SPDX-License-Identifier: Apache-2.0
// A byte for every 16 bytes of addresses, 0 at first.
//
// Tables of 64 MiB of addresses each; parts of them that were never written cost no memory. One
// cache line covers 1 KiB of a heap.
// Thread safety: none. Memory: 1/16 of the addresses that have a byte, by pages. Cost: one memory
// access, mostly to a line that is near.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <unordered_map>
#include <utility>

namespace heapledger::analyzer {

class ByteMap {
 public:
  uint8_t get(uint64_t address) const {
    const uint8_t* found = table(address >> kTableBits);
    return found == nullptr ? 0 : found[place(address)];
  }
  // Returns the byte that was there.
  uint8_t put(uint64_t address, uint8_t byte) {
    uint8_t* found = table(address >> kTableBits);
    if (found == nullptr) found = make_table(address >> kTableBits);
    return std::exchange(found[place(address)], byte);
  }
  // Makes it 0 if it is `byte`; says whether it was.
  bool clear(uint64_t address, uint8_t byte) {
    uint8_t* found = table(address >> kTableBits);
    if (found == nullptr || found[place(address)] != byte) return false;
    found[place(address)] = 0;
    return true;
  }

 private:
  static constexpr int kGranuleBits = 4;
  static constexpr int kTableBits = 26;
  static constexpr size_t kTableBytes = size_t{1} << (kTableBits - kGranuleBits);
  static constexpr size_t kCached = 64;  // Arenas lie in tables of their own.
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };
  struct Cached {
    uint64_t key = UINT64_MAX;
    uint8_t* bytes = nullptr;
  };

  static size_t place(uint64_t address) { return (address >> kGranuleBits) % kTableBytes; }
  uint8_t* table(uint64_t key) const {
    const Cached& cached = cached_[key % kCached];
    return cached.key == key ? cached.bytes : find_table(key);
  }
  uint8_t* find_table(uint64_t key) const {
    const auto found = tables_.find(key);
    if (found == tables_.end()) return nullptr;
    cached_[key % kCached] = {key, found->second.get()};
    return found->second.get();
  }
  uint8_t* make_table(uint64_t key) {
    void* bytes = std::calloc(kTableBytes, 1);
    if (bytes == nullptr) throw std::bad_alloc();
    tables_[key].reset(static_cast<uint8_t*>(bytes));
    return static_cast<uint8_t*>(bytes);
  }

  std::unordered_map<uint64_t, std::unique_ptr<uint8_t, Free>> tables_;  // By address / 64 MiB.
  mutable std::array<Cached, kCached> cached_{};
};

}  // namespace heapledger::analyzer
