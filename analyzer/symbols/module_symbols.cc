// SPDX-License-Identifier: Apache-2.0
#include "analyzer/symbols/module_symbols.h"

#include <dwarf.h>
#include <gelf.h>

#include <algorithm>
#include <span>
#include <utility>

#include "analyzer/symbols/demangle.h"

namespace heapledger::analyzer {

namespace {

struct Target {
  uint64_t address;
  size_t index;                      // Of the caller's list.
  std::vector<Dwarf_Die> functions;  // Outermost first: a subprogram, then inlined calls.
};

std::string attribute_text(Dwarf_Die* die, unsigned int name) {
  Dwarf_Attribute attribute;
  const char* text = dwarf_formstring(dwarf_attr_integrate(die, name, &attribute));
  return text == nullptr ? "" : text;
}

std::string function_name(Dwarf_Die* die) {
  for (const unsigned int name : {DW_AT_linkage_name, DW_AT_MIPS_linkage_name}) {
    const std::string linkage = attribute_text(die, name);
    if (!linkage.empty()) return demangle(linkage);
  }
  return attribute_text(die, DW_AT_name);
}

// Where an inlined function was called: a file and line of the function it was inlined into.
void set_call_site(Dwarf_Die* inlined, Dwarf_Die* unit, SourcePlace& caller) {
  Dwarf_Attribute attribute;
  Dwarf_Word value = 0;
  if (dwarf_formudata(dwarf_attr(inlined, DW_AT_call_line, &attribute), &value) == 0) {
    caller.line = static_cast<int64_t>(value);
  }
  Dwarf_Files* files = nullptr;
  size_t count = 0;
  if (dwarf_formudata(dwarf_attr(inlined, DW_AT_call_file, &attribute), &value) == 0 &&
      dwarf_getsrcfiles(unit, &files, &count) == 0 && value < count) {
    if (const char* name = dwarf_filesrc(files, value, nullptr, nullptr)) caller.file = name;
  }
}

// Walks one unit's tree for the targets in it.
class UnitWalk {
 public:
  explicit UnitWalk(Dwarf_Die unit) : unit_(unit) {}

  void walk(std::vector<Target*>& targets) {
    visit_children(&unit_, targets, 0);
    for (Target* target : targets) results_.push_back({target, places(*target)});
  }

  std::vector<std::pair<Target*, SourcePlaces>>& results() { return results_; }

 private:
  static constexpr int kDepthMax = 256;  // A damaged file must not end the stack.

  static bool holds_functions(int tag) {
    return tag == DW_TAG_namespace || tag == DW_TAG_structure_type || tag == DW_TAG_class_type ||
           tag == DW_TAG_union_type || tag == DW_TAG_module || tag == DW_TAG_enumeration_type;
  }

  void visit_children(Dwarf_Die* parent, const std::vector<Target*>& targets, int depth) {
    Dwarf_Die child;
    if (depth > kDepthMax || dwarf_child(parent, &child) != 0) return;
    do {
      const int tag = dwarf_tag(&child);
      if (holds_functions(tag)) {
        visit_children(&child, targets, depth + 1);
        continue;
      }
      const bool function = tag == DW_TAG_subprogram || tag == DW_TAG_inlined_subroutine;
      if (!function && tag != DW_TAG_lexical_block) continue;
      const std::vector<Target*> inside = targets_in(&child, targets);
      if (inside.empty()) continue;
      if (function) {
        for (Target* target : inside) {
          // A function nested in another (GNU C) is a function of its own.
          if (tag == DW_TAG_subprogram) target->functions.clear();
          target->functions.push_back(child);
        }
      }
      visit_children(&child, inside, depth + 1);
    } while (dwarf_siblingof(&child, &child) == 0);
  }

