// SPDX-License-Identifier: Apache-2.0
#include "interposer/simulated/cold_memory.h"

#include <signal.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "interposer/base/bits.h"

namespace heapledger::heap {

namespace {

constexpr size_t kWords = ColdMemory::kClusterBytes / sizeof(uint64_t);
constexpr size_t kVarintBytesMax = 10;
constexpr size_t kNoSlot = SIZE_MAX;

// ---- The handler. It runs where the memory's own thread touched it, so never inside malloc.

std::array<std::atomic<ColdMemory*>, 64> memories;
struct sigaction before;  // NOLINT: what was there before the handler.

void on_segv(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const uintptr_t address = base::address_of(info->si_addr);
  for (const std::atomic<ColdMemory*>& entry : memories) {
    ColdMemory* memory = entry.load(std::memory_order_acquire);  // With the store in add().
    if (memory == nullptr || !memory->on_fault(address)) continue;
    errno = saved_errno;
    return;
  }
  errno = saved_errno;
  if ((before.sa_flags & SA_SIGINFO) != 0) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  } else {
    sigaction(SIGSEGV, &before, nullptr);  // The instruction faults again, and that is the end.
  }
}

bool install() {
  struct sigaction action = {};
  action.sa_sigaction = on_segv;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGSEGV, &action, &before) == 0;
}

size_t add(ColdMemory* memory) {
  static const bool is_installed = install();
  for (size_t slot = 0; is_installed && slot < memories.size(); ++slot) {
    ColdMemory* nobody = nullptr;
    if (memories[slot].compare_exchange_strong(nobody, memory, std::memory_order_release)) {
      return slot;
    }
  }
  return kNoSlot;
}

// ---- Packed words: the distance in words from the last one, and the word, both as groups of seven
// bits. A word that is an address of the same memory is stored as its distance from the beginning.

uint8_t* put(uint8_t* at, uint64_t value) {
  for (; value >= 0x80; value >>= 7) *at++ = static_cast<uint8_t>(value | 0x80);
  *at++ = static_cast<uint8_t>(value);
  return at;
}

const uint8_t* take(const uint8_t* at, uint64_t& value) {
  value = 0;
  for (int shift = 0;; shift += 7) {
    const uint8_t byte = *at++;
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return at;
  }
}

// Wide: eight bytes follow. Again: the last wide word, as the allocator's marks are.
enum WordKind : uint64_t { kPlain, kAddress, kWide, kAgain };
constexpr int kKindBits = 2;

uint8_t* put_word(uint8_t* at, uint64_t word, uintptr_t begin, size_t bytes, uint64_t& wide) {
  if (word - begin < bytes) return put(at, (word - begin) << kKindBits | kAddress);
  if (word >> (64 - kKindBits) == 0) return put(at, word << kKindBits | kPlain);
  if (word == wide) return put(at, kAgain);
  at = put(at, kWide);
  wide = word;
  std::memcpy(at, &word, sizeof word);
  return at + sizeof word;
}

const uint8_t* take_word(const uint8_t* at, uint64_t& word, uintptr_t begin, uint64_t& wide) {
  at = take(at, word);
  const uint64_t kind = word & ((1 << kKindBits) - 1);
  word >>= kKindBits;
  if (kind == kAddress) word += begin;
  if (kind == kAgain) word = wide;
  if (kind != kWide) return at;
  std::memcpy(&word, at, sizeof word);
  wide = word;
  return at + sizeof word;
}

}  // namespace

ColdMemory::ColdMemory(uintptr_t begin, size_t bytes, size_t hot_bytes, size_t all_hot_bytes)
    : begin_(begin),
      bytes_(bytes),
      hot_max_(hot_bytes / kClusterBytes + 1),
      all_hot_max_(all_hot_bytes / kClusterBytes),
      slot_(add(this)) {
  if (slot_ == kNoSlot || ::mprotect(base::pointer_to(begin), bytes, PROT_NONE) != 0) {
    is_off_ = true;
  }
}

ColdMemory::~ColdMemory() {
  // With the load in on_segv(), of this thread.
  if (slot_ != kNoSlot) memories[slot_].store(nullptr, std::memory_order_release);
}

bool ColdMemory::set_access(uint64_t number, int protection) {
  return ::mprotect(base::pointer_to(address_of(number)), kClusterBytes, protection) == 0;
}

