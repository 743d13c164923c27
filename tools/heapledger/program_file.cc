// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/program_file.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "tools/heapledger/command_error.h"
#include "tools/heapledger/descriptor.h"

namespace heapledger::front {

namespace {

constexpr int kInterpretersMax = 5;  // The kernel follows as many before it says ELOOP.
constexpr size_t kScriptLineMax = 256;

// 0 where the file can be executed, else the errno that execve would give.
int execute_error(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return errno;
  if (!S_ISREG(status.st_mode)) return EACCES;
  return faccessat(AT_FDCWD, path.c_str(), X_OK, AT_EACCESS) == 0 ? 0 : errno;
}

int shell_status(int error) { return error == ENOENT ? kNotFound : kCannotExecute; }

bool read_at(int fd, off_t offset, void* to, size_t size) {
  return pread(fd, to, size, offset) == static_cast<ssize_t>(size);
}

// "#! /usr/bin/env -S python3" names /usr/bin/env; empty where it is no script.
std::string script_interpreter(int fd) {
  std::vector<char> line(kScriptLineMax + 1, 0);
  if (pread(fd, line.data(), kScriptLineMax, 0) < 3) return "";
  if (line[0] != '#' || line[1] != '!') return "";
  const char* start = line.data() + 2;
  start += std::strspn(start, " \t");
  return std::string(start, std::strcspn(start, " \t\n"));
}

// The kernel sets AT_SECURE, and the loader then drops LD_PRELOAD, where the ids change, or where a
// user other than root gains capabilities (commoncap.c, cap_bprm_creds_from_file).
bool gains_privileges(int fd) {
  struct stat status {};
  struct statvfs mount {};
  if (fstat(fd, &status) != 0) return false;
  if (fstatvfs(fd, &mount) == 0 && (mount.f_flag & ST_NOSUID) != 0) return false;
  if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1) return false;
  const bool sets_uid = (status.st_mode & S_ISUID) != 0 && status.st_uid != getuid();
  const bool sets_gid = (status.st_mode & S_ISGID) != 0 && (status.st_mode & S_IXGRP) != 0 &&
                        status.st_gid != getgid();
  const bool adds_capabilities =
      getuid() != 0 && fgetxattr(fd, "security.capability", nullptr, 0) > 0;
  return sets_uid || sets_gid || adds_capabilities;
}

bool has_interpreter(int fd, const Elf64_Ehdr& header) {
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment{};
    const auto offset = static_cast<off_t>(header.e_phoff + uint64_t{i} * header.e_phentsize);
    if (!read_at(fd, offset, &segment, sizeof segment)) return false;
    if (segment.p_type == PT_INTERP) return true;
  }
  return false;
}

// ld.so has no PT_INTERP either, but honours LD_PRELOAD for the program it is given.
bool is_loader(const std::string& path) {
  return std::filesystem::path(path).filename().string().starts_with("ld-linux");
}

std::optional<Obstacle> elf_obstacle(int fd, const std::string& path) {
  Elf64_Ehdr header{};
  if (!read_at(fd, 0, &header, sizeof header)) return std::nullopt;
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return std::nullopt;
  if (header.e_ident[EI_CLASS] == ELFCLASS32) {
    return Obstacle{"32-bit program", "build it for x86-64 to record its calls"};
  }
  if (header.e_machine != EM_X86_64) {
    return Obstacle{"not an x86-64 program", "build it for x86-64 to record its calls"};
  }
  if (gains_privileges(fd)) {
    return Obstacle{"runs with raised privileges (setuid)",
                    "record it as the user it runs as, or a copy without the setuid bit"};
  }
  if (!has_interpreter(fd, header) && !is_loader(path)) {
    return Obstacle{"statically linked", "link it dynamically to record its calls"};
  }
  return std::nullopt;
}

}  // namespace

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    const int error = execute_error(name);
    if (error != 0) throw CommandError(name, std::strerror(error), shell_status(error));
    return name;
  }
  const char* variable = std::getenv("PATH");
  const std::string search = variable != nullptr ? variable : "/bin:/usr/bin";
  int error = ENOENT;
  for (size_t start = 0; start <= search.size() && !name.empty();) {
    const size_t end = std::min(search.find(':', start), search.size());
    const std::string folder = search.substr(start, end - start);
    const std::string candidate = (folder.empty() ? "." : folder) + "/" + name;
    const int candidate_error = execute_error(candidate);
    if (candidate_error == 0) return candidate;
    if (candidate_error == EACCES)
      error = EACCES;  // As execvp: remembered, but the search goes on.
    start = end + 1;
  }
  throw CommandError(name, std::strerror(error), shell_status(error));
}

std::optional<Obstacle> recording_obstacle(const std::string& path) {
  std::string file = path;
  for (int depth = 0; depth <= kInterpretersMax; ++depth) {
    const Descriptor fd(open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.is_open()) return std::nullopt;
    const std::string interpreter = script_interpreter(fd.number());
    if (interpreter.empty()) return elf_obstacle(fd.number(), file);
    file = interpreter;
  }
  return std::nullopt;
}

}  // namespace heapledger::front
