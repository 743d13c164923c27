// SPDX-License-Identifier: Apache-2.0
// The statistics functions of the malloc family, in glibc's formats.
//
// Numbers are gathered first and printed afterwards: no lock of the heap is held while stdio runs
// (glibc itself deadlocks where stderr is buffered). Formatting is done here, into a buffer on the
// stack.
#include <errno.h>
#include <malloc.h>
#include <stdio.h>

#include <cstring>

#include "interposer/heap.h"

#define HL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using heapledger::g_heap;
using heapledger::heap::ArenaReport;
using heapledger::heap::Info;
using heapledger::heap::SizeClass;

// A line of text under construction.
class Line {
 public:
  Line& operator<<(const char* text) {
    const size_t length = strnlen(text, sizeof(text_) - size_);
    memcpy(text_ + size_, text, length);
    size_ += length;
    return *this;
  }
  Line& operator<<(size_t number) { return padded(number, 0); }
  // Right-aligned in `width` columns.
  Line& padded(size_t number, size_t width) {
    char digits[24];
    size_t count = 0;
    for (size_t rest = number; count == 0 || rest != 0; rest /= 10) {
      digits[count++] = static_cast<char>('0' + rest % 10);
    }
    for (size_t i = count; i < width; ++i) *this << " ";
    char text[2] = {0, 0};
    while (count != 0) {
      text[0] = digits[--count];
      *this << text;
    }
    return *this;
  }
  void print(FILE* file) {
    fwrite(text_, 1, size_, file);
    size_ = 0;
  }

 private:
  char text_[512];
  size_t size_ = 0;
};

// glibc's own arithmetic here: 32 bits, without a check.
size_t as_unsigned(size_t value) { return static_cast<unsigned>(value); }

void print_system_size(Line& line, const char* type, size_t bytes) {
  line << "<system type=\"" << type << "\" size=\"" << bytes << "\"/>\n";
}

void print_address_space(Line& line, size_t total, size_t committed) {
  line << "<aspace type=\"total\" size=\"" << total << "\"/>\n<aspace type=\"mprotect\" size=\""
       << committed << "\"/>\n";
}

void print_totals(Line& line, FILE* file, const ArenaReport& sum) {
  if (g_heap.rules().has_fastbins) {
    line << "<total type=\"fast\" count=\"" << sum.fast_count << "\" size=\"" << sum.fast_bytes
         << "\"/>\n";
  }
  line << "<total type=\"rest\" count=\"" << sum.rest_count << "\" size=\"" << sum.rest_bytes
       << "\"/>\n";
  line.print(file);
}

void print_size_class(Line& line, FILE* file, const char* element, SizeClass entry) {
  if (entry.count == 0) return;
  line << "  <" << element << " from=\"" << entry.from << "\" to=\"" << entry.to << "\" total=\""
       << entry.bytes << "\" count=\"" << entry.count << "\"/>\n";
  line.print(file);
}

// glibc's readers know its numbers: a fastbin is named as the range of sizes above the one before,
// and the sizes of chunks in bins are printed with their lowest flag, which is set.
SizeClass as_fast_range(SizeClass entry) {
  entry.from = entry.to - (heapledger::heap::kAlignment - 1);
  return entry;
}
SizeClass with_flags(SizeClass entry) {
  entry.from += heapledger::heap::kPrevInUse;
  entry.to += heapledger::heap::kPrevInUse;
  entry.bytes += entry.count * heapledger::heap::kPrevInUse;
  return entry;
}

// The report with the same numbers: all but the top are in bins.
ArenaReport as_glibc_prints(ArenaReport report) {
  for (SizeClass& entry : report.fast) entry = as_fast_range(entry);
  for (SizeClass& entry : report.bins) {
    report.rest_bytes += with_flags(entry).bytes - entry.bytes;
    entry = with_flags(entry);
  }
  return report;
}

void print_arena(FILE* file, size_t number, const ArenaReport& report) {
  Line line;
  line << "<heap nr=\"" << number << "\">\n<sizes>\n";
  line.print(file);
  for (const auto& entry : report.fast) print_size_class(line, file, "size", entry);
  for (size_t i = 0; i < heapledger::heap::kBinCount; ++i) {
    if (i != heapledger::heap::kUnsortedBin) print_size_class(line, file, "size", report.bins[i]);
  }
  print_size_class(line, file, "unsorted", report.bins[heapledger::heap::kUnsortedBin]);
  line << "</sizes>\n";
  print_totals(line, file, report);
  print_system_size(line, "current", report.system_bytes);
  print_system_size(line, "max", report.system_bytes_max);
  const bool is_main = report.heap_count == 0;
  print_address_space(line, is_main ? report.system_bytes : report.heap_bytes,
                      is_main ? report.system_bytes : report.heap_committed_bytes);
  if (!is_main) {
    line << "<aspace type=\"subheaps\" size=\"" << report.heap_count << "\"/>\n";
  }
  line << "</heap>\n";
  line.print(file);
}

}  // namespace