  static std::vector<Target*> targets_in(Dwarf_Die* die, const std::vector<Target*>& targets) {
    std::vector<Target*> inside;
    Dwarf_Addr base = 0;
    Dwarf_Addr low = 0;
    Dwarf_Addr high = 0;
    for (ptrdiff_t at = 0; (at = dwarf_ranges(die, at, &base, &low, &high)) > 0;) {
      auto it = std::lower_bound(
          targets.begin(), targets.end(), low,
          [](const Target* target, uint64_t address) { return target->address < address; });
      for (; it != targets.end() && (*it)->address < high; ++it) inside.push_back(*it);
    }
    std::sort(inside.begin(), inside.end(), [](const Target* a, const Target* b) {
      return std::pair(a->address, a->index) < std::pair(b->address, b->index);
    });
    inside.erase(std::unique(inside.begin(), inside.end()), inside.end());
    return inside;
  }

  SourcePlaces places(Target& target) {
    SourcePlaces places;
    for (Dwarf_Die& die : target.functions) {
      if (!places.empty()) set_call_site(&die, &unit_, places.back());
      places.push_back({function_name(&die), "", 0});
    }
    if (places.empty()) places.push_back({});
    if (Dwarf_Line* line = dwarf_getsrc_die(&unit_, target.address)) {
      int number = 0;
      if (const char* file = dwarf_linesrc(line, nullptr, nullptr)) places.back().file = file;
      if (dwarf_lineno(line, &number) == 0) places.back().line = number;
    }
    return places;
  }

  Dwarf_Die unit_;
  std::vector<std::pair<Target*, SourcePlaces>> results_;
};

struct UnitRange {
  uint64_t low, high;
  Dwarf_Off unit;
};

// Made from the units themselves: .debug_aranges is missing from many files, or not complete.
std::vector<UnitRange> unit_ranges(Dwarf* dwarf) {
  std::vector<UnitRange> ranges;
  Dwarf_CU* cu = nullptr;
  Dwarf_Die unit;
  Dwarf_Die split;
  uint8_t type = 0;
  while (dwarf_get_units(dwarf, cu, &cu, nullptr, &type, &unit, &split) == 0) {
    if (type != DW_UT_compile && type != DW_UT_skeleton) continue;
    Dwarf_Addr base = 0;
    Dwarf_Addr low = 0;
    Dwarf_Addr high = 0;
    for (ptrdiff_t at = 0; (at = dwarf_ranges(&unit, at, &base, &low, &high)) > 0;) {
      if (low < high) ranges.push_back({low, high, dwarf_dieoffset(&unit)});
    }
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const UnitRange& a, const UnitRange& b) { return a.low < b.low; });
  return ranges;
}

void look_up_dwarf(Dwarf* dwarf, std::vector<Target>& targets, std::vector<SourcePlaces>& results) {
  const std::vector<UnitRange> ranges = unit_ranges(dwarf);
  std::vector<std::pair<Dwarf_Off, Target*>> by_unit;
  for (Target& target : targets) {
    auto range = std::upper_bound(
        ranges.begin(), ranges.end(), target.address,
        [](uint64_t address, const UnitRange& other) { return address < other.low; });
    if (range == ranges.begin()) continue;
    --range;
    if (target.address < range->high) by_unit.push_back({range->unit, &target});
  }
  // Stable: the targets of a unit stay in order of address.
  std::stable_sort(by_unit.begin(), by_unit.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t first = 0; first < by_unit.size();) {
    std::vector<Target*> inside;
    const Dwarf_Off offset = by_unit[first].first;
    for (; first < by_unit.size() && by_unit[first].first == offset; ++first) {
      inside.push_back(by_unit[first].second);
    }
    Dwarf_Die unit;
    if (dwarf_offdie(dwarf, offset, &unit) == nullptr) continue;
    UnitWalk walk(unit);
    walk.walk(inside);
    for (auto& [target, places] : walk.results()) results[target->index] = std::move(places);
  }
}

struct Symbol {
  uint64_t start, end;
  const char* name;
  bool is_unsized;
};

uint64_t section_end(Elf* elf, size_t index) {
  GElf_Shdr header;
  Elf_Scn* section = elf_getscn(elf, index);
  if (section == nullptr || gelf_getshdr(section, &header) == nullptr) return 0;
  return header.sh_addr + header.sh_size;
}

std::vector<Symbol> load_symbols(Elf* elf) {
  std::vector<Symbol> symbols;
  for (Elf_Scn* section = nullptr; (section = elf_nextscn(elf, section)) != nullptr;) {
    GElf_Shdr header;
    if (gelf_getshdr(section, &header) == nullptr) continue;
    if (header.sh_type != SHT_SYMTAB && header.sh_type != SHT_DYNSYM) continue;
    if (header.sh_entsize == 0) continue;
    Elf_Data* data = elf_getdata(section, nullptr);
    for (int i = 0;
         data != nullptr && static_cast<uint64_t>(i) < header.sh_size / header.sh_entsize; ++i) {
      GElf_Sym symbol;
      if (gelf_getsym(data, i, &symbol) == nullptr || symbol.st_shndx == SHN_UNDEF) continue;
      const int type = GELF_ST_TYPE(symbol.st_info);
      if (type != STT_FUNC && type != STT_GNU_IFUNC) continue;
      const char* name = elf_strptr(elf, header.sh_link, symbol.st_name);
      if (name == nullptr || *name == '\0') continue;
      uint64_t end = symbol.st_value + symbol.st_size;
      if (symbol.st_size == 0) end = section_end(elf, symbol.st_shndx);
      symbols.push_back({symbol.st_value, end, name, symbol.st_size == 0});
    }
  }
  std::stable_sort(symbols.begin(), symbols.end(),
                   [](const Symbol& a, const Symbol& b) { return a.start < b.start; });
  // Hand-written assembly has no sizes: such a symbol lasts to the next one, in its own section
  // (behind _init comes the table of calls into other files).
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    if (symbols[i].is_unsized) symbols[i].end = std::min(symbols[i].end, symbols[i + 1].start);
  }
  return symbols;
}

