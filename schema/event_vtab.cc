// SPDX-License-Identifier: Apache-2.0
#include "schema/event_vtab.h"

// The extension calls SQLite through a table of pointers that the program which loads it hands
// over; the library is linked with it.
#ifdef HL_SQLITE_EXTENSION
#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT1
#else
#include <sqlite3.h>
#endif

#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "schema/error.h"
#include "schema/event_batch.h"
#include "schema/fault_batch.h"
#include "schema/site_batch.h"
#include "schema/stack_vtab.h"
#include "schema/vtab_module.h"

namespace heapledger::schema {
namespace {

std::span<const uint8_t> blob_of(sqlite3_stmt* statement, int column) {
  const void* data = sqlite3_column_blob(statement, column);
  const int bytes = sqlite3_column_bytes(statement, column);
  return {static_cast<const uint8_t*>(data), static_cast<size_t>(bytes)};
}

void result_uint(sqlite3_context* context, uint64_t value) {
  sqlite3_result_int64(context, static_cast<int64_t>(value));
}

// NULL where 0 means that there is none.
void result_optional(sqlite3_context* context, uint64_t value) {
  if (value != 0) result_uint(context, value);
}

std::optional<int64_t> integer_value(sqlite3_value* value) {
  if (sqlite3_value_type(value) != SQLITE_INTEGER) return std::nullopt;
  return sqlite3_value_int64(value);
}

class EventTable {
 public:
  static constexpr char kDeclaration[] =
      "CREATE TABLE event(time_ns INTEGER, process INTEGER, thread INTEGER, kind TEXT, id INTEGER, "
      "address INTEGER, size INTEGER, usable INTEGER, alignment INTEGER, ended_id INTEGER, "
      "stack INTEGER)";
  static constexpr char kBatchesSql[] =
      "SELECT id, process, time_min_ns, time_max_ns, data FROM main.event_batch "
      "WHERE (?1 IS NULL OR process = ?1) AND time_max_ns >= ?2 AND time_min_ns <= ?3";
  enum Column : int {
    kTime,
    kProcess,
    kThread,
    kKind,
    kId,
    kAddress,
    kSize,
    kUsable,
    kAlignment,
    kEndedId,
    kStack
  };
  static constexpr int kRangeColumn = kTime;
  static constexpr int kProcessColumn = kProcess;

  static bool can_filter(int column) {
    return column == kKind || column == kId || column == kEndedId || column == kAddress ||
           column == kThread || column == kStack || column == kSize;
  }

  static std::optional<int64_t> filter_value(int column, sqlite3_value* value) {
    if (column != kKind) return integer_value(value);
    if (sqlite3_value_type(value) != SQLITE_TEXT) return std::nullopt;
    const void* text = sqlite3_value_text(value);
    if (text == nullptr) throw std::bad_alloc();
    for (const EventKindRow& row : kEventKinds) {
      if (std::strcmp(row.name, static_cast<const char*>(text)) == 0) {
        return static_cast<int64_t>(row.kind);
      }
    }
    return -1;  // No row has it.
  }

  static uint32_t needs(int column) {
    switch (column) {
      case kTime:
        return kColumnTime;
      case kThread:
        return kColumnThread;
      case kKind:
        return kColumnKind;
      case kId:
        return kColumnId;
      case kAddress:
        return kColumnAddress;
      case kSize:
        return kColumnSize | kColumnKind;  // A free has none, another call may ask for 0 bytes.
      case kUsable:
        return kColumnUsable;
      case kAlignment:
        return kColumnAlignment;
      case kEndedId:
        return kColumnEndedId;
      case kStack:
        return kColumnStack;
      default:
        return 0;
    }
  }

  void decode(sqlite3_stmt* statement, uint32_t columns) {
    decoder_.decode(blob_of(statement, 4), columns, batch_);
  }
  size_t rows() const { return batch_.events; }
  int64_t range_value(size_t row) const { return batch_.time_ns[row]; }

