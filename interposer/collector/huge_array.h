// SPDX-License-Identifier: Apache-2.0
// A fixed number of zeroed elements for tables that are looked into at random: from 2 MiB on in
// huge OS pages, where the system gives them, since otherwise most look-ups would miss the TLB too.
//
// Thread safety: none.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

namespace heapledger::collector {

template <typename T>
class HugeArray {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  HugeArray() = default;
  // Throws std::bad_alloc.
  explicit HugeArray(size_t count) : count_(count) {
    void* place = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) throw std::bad_alloc();
    constexpr size_t kHugePage = 2U << 20;
    if (count * sizeof(T) >= kHugePage) madvise(place, count * sizeof(T), MADV_HUGEPAGE);
    data_ = static_cast<T*>(place);
  }
  ~HugeArray() {
    if (data_ != nullptr) munmap(data_, count_ * sizeof(T));
  }
  HugeArray(HugeArray&& other) noexcept { swap(other); }
  HugeArray& operator=(HugeArray&& other) noexcept {
    swap(other);
    return *this;
  }

  size_t size() const { return count_; }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }

 private:
  void swap(HugeArray& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
  }
  T* data_ = nullptr;
  size_t count_ = 0;
};

}  // namespace heapledger::collector
