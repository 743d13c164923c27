// SPDX-License-Identifier: Apache-2.0
// What an allocator would have done with the recorded calls: the allocator itself (interposer/heap)
// in one of its layouts, over a simulated address space.
//
// LayoutKind::kGlibc is glibc's own 8-byte header: the system calls that the program makes without
// us. LayoutKind::kHeader16 is this tool's: the calls that were recorded. The difference is the
// header's price.
// Thread safety: a model belongs to one thread at a time; models share nothing. Memory: the pages
// the allocator writes headers to, and 8 bytes per live block. Cost: some tens of ns per operation.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "analyzer/trace_info.h"
#include "analyzer/whatif/recorded_ops.h"
#include "interposer/heap/allocator.h"
#include "interposer/heap/settings.h"
#include "interposer/simulated/address_space.h"

namespace heapledger::analyzer {

enum class LayoutKind : uint8_t { kGlibc, kHeader16 };

struct ModelOptions {
  LayoutKind layout = LayoutKind::kGlibc;
  heap::Settings settings;
  size_t cpus = 1;
  heap::SpaceOptions space;
  // With SpaceOptions::residency: the program writes to all of a block of fewer requested bytes.
  size_t touched_below = 0;
};

struct ModelCounts {
  std::array<uint64_t, heap::kCallNames> calls{};  // By CallName.
  uint64_t held_bytes_peak = 0;
  uint64_t operations = 0;
};

// Sees each system call with the number of the operation that led to it, from 0 in the process's
// own part.
using ModelSink = std::function<void(const heap::SimulatedCall&, uint64_t operation)>;

// Memory of the allocator that no block has, in the model's addresses.
struct FreePiece {
  uint64_t start = 0, end = 0;
  heap::FreeKind kind = heap::FreeKind::kBin;
};

// A model at one moment.
class ModelImage {
 public:
  virtual ~ModelImage() = default;
};

class Model {
 public:
  virtual ~Model() = default;

  virtual void run(std::span<const Op> ops) = 0;
  // Of the process's own part: what its ancestors did is not counted, but what they held is held.
  virtual ModelCounts counts() const = 0;
  virtual heap::AddressSpace& space() = 0;
  // For a sink: which of the operations that run() was given is being run.
  virtual size_t position() const = 0;
  virtual void set_sink(ModelSink sink) = 0;
  // With SpaceOptions::residency: the program wrote to these bytes of a live block. The pages of
  // headers and of what calloc clears and realloc copies are known without being told. Returns the
  // page faults.
  virtual size_t touch(uint32_t block, size_t offset, size_t bytes) = 0;

  // Of the arenas, mapped blocks have none; in no order.
  virtual std::vector<FreePiece> free_pieces() = 0;

  // Now, and back to it, in this same model: a parent goes on where its child left it.
  virtual std::unique_ptr<ModelImage> save() const = 0;
  virtual void restore(const ModelImage& image) = 0;
};

std::unique_ptr<Model> make_model(const ModelOptions& options);

// The settings a process's allocator started with. A forked child has its image's.
heap::Settings recorded_settings(schema::Database& db, const TraceInfo& info, int64_t process);

}  // namespace heapledger::analyzer
