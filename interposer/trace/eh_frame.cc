// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/eh_frame.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/auxv.h>

#include <cstring>

#include "interposer/base/bits.h"
#include "interposer/base/env.h"
#include "interposer/trace/eh_frame_reader.h"
#include "interposer/trace/eh_frame_row.h"

// Absent before glibc 2.35.
extern "C" __attribute__((weak)) decltype(_dl_find_object) _dl_find_object;

namespace heapledger::trace {
namespace {

constexpr Recipe kOther = {RecipeType::kOther, 0, 0};
constexpr Recipe kNoCfi = {RecipeType::kNoCfi, 0, 0};

// .eh_frame_hdr
struct Header {
  EhReader frames{nullptr, nullptr};   // .eh_frame, from its start to the end of what may be read.
  EhReader entries{nullptr, nullptr};  // The search table: pairs of int32, relative to the header.
  size_t entry_count = 0;              // 0: there is no table.
};

constexpr size_t kEntryBytes = 8;
constexpr uint8_t kTableEncoding = 0x3b;  // datarel, sdata4: the only one that linkers write.

bool read_header(const UnwindTable& table, Header* header) {
  if (table.header < table.start || table.header >= table.end) return false;
  EhReader reader(table.header, table.end);
  const auto base = reinterpret_cast<uintptr_t>(table.header);
  if (reader.byte() != 1) return false;  // Version.
  const uint8_t frames_encoding = reader.byte();
  const uint8_t count_encoding = reader.byte();
  const uint8_t table_encoding = reader.byte();
  const uint64_t frames = reader.address(frames_encoding, base);
  if (reader.failed() || frames < reinterpret_cast<uintptr_t>(table.start) ||
      frames >= reinterpret_cast<uintptr_t>(table.end)) {
    return false;
  }
  header->frames =
      EhReader(table.start + (frames - reinterpret_cast<uintptr_t>(table.start)), table.end);
  if (count_encoding == kPointerOmitted || table_encoding != kTableEncoding) return true;
  const uint64_t count = reader.address(count_encoding, base);
  if (reader.failed() || count > reader.left() / kEntryBytes) return false;
  header->entries = reader.part(count * kEntryBytes);
  header->entry_count = count;
  return true;
}

// ---- One function's description.

// Reads a CIE's augmentation (after "z"): what its data means. False: a letter that is not known.
bool read_augmentation(const char* letters, size_t count, EhReader data, Cie* cie) {
  for (size_t i = 0; i < count; ++i) {
    switch (letters[i]) {
      case 'R':
        cie->address_encoding = data.byte();
        break;
      case 'L':
        data.byte();
        break;
      case 'P': {  // The personality routine: of no interest, but it has to be skipped.
        const uint8_t encoding = data.byte();
        if ((encoding & 0x70) == 0x50) return false;  // DW_EH_PE_aligned
        data.number(encoding);
        break;
      }
      case 'S':
        cie->is_signal_frame = true;
        break;
      default:
        return false;
    }
  }
  return !data.failed();
}

bool read_cie(EhReader reader, Cie* cie) {
  uint64_t bytes = reader.fixed<uint32_t>();
  if (bytes == 0xffffffff) bytes = reader.fixed<uint64_t>();
  EhReader body = reader.part(bytes);
  if (body.fixed<uint32_t>() != 0) return false;  // Not a CIE.
  const uint8_t version = body.byte();
  if (version != 1 && version != 3) return false;
  const auto* augmentation = reinterpret_cast<const char*>(body.position());
  const size_t length = strnlen(augmentation, body.left());
  body.skip(length + 1);
  cie->code_alignment = body.unsigned_leb();
  cie->data_alignment = body.signed_leb();
  const uint64_t return_column = version == 1 ? body.byte() : body.unsigned_leb();
  if (body.failed() || return_column != kDwarfRip) return false;
  if (length != 0) {
    if (augmentation[0] != 'z') return false;
    cie->has_augmentation_data = true;
    const EhReader data = body.part(body.unsigned_leb());
    if (!read_augmentation(augmentation + 1, length - 1, data, cie)) return false;
  }
  cie->program = body;
  return !body.failed();
}

// A CIE or an FDE, as the next one in `frames`.
struct Description {
  Cie cie;
  uintptr_t start = 0;
  uintptr_t end = 0;
  EhReader program{nullptr, nullptr};
};

enum class Found : uint8_t { kFunction, kNothing, kEndOfList, kNonsense };

// Reads what begins at `reader`, which goes on behind it. kNothing: a CIE.
Found read_description(const UnwindTable& table, EhReader* reader, Description* found) {
  uint64_t bytes = reader->fixed<uint32_t>();
  if (bytes == 0xffffffff) bytes = reader->fixed<uint64_t>();
  if (bytes == 0) return reader->failed() ? Found::kNonsense : Found::kEndOfList;
  EhReader body = reader->part(bytes);
  const std::byte* pointer_field = body.position();
  const uint64_t back = body.fixed<uint32_t>();
  if (body.failed()) return Found::kNonsense;
  if (back == 0) return Found::kNothing;
  if (back > static_cast<uint64_t>(pointer_field - table.start)) return Found::kNonsense;
  if (!read_cie(EhReader(pointer_field - back, table.end), &found->cie)) return Found::kNonsense;
  const uint8_t encoding = found->cie.address_encoding;
  if ((encoding & kPointerIndirect) != 0) return Found::kNonsense;
  found->start = body.address(encoding, 0);
  found->end = found->start + body.number(encoding & 0x0f);
  if (found->cie.has_augmentation_data) body.skip(body.unsigned_leb());
  found->program = body;
  return body.failed() ? Found::kNonsense : Found::kFunction;
}

Recipe recipe_from(const Description& function, uintptr_t at) {
  Row row;
  if (!run_rows(function.cie, function.program, function.start, at, &row)) return kOther;
  return recipe_of_row(row, function.cie.is_signal_frame, at);
}

// ---- Which function.

// An entry of the search table: where code begins, and its FDE; as addresses.
struct Entry {
  uintptr_t code;
  uintptr_t description;
};
Entry entry_at(const UnwindTable& table, const Header& header, size_t index) {
  int32_t words[2];
  memcpy(words, header.entries.position() + index * kEntryBytes, sizeof(words));
  const auto base = reinterpret_cast<uintptr_t>(table.header);
  return {base + static_cast<uintptr_t>(intptr_t{words[0]}),
          base + static_cast<uintptr_t>(intptr_t{words[1]})};
}

Recipe search_table(const UnwindTable& table, const Header& header, uintptr_t at) {
  size_t low = 0;  // Entries before it begin at or before `at`; those from `high` on behind it.
  size_t high = header.entry_count;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (entry_at(table, header, middle).code <= at) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  // Functions of no length share their start with the next one.
  while (low != 0) {
    const Entry entry = entry_at(table, header, --low);
    const auto start = reinterpret_cast<uintptr_t>(table.start);
    if (entry.description < start) return kOther;
    if (entry.description >= reinterpret_cast<uintptr_t>(table.end)) return kOther;
    EhReader reader(table.start + (entry.description - start), table.end);
    Description function;
    if (read_description(table, &reader, &function) != Found::kFunction) return kOther;
    if (at >= function.start && at < function.end) return recipe_from(function, at);
    if (function.start != function.end) break;
  }
  return kNoCfi;
}

// Without a search table: from the first to the last.
Recipe search_frames(const UnwindTable& table, const Header& header, uintptr_t at) {
  EhReader reader = header.frames;
  for (;;) {
    Description function;
    switch (read_description(table, &reader, &function)) {
      case Found::kFunction:
        if (at >= function.start && at < function.end) return recipe_from(function, at);
        break;
      case Found::kNothing:
        break;
      case Found::kEndOfList:
        return kNoCfi;
      case Found::kNonsense:
        return kOther;
    }
  }
}

// ---- The loaded file.

// A file's program headers, and what is added to their addresses.
struct Segments {
  const std::byte* headers = nullptr;
  size_t count = 0;
  uintptr_t bias = 0;
};

// Those of a shared library or a position-independent program: mapped as one piece, which begins
// with its first segment and so with the ELF header.
bool read_elf_header(const std::byte* start, const std::byte* end, Segments* segments) {
  EhReader reader(start, end);
  const auto elf = reader.fixed<ElfW(Ehdr)>();
  if (reader.failed() || memcmp(elf.e_ident, ELFMAG, SELFMAG) != 0 ||
      elf.e_phentsize != sizeof(ElfW(Phdr)) || elf.e_phoff > base::kPageBytes ||
      elf.e_phoff + size_t{elf.e_phnum} * sizeof(ElfW(Phdr)) > base::kPageBytes) {
    return false;
  }
  *segments = {start + elf.e_phoff, elf.e_phnum, 0};
  for (size_t i = 0; i < elf.e_phnum; ++i) {
    ElfW(Phdr) segment;
    memcpy(&segment, segments->headers + i * sizeof(segment), sizeof(segment));
    if (segment.p_type != PT_LOAD) continue;
    segments->bias =
        reinterpret_cast<uintptr_t>(start) - base::align_down(segment.p_vaddr, base::kPageBytes);
    return true;
  }
  return false;
}

// The program headers of the file that `object` describes. For the program itself the mapping that
// _dl_find_object tells may be one segment alone (dl-find_object.c: maps that are not contiguous);
// the kernel says where its headers are.
bool find_segments(const dl_find_object& object, Segments* segments) {
  const char* name = object.dlfo_link_map->l_name;
  if (name == nullptr || name[0] != 0) {
    return read_elf_header(static_cast<const std::byte*>(object.dlfo_map_start),
                           static_cast<const std::byte*>(object.dlfo_map_end), segments);
  }
  *segments = {static_cast<const std::byte*>(base::pointer_to(base::aux_value(AT_PHDR))),
               base::aux_value(AT_PHNUM), object.dlfo_link_map->l_addr};
  return segments->headers != nullptr;
}

// The readable segment that holds `header`; false: none does.
bool find_table(const Segments& segments, const std::byte* header, UnwindTable* table) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(header);
  for (size_t i = 0; i < segments.count; ++i) {
    ElfW(Phdr) segment;
    memcpy(&segment, segments.headers + i * sizeof(segment), sizeof(segment));
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_R) == 0) continue;
    const uintptr_t from = segments.bias + segment.p_vaddr;
    if (at < from || at - from >= segment.p_filesz) continue;
    *table = {header, header - (at - from), header - (at - from) + segment.p_filesz};
    return true;
  }
  return false;
}

}  // namespace

bool can_compile() noexcept { return _dl_find_object != nullptr; }

Recipe compile_recipe(const UnwindTable& table, uintptr_t at) noexcept {
  Header header;
  if (!read_header(table, &header)) return kOther;
  if (header.entry_count == 0) return search_frames(table, header, at);
  return search_table(table, header, at);
}

Recipe compile_recipe(uintptr_t at) noexcept {
  dl_find_object object;
  if (!can_compile() || _dl_find_object(base::pointer_to(at), &object) != 0) return kNoCfi;
  if (object.dlfo_eh_frame == nullptr) return kNoCfi;
  Segments segments;
  UnwindTable table;
  if (!find_segments(object, &segments)) return kOther;
  if (!find_table(segments, static_cast<const std::byte*>(object.dlfo_eh_frame), &table)) {
    return kOther;
  }
  return compile_recipe(table, at);
}

}  // namespace heapledger::trace
