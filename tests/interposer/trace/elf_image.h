// SPDX-License-Identifier: Apache-2.0
// An ELF file laid out in memory as the loader would, without running anything of it, and where its
// unwind information then lies.
#pragma once

#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "interposer/trace/eh_frame.h"

namespace heapledger::testing {

class ElfImage {
 public:
  // Empty: no such file, or no unwind information in it.
  static std::optional<ElfImage> load(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return std::nullopt;
    struct stat status {};
    fstat(fd, &status);
    std::vector<std::byte> file(static_cast<size_t>(status.st_size));
    size_t done = 0;
    while (done < file.size()) {
      const ssize_t count = read(fd, file.data() + done, file.size() - done);
      if (count <= 0) break;
      done += static_cast<size_t>(count);
    }
    close(fd);
    if (done != file.size() || done < sizeof(Elf64_Ehdr) ||
        std::memcmp(file.data(), ELFMAG, SELFMAG) != 0) {
      return std::nullopt;
    }
    ElfImage image;
    if (!image.lay_out(file)) return std::nullopt;
    return image;
  }

  // Where the file's address `address` lies here.
  uintptr_t at(uint64_t address) const {
    return reinterpret_cast<uintptr_t>(memory_.data()) + address;
  }
  const trace::UnwindTable& table() const { return table_; }
  trace::UnwindTable& table() { return table_; }

  struct Code {
    uint64_t start;  // The file's addresses.
    uint64_t end;
  };
  const std::vector<Code>& code() const { return code_; }
  const std::byte* bytes(uint64_t address) const { return memory_.data() + address; }
  std::byte* bytes(uint64_t address) { return memory_.data() + address; }

 private:
  bool lay_out(const std::vector<std::byte>& file) {
    Elf64_Ehdr elf;
    std::memcpy(&elf, file.data(), sizeof(elf));
    std::vector<Elf64_Phdr> segments(elf.e_phnum);
    std::memcpy(segments.data(), file.data() + elf.e_phoff, segments.size() * sizeof(Elf64_Phdr));
    uint64_t bytes = 0;
    uint64_t first = UINT64_MAX;
    const Elf64_Phdr* header = nullptr;
    for (const Elf64_Phdr& segment : segments) {
      if (segment.p_type == PT_GNU_EH_FRAME) header = &segment;
      if (segment.p_type != PT_LOAD) continue;
      bytes = std::max(bytes, segment.p_vaddr + segment.p_memsz);
      first = std::min(first, segment.p_vaddr);
    }
    if (header == nullptr) return false;
    memory_.map(bytes, first);
    for (const Elf64_Phdr& segment : segments) {
      if (segment.p_type != PT_LOAD) continue;
      std::memcpy(memory_.data() + segment.p_vaddr, file.data() + segment.p_offset,
                  segment.p_filesz);
      if ((segment.p_flags & PF_X) != 0) {
        code_.push_back({segment.p_vaddr, segment.p_vaddr + segment.p_filesz});
      }
      if (header->p_vaddr - segment.p_vaddr < segment.p_filesz) {
        const std::byte* start = memory_.data() + segment.p_vaddr;
        table_ = {memory_.data() + header->p_vaddr, start, start + segment.p_filesz};
      }
    }
    return table_.header != nullptr;
  }

  // Address space from the file's address 0 on, of which only what the file uses is mapped.
  class Memory {
   public:
    Memory() = default;
    Memory(Memory&& other) noexcept { *this = std::move(other); }
    Memory& operator=(Memory&& other) noexcept {
      std::swap(mapping_, other.mapping_);
      std::swap(bytes_, other.bytes_);
      std::swap(first_, other.first_);
      return *this;
    }
    ~Memory() {
      if (mapping_ != nullptr) munmap(mapping_, bytes_);
    }
    void map(uint64_t end, uint64_t first) {
      first_ = first & ~uint64_t{4095};
      bytes_ = end - first_;
      void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      mapping_ = memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
    }
    std::byte* data() const { return mapping_ - first_; }

   private:
    std::byte* mapping_ = nullptr;
    size_t bytes_ = 0;
    uint64_t first_ = 0;
  };

  Memory memory_;
  trace::UnwindTable table_{};
  std::vector<Code> code_;
};

}  // namespace heapledger::testing
