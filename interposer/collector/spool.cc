// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/spool.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "schema/error.h"

namespace heapledger::collector {
namespace {

constexpr uint64_t kPage = 4096;
// What was read is given back in pieces of so much, or of a small part of a small spool.
constexpr uint64_t kHoleBytes = uint64_t{8} << 20;
constexpr uint64_t kHoleShare = 8;

constexpr uint64_t whole_pages(uint64_t bytes) { return (bytes + kPage - 1) & ~(kPage - 1); }

}  // namespace

uint64_t default_spool_limit(const std::string& folder) {
  struct statvfs disk {};
  if (statvfs(folder.c_str(), &disk) != 0) return 0;
  return uint64_t{disk.f_bavail} * disk.f_frsize / 2;
}

Spool::Spool(std::string folder, uint64_t limit_bytes) : folder_(std::move(folder)) {
  use_.limit_bytes = limit_bytes;
}

bool Spool::has_room(uint64_t bytes) const {
  const std::lock_guard lock(mutex_);
  return used_ + whole_pages(bytes) <= use_.limit_bytes;
}

uint64_t Spool::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

SpoolUse Spool::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

bool Spool::open_file() {
  if (file_) return true;
  file_ = UniqueFd(open(folder_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file_) {
    // Not every file system has O_TMPFILE.
    std::string name = folder_ + "/.heapledger-spool-XXXXXX";
    file_ = UniqueFd(mkostemp(name.data(), O_CLOEXEC));
    if (file_) unlink(name.c_str());
  }
  return static_cast<bool>(file_);
}

std::optional<uint64_t> Spool::reserve(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const uint64_t taken = whole_pages(bytes);
  if (used_ + taken > use_.limit_bytes) return std::nullopt;
  const uint64_t offset = end_;
  end_ += taken;
  used_ += taken;
  unread_ += taken;
  return offset;
}

bool Spool::write_all(std::span<const std::byte> bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written =
        pwrite(file_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    if (written == 0) {
      errno = ENOSPC;
      return false;
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return true;
}

// The last reservation came to nothing: what is there is all there will be room for.
void Spool::give_up(uint64_t bytes) {
  const int why = errno;
  const std::lock_guard lock(mutex_);
  const uint64_t taken = whole_pages(bytes);
  // What was read meanwhile may have begun the file anew only if this was not counted as unread.
  end_ -= taken;
  used_ -= taken;
  unread_ -= taken;
  use_.limit_bytes = std::min(use_.limit_bytes, used_);
  use_.why_full = std::strerror(why);
  // A part of it may have been written, and would stay on the disk.
  if (file_ && ftruncate(file_.get(), static_cast<off_t>(end_)) != 0) has_holes_ = false;
}

std::optional<Spool::Extent> Spool::write(std::span<const std::byte> bytes) {
  const auto offset = reserve(bytes.size());
  if (!offset) return std::nullopt;
  if (!open_file() || !write_all(bytes, *offset)) {
    give_up(bytes.size());
    return std::nullopt;
  }
  const std::lock_guard lock(mutex_);
  use_.total_bytes += bytes.size();
  use_.peak_bytes = std::max(use_.peak_bytes, unread_);
  return Extent{*offset, bytes.size()};
}

void Spool::read(const Extent& extent, std::byte* to) {
  uint64_t done = 0;
  while (done < extent.bytes) {
    const ssize_t got = pread(file_.get(), to + done, extent.bytes - done,
                              static_cast<off_t>(extent.offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw schema::Error("cannot read the spool", got < 0 ? std::strerror(errno) : "it was cut");
    }
    done += static_cast<uint64_t>(got);
  }
  const uint64_t taken = whole_pages(extent.bytes);
  if (read_end_ != extent.offset) read_start_ = extent.offset;  // The file has begun anew.
  read_end_ = extent.offset + taken;
  // A hole costs as much as reading some hundred pages: not one for each extent.
  const uint64_t spare = std::min(kHoleBytes, use().limit_bytes / kHoleShare);
  const uint64_t hole = read_end_ - read_start_ >= spare ? read_end_ - read_start_ : 0;
  const bool punched =
      hole == 0 || fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                             static_cast<off_t>(read_start_), static_cast<off_t>(hole)) == 0;
  if (hole != 0) read_start_ = read_end_;
  const std::lock_guard lock(mutex_);
  unread_ -= taken;
  has_holes_ = has_holes_ && punched;
  if (has_holes_) used_ -= hole;
  if (unread_ != 0) return;
  // Nobody is writing: what is being written counts as unread.
  end_ = 0;
  used_ = 0;
  read_start_ = read_end_ = 0;
  has_holes_ = true;
  if (ftruncate(file_.get(), 0) != 0) has_holes_ = false;
}

}  // namespace heapledger::collector