// Deprecated for its 32-bit fields, which programs still call.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

HL_EXPORT struct mallinfo2 mallinfo2() noexcept {
  const Info info = g_heap.info();
  struct mallinfo2 result {};
  result.arena = info.system_bytes;
  result.ordblks = info.free_chunks;
  result.smblks = info.fast_chunks;
  result.hblks = info.mapped_count;
  result.hblkhd = info.mapped_bytes;
  result.fsmblks = info.fast_bytes;
  result.uordblks = info.system_bytes - info.free_bytes;
  result.fordblks = info.free_bytes;
  result.keepcost = info.top_bytes;
  return result;
}

HL_EXPORT struct mallinfo mallinfo() noexcept {
  const struct mallinfo2 wide = mallinfo2();
  struct mallinfo result {};
  result.arena = static_cast<int>(wide.arena);
  result.ordblks = static_cast<int>(wide.ordblks);
  result.smblks = static_cast<int>(wide.smblks);
  result.hblks = static_cast<int>(wide.hblks);
  result.hblkhd = static_cast<int>(wide.hblkhd);
  result.fsmblks = static_cast<int>(wide.fsmblks);
  result.uordblks = static_cast<int>(wide.uordblks);
  result.fordblks = static_cast<int>(wide.fordblks);
  result.keepcost = static_cast<int>(wide.keepcost);
  return result;
}
extern "C" __attribute__((visibility("default"), alias("mallinfo"))) struct mallinfo
__libc_mallinfo();

HL_EXPORT void malloc_stats() noexcept {
  const Info info = g_heap.info();
  Line line;
  size_t in_use = 0;
  for (size_t i = 0; i < info.arena_count; ++i) {
    ArenaReport report;
    if (!g_heap.report_arena(i, &report)) break;
    const size_t used = report.system_bytes - report.fast_bytes - report.rest_bytes;
    in_use += used;
    line << "Arena " << i << ":\nsystem bytes     = ";
    line.padded(as_unsigned(report.system_bytes), 10) << "\nin use bytes     = ";
    line.padded(as_unsigned(used), 10) << "\n";
    line.print(stderr);
  }
  line << "Total (incl. mmap):\nsystem bytes     = ";
  line.padded(as_unsigned(info.system_bytes + info.mapped_bytes), 10) << "\nin use bytes     = ";
  line.padded(as_unsigned(in_use + info.mapped_bytes), 10) << "\nmax mmap regions = ";
  line.padded(as_unsigned(info.mapped_count_max), 10) << "\nmax mmap bytes   = ";
  line.padded(info.mapped_bytes_max, 10) << "\n";
  line.print(stderr);
}

HL_EXPORT int malloc_info(int options, FILE* file) noexcept {
  if (options != 0) return EINVAL;
  const Info info = g_heap.info();
  Line line;
  line << "<malloc version=\"1\">\n";
  line.print(file);
  ArenaReport sum;
  for (size_t i = 0; i < info.arena_count; ++i) {
    ArenaReport report;
    if (!g_heap.report_arena(i, &report)) break;
    report = as_glibc_prints(report);
    print_arena(file, i, report);
    sum.fast_count += report.fast_count;
    sum.fast_bytes += report.fast_bytes;
    sum.rest_count += report.rest_count;
    sum.rest_bytes += report.rest_bytes;
    const bool is_main = report.heap_count == 0;
    sum.heap_bytes += is_main ? report.system_bytes : report.heap_bytes;
    sum.heap_committed_bytes += is_main ? report.system_bytes : report.heap_committed_bytes;
  }
  print_totals(line, file, sum);
  line << "<total type=\"mmap\" count=\"" << info.mapped_count << "\" size=\"" << info.mapped_bytes
       << "\"/>\n";
  print_system_size(line, "current", info.system_bytes);
  print_system_size(line, "max", info.system_bytes_max);
  print_address_space(line, sum.heap_bytes, sum.heap_committed_bytes);
  line << "</malloc>\n";
  line.print(file);
  return 0;
}