  int64_t cell(int column, size_t row) const {
    switch (column) {
      case kThread:
        return batch_.thread[row];
      case kKind:
        return static_cast<int64_t>(batch_.kind[row]);
      case kId:
        return static_cast<int64_t>(batch_.id[row]);
      case kAddress:
        return static_cast<int64_t>(batch_.address[row]);
      case kSize:
        return static_cast<int64_t>(batch_.size[row]);
      case kEndedId:
        return static_cast<int64_t>(batch_.ended_id[row]);
      default:
        return batch_.stack[row];
    }
  }

  void result(sqlite3_context* context, int column, size_t row) const {
    switch (column) {
      case kTime:
        return sqlite3_result_int64(context, batch_.time_ns[row]);
      case kThread:
        return sqlite3_result_int64(context, batch_.thread[row]);
      case kKind:
        return sqlite3_result_text(context, kind_row(batch_.kind[row])->name, -1, SQLITE_STATIC);
      case kId:
        return result_optional(context, batch_.id[row]);
      case kAddress:
        return result_optional(context, batch_.address[row]);
      case kSize:
        if (kind_row(batch_.kind[row])->role != 'f') result_uint(context, batch_.size[row]);
        return;
      case kUsable:
        return result_optional(context, batch_.usable[row]);
      case kAlignment:
        return result_optional(context, batch_.alignment[row]);
      case kEndedId:
        return result_optional(context, batch_.ended_id[row]);
      default:
        return sqlite3_result_int64(context, batch_.stack[row]);
    }
  }

 private:
  CallDecoder decoder_;
  CallBatch batch_;
};

class FaultTable {
 public:
  static constexpr char kDeclaration[] =
      "CREATE TABLE fault(time_ns INTEGER, process INTEGER, thread INTEGER, address INTEGER, "
      "ip INTEGER, major INTEGER, kernel INTEGER, block_id INTEGER, site INTEGER, touch TEXT)";
  static constexpr char kBatchesSql[] =
      "SELECT id, process, time_min_ns, time_max_ns, data, attribution FROM main.fault_batch "
      "WHERE (?1 IS NULL OR process = ?1) AND time_max_ns >= ?2 AND time_min_ns <= ?3";
  enum Column : int {
    kTime,
    kProcess,
    kThread,
    kAddress,
    kIp,
    kMajor,
    kKernel,
    kBlockId,
    kSite,
    kTouch
  };
  static constexpr int kRangeColumn = kTime;
  static constexpr int kProcessColumn = kProcess;

  static bool can_filter(int column) { return column != kTouch; }
  static std::optional<int64_t> filter_value(int, sqlite3_value* value) {
    return integer_value(value);
  }

  static uint32_t needs(int column) {
    switch (column) {
      case kTime:
        return kFaultTime;
      case kThread:
        return kFaultThread;
      case kAddress:
        return kFaultAddress;
      case kIp:
        return kFaultIp;
      case kMajor:
      case kKernel:
        return kFaultFlags;
      case kBlockId:
      case kSite:
      case kTouch:
        return kNeedsAttribution;
      default:
        return 0;
    }
  }

  void decode(sqlite3_stmt* statement, uint32_t columns) {
    decode_faults(blob_of(statement, 4), columns & kFaultColumnsAll, batch_);
    if ((columns & kNeedsAttribution) == 0) return;
    if (sqlite3_column_type(statement, 5) == SQLITE_NULL) {
      attribution_.assign(batch_.faults, {});
      return;
    }
    attribution_ = decode_attribution(blob_of(statement, 5));
    if (attribution_.size() != batch_.faults) {
      throw Error("cannot read a batch", "its attribution is of another length");
    }
  }
  size_t rows() const { return batch_.faults; }
  int64_t range_value(size_t row) const { return batch_.time_ns[row]; }

