// SPDX-License-Identifier: Apache-2.0
// Fills table `symbol` for every frame of a trace that has no name yet.
// Thread safety: as its Database.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "analyzer/symbols/module_symbols.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

// A frame's offset is a return address: the call is the instruction before it, so offset - 1 is
// looked up. Frames of a module that is missing, or is another file by now, get no row. Code of no
// module is looked up in the maps that JIT compilers of the trace's processes left in /tmp.
//
// Reading the files is work for another core: a thread of its own does it from the constructor on,
// for the frames that there are; finish() sees to those that came later and writes all rows. The
// thread does not touch the database.
class SymbolPass {
 public:
  explicit SymbolPass(schema::Database& db, const SymbolOptions& options = {});
  ~SymbolPass();
  SymbolPass(const SymbolPass&) = delete;
  SymbolPass& operator=(const SymbolPass&) = delete;

  void finish();

 private:
  struct Frame {
    int64_t id;
    uint64_t offset;
  };
  // One file, by path and build id, may be a module of many processes: its frames are looked up
  // together.
  using File = std::pair<std::string, std::string>;
  using FramesByFile = std::map<File, std::vector<Frame>>;

  FramesByFile load_frames();
  void look_up(const FramesByFile& frames);
  void name_jit_frames();

  schema::Database& db_;
  SymbolFiles files_;
  int64_t last_frame_ = 0;                  // Frames up to this one were loaded.
  std::map<File, ModuleSymbols> modules_;   // Kept open for finish(), if they are not too many.
  std::map<int64_t, SourcePlaces> places_;  // By frame: in the order of the table.
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace heapledger::analyzer
