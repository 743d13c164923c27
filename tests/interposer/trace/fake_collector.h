// SPDX-License-Identifier: Apache-2.0
// The other side of the shim, for its tests: makes a region, answers Hello, drains rings and
// decodes what it finds.
//
// It shares nothing with the real collector but schema/, so the two check each other. Events are
// kept in memory, decoded, with their stacks whole. Every word of a ring is checked as the schema
// demands; a violation is an entry of `damage`.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "schema/event.h"
#include "schema/shared_region.h"

namespace heapledger::testing {

struct Event {
  schema::EventKind kind{};
  uint8_t flags = 0;
  uint64_t tick = 0;
  uint32_t ring = 0;
  uint32_t pid = 0;  // Of the ring's owner.
  uint32_t tid = 0;
  uint32_t level = 0;
  std::vector<uint64_t> words;  // The whole event.
  std::vector<uint64_t> stack;  // Innermost first; empty without kHasStack.

  template <class T>
  T as() const {
    T result;
    std::memcpy(&result, words.data(), sizeof(T));
    return result;
  }
  bool has(schema::EventFlags flag) const { return (flags & flag) != 0; }
  std::string text() const;  // Of the kinds that carry one.
  uint64_t usable() const;   // By its flag or by the rule.
  uint64_t alignment() const;
};

struct RegionOptions {
  uint32_t process_slots = 64;
  uint32_t ring_slots = 64;
  uint64_t ring_bytes = uint64_t{1} << 20;
  uint32_t stack_depth = 128;
  bool free_stacks = false;
  schema::Clock clock = schema::Clock::kTsc;
};

// A region in a memfd, mapped here.
class RegionFile {
 public:
  explicit RegionFile(const RegionOptions& options);
  ~RegionFile();
  RegionFile(const RegionFile&) = delete;
  RegionFile& operator=(const RegionFile&) = delete;

  int fd() const { return fd_; }
  uint64_t bytes() const { return bytes_; }
  schema::ControlPage& control() const { return *reinterpret_cast<schema::ControlPage*>(memory_); }
  schema::ProcessSlot& process(uint32_t i) const {
    return reinterpret_cast<schema::ProcessSlot*>(memory_ + control().process_offset)[i];
  }
  schema::RingSlot& ring(uint32_t i) const {
    return reinterpret_cast<schema::RingSlot*>(memory_ + control().slot_offset)[i];
  }
  std::byte* data(uint32_t i) const {
    return memory_ + control().data_offset + i * control().ring_bytes;
  }

 private:
  int fd_ = -1;
  uint64_t bytes_ = 0;
  std::byte* memory_ = nullptr;
};

// Reads rings of a region into events. One thread.
class Decoder {
 public:
  explicit Decoder(RegionFile& region) : region_(region), rings_(region.control().ring_slots) {}

  // Takes what every ring holds; returns how many events that was. Frees the slots of ended owners.
  size_t drain();
  // At most `bytes` of one ring, for tests that want a slow reader.
  size_t drain_ring(uint32_t ring, uint64_t bytes_max);

  std::vector<Event> events;
  std::vector<std::string> damage;

 private:
  struct RingState {
    std::vector<uint64_t> stack;  // Outermost first.
    uint32_t pid = 0, tid = 0, level = 0;
    uint64_t last_tick = 0;
  };
  bool decode(uint32_t ring, const uint64_t* words, size_t available);
  void take_stack(RingState& state, Event& event);
  void complain(uint32_t ring, const std::string& what);

  RegionFile& region_;
  std::vector<RingState> rings_;
};

// The whole collector: an abstract socket and a draining thread.
class FakeCollector {
 public:
  explicit FakeCollector(const RegionOptions& options = {});
  ~FakeCollector();
  FakeCollector(const FakeCollector&) = delete;
  FakeCollector& operator=(const FakeCollector&) = delete;

  const std::string& session() const { return session_; }
  RegionFile& region() { return region_; }

  void pause() { paused_ = true; }  // Stops draining; the heart beats on.
  void resume() { paused_ = false; }
  void stop_heart() { heart_stopped_ = true; }
  void refuse() { refuse_ = true; }  // Answers Hello with kRefused.
  void speak_version(uint32_t version) { version_ = version; }

  // Drains what is left and ends the threads. Call before reading the results.
  void finish();
  std::vector<Event>& events() { return decoder_.events; }
  const std::vector<std::string>& damage() const { return decoder_.damage; }
  int hellos() const { return hellos_; }

  // Events of one kind.
  std::vector<Event> of(schema::EventKind kind) const;

 private:
  void serve();
  void drain();
  void answer(int connection);

  RegionFile region_;
  Decoder decoder_;
  std::string session_;
  int socket_ = -1;
  std::atomic<bool> stopping_{false}, paused_{false}, heart_stopped_{false}, refuse_{false};
  std::atomic<uint32_t> version_{schema::kWireVersion};
  std::atomic<int> hellos_{0};
  std::thread server_, drainer_;
};

struct RunResult {
  int status = 0;  // As wait4 gives it.
  std::string out;
  std::string err;
};
using Environment = std::map<std::string, std::string>;

// Runs a program with `extra` over this environment; collects what it prints.
RunResult run(const std::vector<std::string>& command, const Environment& extra);
// The same under the shim, recorded by `collector`.
RunResult run_recorded(FakeCollector& collector, const std::vector<std::string>& command,
                       Environment extra = {});

}  // namespace heapledger::testing
