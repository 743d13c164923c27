// SPDX-License-Identifier: Apache-2.0
// Rows of table `frame` for touching instructions, made where they are missing.
//
// A frame's offset is a return address, looked up at offset - 1; a touching instruction at `ip` is
// therefore the frame ip + 1.
// Thread safety: as its Database.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "schema/trace_db.h"

namespace heapledger::analyzer {

class TouchingFrames {
 public:
  explicit TouchingFrames(schema::Database& db);

  // Nothing for an ip in no known module. A forked child has its parent's modules.
  std::optional<int64_t> frame_of(int64_t process, uint64_t ip);

 private:
  bool has_modules(int64_t process) const;

  struct Module {
    int64_t id;
    uint64_t base, end;
  };

  schema::Database& db_;
  std::map<int64_t, int64_t> parents_;  // Of forked children: the nearest with modules of its own.
  std::map<std::pair<int64_t, uint64_t>, Module> modules_;  // By process and first address.
  std::map<std::pair<int64_t, uint64_t>, int64_t> frames_;  // By module and offset.
  int64_t next_id_;
};

}  // namespace heapledger::analyzer
