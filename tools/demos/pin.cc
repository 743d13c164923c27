// SPDX-License-Identifier: Apache-2.0
// pin: 200 MB freed, and none of it returned, because of one small block.
//
// The heap grows and shrinks at its end only (brk). A program loads 200 MB of records below the
// mmap threshold, so carved from the heap; then makes one small block that it keeps, which lies
// above them; then frees all records. The free memory is whole and idle, but the small block holds
// the break: nothing goes back to the system, and RSS stays at 200 MB until the program ends.
//
// The cure is to make the small block first, or to give the records mappings of their own:
//
//   heapledger fragmentation TRACE          names the block and what it holds
//   heapledger record --mmap-threshold 32K  gives every record back when it is freed
#include <cstring>

#include "tools/demos/demo.h"

namespace {

constexpr size_t kRecords = 3200;
constexpr size_t kRecordBytes = size_t{64} << 10;

DEMO_FUNCTION char* load_record() {
  char* record = static_cast<char*>(std::malloc(kRecordBytes));
  if (record == nullptr) std::abort();
  demo::touch_pages(record, kRecordBytes);
  return record;
}

DEMO_FUNCTION char** load_table(size_t count) {
  char** table = static_cast<char**>(std::calloc(count, sizeof(char*)));
  if (table == nullptr) std::abort();
  for (size_t i = 0; i < count; ++i) table[i] = load_record();
  return table;
}

// The block that pins: a few bytes that outlive everything below them.
DEMO_FUNCTION char* remember_session_name() {
  constexpr char kName[] = "session of 2024-02-29, which nobody ends";
  char* name = static_cast<char*>(std::malloc(sizeof kName));
  if (name == nullptr) std::abort();
  std::memcpy(name, kName, sizeof kName);
  return name;
}

DEMO_FUNCTION void drop_table(char** table, size_t count) {
  for (size_t i = 0; i < count; ++i) std::free(table[i]);
  std::free(table);
}

// What the kernel says of us, in MB.
size_t resident_mb() {
  size_t total = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%zu %zu", &total, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return resident * demo::kPageBytes / 1'000'000;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t count = demo::scaled(kRecords, argc, argv);
  char** table = load_table(count);
  char* session = remember_session_name();
  const size_t loaded_mb = resident_mb();
  drop_table(table, count);
  std::printf("pin: %zu MB resident with the table loaded, %zu MB after it was freed\n", loaded_mb,
              resident_mb());
  return session[0] == 's' ? 0 : 1;
}