bool ColdMemory::on_fault(uintptr_t address) {
  if (is_off_ || address - begin_ >= bytes_) return false;
  const uint64_t number = (address - begin_) / kClusterBytes;
  const auto [found, is_new] = clusters_.try_emplace(number);
  Cluster& cluster = found->second;
  if (!is_new && cluster.state == State::kOpen) return false;  // It is not us who forbid it.
  if (!set_access(number, PROT_READ | PROT_WRITE)) {
    if (is_new) clusters_.erase(found);
    open_all();
    return true;
  }
  if (!is_new && cluster.state == State::kPacked) {
    unpack(number, cluster);
    // Not for the first few times, and would it still be open if twice as many were?
    constexpr uint8_t kFewTimes = 4;
    if (cluster.unpacked >= kFewTimes && packs_ - cluster.packed_at < 2 * hot_max_) ++hot_max_;
    if (cluster.unpacked < kFewTimes) ++cluster.unpacked;
  }
  cluster.state = State::kOpen;
  open_.push_back(number);
  make_room();
  return true;
}

void ColdMemory::make_room() {
  if (clusters_.size() <= all_hot_max_) return;
  // Two at a time, until those are few that were open when everything was.
  constexpr int kAtATime = 2;
  for (int i = 0; i < kAtATime && open_.size() > hot_max_; ++i) {
    const uint64_t number = open_.front();
    if (!set_access(number, PROT_NONE)) {
      open_all();
      return;
    }
    open_.pop_front();
    clusters_.find(number)->second.state = State::kClosed;
    closed_.push_back(number);
  }
  for (int packed = 0; packed < kAtATime && closed_.size() > hot_max_ / 4;) {
    const uint64_t number = closed_.front();
    closed_.pop_front();
    Cluster& cluster = clusters_.find(number)->second;
    if (cluster.state != State::kClosed) continue;
    pack(number, cluster);
    if (is_off_) return;
    ++packed;
  }
}

void ColdMemory::pack(uint64_t number, Cluster& cluster) {
  void* const memory = base::pointer_to(address_of(number));
  if (!set_access(number, PROT_READ)) {
    open_all();
    return;
  }
  buffer_.resize(kWords * 2 * kVarintBytesMax);
  uint8_t* at = buffer_.data();
  const auto* words = static_cast<const uint64_t*>(memory);
  size_t last = 0;
  uint64_t wide = 0;
  for (size_t i = 0; i < kWords; ++i) {
    if (words[i] == 0) continue;
    at = put(at, i - last);
    at = put_word(at, words[i], begin_, bytes_, wide);
    last = i;
  }
  const auto bytes = static_cast<size_t>(at - buffer_.data());
  cluster.words = std::make_unique_for_overwrite<uint8_t[]>(bytes);
  std::memcpy(cluster.words.get(), buffer_.data(), bytes);
  cluster.packed_bytes = static_cast<uint32_t>(bytes);
  cluster.packed_at = packs_++;
  cluster.state = State::kPacked;
  packed_bytes_ += bytes;
  if (::madvise(memory, kClusterBytes, MADV_DONTNEED) != 0) std::abort();
  if (!set_access(number, PROT_NONE)) open_all();
}

void ColdMemory::unpack(uint64_t number, Cluster& cluster) {
  auto* const words = static_cast<uint64_t*>(base::pointer_to(address_of(number)));
  const uint8_t* at = cluster.words.get();
  const uint8_t* const end = at + cluster.packed_bytes;
  uint64_t wide = 0;
  for (size_t i = 0; at != end;) {
    uint64_t distance = 0;
    at = take(at, distance);
    i += distance;
    at = take_word(at, words[i], begin_, wide);
  }
  cluster.words.reset();
  packed_bytes_ -= cluster.packed_bytes;
  cluster.packed_bytes = 0;
}

void ColdMemory::open_all() {
  if (is_off_) return;
  // At once, which leaves one mapping: what else there may be too many of.
  if (::mprotect(base::pointer_to(begin_), bytes_, PROT_READ | PROT_WRITE) != 0) std::abort();
  is_off_ = true;
  for (auto& [number, cluster] : clusters_) {
    if (cluster.state == State::kPacked) unpack(number, cluster);
  }
  clusters_.clear();
  open_.clear();
  closed_.clear();
}

}  // namespace heapledger::heap
