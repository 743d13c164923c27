// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/output_claim.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "schema/error.h"

namespace heapledger::collector {
namespace {

constexpr const char* kIsRecorded = "is being recorded by another heapledger";

bool is_locked_elsewhere(int fd) {
  return flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

bool is_same_file(int fd, const std::string& path) {
  struct stat open_file {};
  struct stat named_file {};
  return fstat(fd, &open_file) == 0 && stat(path.c_str(), &named_file) == 0 &&
         open_file.st_dev == named_file.st_dev && open_file.st_ino == named_file.st_ino;
}

// The file is there and is to be replaced: takes it away. The lock on the old file is held until
// that is done, so that of two who replace it one is refused.
void remove_old(const std::string& path) {
  struct stat file {};
  if (stat(path.c_str(), &file) != 0) return;
  if (!S_ISREG(file.st_mode)) throw schema::Error(path, "not a regular file");
  // Where it may not be read nobody of ours can be told from others; its folder decides.
  const UniqueFd old(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (old) {
    if (is_locked_elsewhere(old.get())) throw schema::Error(path, kIsRecorded);
    if (!is_same_file(old.get(), path)) return;  // Replaced meanwhile: look again.
  }
  for (const char* suffix : {"-journal", "-wal", "-shm"}) unlink((path + suffix).c_str());
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    throw schema::Error(path, std::strerror(errno));
  }
}

}  // namespace

OutputClaim::OutputClaim(const std::string& path, bool overwrite) : path_(path) {
  constexpr int kTries = 100;  // Each but the first means that somebody replaced it just then.
  for (int i = 0; i < kTries && !fd_; ++i) {
    fd_ = UniqueFd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (fd_) break;
    if (errno != EEXIST) throw schema::Error(path, std::strerror(errno));
    if (!overwrite) throw schema::Error(path, "exists; --force overwrites");
    remove_old(path);
  }
  if (!fd_) throw schema::Error(path, "others replace it all the time");
  if (is_locked_elsewhere(fd_.get()) || !is_same_file(fd_.get(), path)) {
    throw schema::Error(path, kIsRecorded);
  }
}

void OutputClaim::give_back() {
  if (!fd_ || !is_same_file(fd_.get(), path_)) return;
  unlink(path_.c_str());
  unlink((path_ + "-journal").c_str());
}

}  // namespace heapledger::collector