  int64_t cell(int column, size_t row) const {
    switch (column) {
      case kThread:
        return batch_.thread[row];
      case kAddress:
        return static_cast<int64_t>(batch_.address[row]);
      case kIp:
        return static_cast<int64_t>(batch_.ip[row]);
      case kMajor:
        return batch_.major[row];
      case kKernel:
        return batch_.kernel[row];
      case kBlockId:
        return static_cast<int64_t>(attribution_[row].block_id);
      default:
        return attribution_[row].site;
    }
  }

  void result(sqlite3_context* context, int column, size_t row) const {
    switch (column) {
      case kTime:
        return sqlite3_result_int64(context, batch_.time_ns[row]);
      case kBlockId:
        return result_optional(context, attribution_[row].block_id);
      case kSite:
        return result_optional(context, attribution_[row].site);
      case kTouch:
        return sqlite3_result_text(context, touch_name(attribution_[row].touch), -1, SQLITE_STATIC);
      default:
        return sqlite3_result_int64(context, cell(column, row));
    }
  }

 private:
  static constexpr uint32_t kNeedsAttribution = 1u << 31;
  FaultBatch batch_;
  std::vector<FaultAttribution> attribution_;
};

class SiteTable {
 public:
  static constexpr char kDeclaration[] =
      "CREATE TABLE site(process INTEGER, stack INTEGER, calls INTEGER, bytes INTEGER, "
      "live_bytes_peak INTEGER, live_blocks_peak INTEGER, live_bytes_end INTEGER, "
      "live_blocks_end INTEGER, inherited_bytes_end INTEGER, inherited_blocks_end INTEGER, "
      "temporary INTEGER, faults INTEGER, syscalls INTEGER, syscall_ns INTEGER, "
      "calls_with_syscall INTEGER, mapped_blocks INTEGER, mapped_ns INTEGER, growth INTEGER, "
      "first_ns INTEGER, last_ns INTEGER)";
  static constexpr char kBatchesSql[] =
      "SELECT id, process, stack_min, stack_max, data FROM main.site_batch "
      "WHERE (?1 IS NULL OR process = ?1) AND stack_max >= ?2 AND stack_min <= ?3";
  static constexpr int kProcessColumn = 0;
  static constexpr int kRangeColumn = 1;

  static bool can_filter(int) { return false; }
  static std::optional<int64_t> filter_value(int, sqlite3_value*) { return std::nullopt; }
  static uint32_t needs(int column) { return column == kProcessColumn ? 0 : 1; }

  void decode(sqlite3_stmt* statement, uint32_t) { rows_ = decode_sites(blob_of(statement, 4)); }
  size_t rows() const { return rows_.size(); }
  int64_t range_value(size_t row) const { return rows_[row][kSiteStack]; }
  int64_t cell(int column, size_t row) const { return rows_[row][static_cast<size_t>(column) - 1]; }
  void result(sqlite3_context* context, int column, size_t row) const {
    sqlite3_result_int64(context, cell(column, row));
  }

 private:
  std::vector<SiteRow> rows_;
};

}  // namespace

int register_trace_modules(sqlite3* db) {
  const std::pair<const char*, const sqlite3_module*> modules[] = {
      {"event", VtabModule<EventTable>::module()},
      {"fault", VtabModule<FaultTable>::module()},
      {"site", VtabModule<SiteTable>::module()},
      {"stack", stack_module()},
  };
  for (const auto& [name, module] : modules) {
    const int code = sqlite3_create_module_v2(db, name, module, nullptr, nullptr);
    if (code != SQLITE_OK) return code;
  }
  return SQLITE_OK;
}

}  // namespace heapledger::schema

#ifdef HL_SQLITE_EXTENSION
extern "C" __attribute__((visibility("default"))) int sqlite3_heapledgersqlite_init(
    sqlite3* db, char** message, const sqlite3_api_routines* api) {
  (void)message;
  SQLITE_EXTENSION_INIT2(api);
  return heapledger::schema::register_trace_modules(db);
}
#endif
