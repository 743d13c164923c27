// SPDX-License-Identifier: Apache-2.0
// What is not packed yet and has no room in memory: ring bytes in an unlinked file beside the
// trace.
//
// First in, first out: extents are written at the file's end, each from a new OS page on, and their
// pages are given back (a hole is punched) some MiB at a time as they are read; when the last one
// was read, the file begins anew. So the file takes little more of the disk than there is unread,
// up to a limit. Where the file system has no holes, what was read counts until the file begins
// anew.
//
// A write that fails, because the disk is full or a file may not be larger, is the same as the
// limit reached: the limit becomes what the file holds then, and the caller keeps the bytes.
//
// The file has no name (O_TMPFILE, or removed at once), so it is gone with the collector however
// that ends. It is made at the first write.
//
// Thread safety: one thread writes, one reads; the counts may be asked for by any.
// Cost: a copy into or out of the page cache; the kernel writes to the disk at its leisure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

// For meta and the line of progress.
struct SpoolUse {
  uint64_t limit_bytes = 0;
  uint64_t peak_bytes = 0;   // Most that was unread at once.
  uint64_t total_bytes = 0;  // All that was ever written.
  std::string why_full;      // Of the write that failed; empty: none did.
};

class Spool {
 public:
  struct Extent {
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };

  // `folder`: that of the trace.
  Spool(std::string folder, uint64_t limit_bytes);

  // Is there room for so many bytes, as far as is known?
  bool has_room(uint64_t bytes) const;
  // Nothing: they did not fit.
  std::optional<Extent> write(std::span<const std::byte> bytes);
  // Reads what was written, oldest first, and gives its room back. Throws schema::Error.
  void read(const Extent& extent, std::byte* to);

  uint64_t used_bytes() const;
  SpoolUse use() const;

 private:
  bool open_file();
  std::optional<uint64_t> reserve(uint64_t bytes);
  bool write_all(std::span<const std::byte> bytes, uint64_t offset);
  void give_up(uint64_t bytes);

  const std::string folder_;
  UniqueFd file_;  // Set by the writing thread before there is anything to read.

  // The reading thread's: read, and not given back yet.
  uint64_t read_start_ = 0;
  uint64_t read_end_ = 0;

  mutable std::mutex mutex_;  // Guards the rest; not held while the file is read or written.
  SpoolUse use_;
  uint64_t end_ = 0;   // Where the next extent goes.
  uint64_t used_ = 0;  // Of the disk, in whole OS pages.
  uint64_t unread_ = 0;
  bool has_holes_ = true;
};

// Half of what is free where `folder` is.
uint64_t default_spool_limit(const std::string& folder);

}  // namespace heapledger::collector