std::string symbol_name(const std::vector<Symbol>& symbols, uint64_t address) {
  auto it =
      std::upper_bound(symbols.begin(), symbols.end(), address,
                       [](uint64_t value, const Symbol& symbol) { return value < symbol.start; });
  // A few steps back: a symbol may lie inside a longer one, or share its start with others.
  for (int steps = 0; it != symbols.begin() && steps < 8; ++steps) {
    --it;
    if (address < it->end) {
      while (it != symbols.begin() && std::prev(it)->start == it->start &&
             address < std::prev(it)->end) {
        --it;
      }
      return demangle(it->name);
    }
  }
  return "";
}

}  // namespace

ModuleSymbols::ModuleSymbols(SymbolFiles& files, const std::string& path,
                             const std::string& build_id)
    : file_(files.open(path, build_id)) {
  if (file_ && file_->dwarf() == nullptr) debug_file_ = files.open_debug(*file_, path);
}

ModuleSymbols::~ModuleSymbols() = default;

std::vector<SourcePlaces> ModuleSymbols::look_up(const std::vector<uint64_t>& addresses) const {
  std::vector<SourcePlaces> results(addresses.size());
  if (!file_) return results;
  std::vector<Target> targets(addresses.size());
  for (size_t i = 0; i < addresses.size(); ++i) targets[i] = {addresses[i], i, {}};
  std::sort(targets.begin(), targets.end(),
            [](const Target& a, const Target& b) { return a.address < b.address; });
  Dwarf* dwarf = debug_file_ ? debug_file_->dwarf() : file_->dwarf();
  if (dwarf != nullptr) look_up_dwarf(dwarf, targets, results);
  const std::vector<Symbol> symbols = load_symbols(file_->elf());
  const std::vector<Symbol> more =
      debug_file_ ? load_symbols(debug_file_->elf()) : std::vector<Symbol>();
  for (size_t i = 0; i < addresses.size(); ++i) {
    if (results[i].empty()) results[i].push_back({});
    SourcePlace& outermost = results[i].front();
    if (!outermost.function.empty()) continue;
    outermost.function = symbol_name(more, addresses[i]);
    if (outermost.function.empty()) outermost.function = symbol_name(symbols, addresses[i]);
    if (outermost.function.empty() && outermost.file.empty()) results[i].clear();
  }
  return results;
}

}  // namespace heapledger::analyzer
