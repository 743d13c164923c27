// SPDX-License-Identifier: Apache-2.0
// What the writer was given in a recording, kept in a file: so that packing can be measured over
// and over on the same stream (tests/interposer/collector/packing_speed.cc). For developers: the
// collector makes one where HEAPLEDGER_DUMP names a file.
//
//     begin     kDumpMagic, clock, origin of the trace's time, the two clock pairs of its start
//     records   DumpRecord, then its body
//       image     DumpImage, the path of its program
//       window    DumpWindow, DumpPiece[pieces], the bytes of the rings
//
// Forks, page faults and snapshots are left out, so it is of use for programs of one process.
// A dump is of this machine and this build: structs as they are, no versions, no checksums.
//
// Thread safety: none.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "interposer/collector/clock_map.h"
#include "interposer/collector/message.h"

namespace heapledger::collector {

struct DumpBegin {
  uint64_t magic;
  schema::Clock clock;
  int64_t origin_raw_ns;
  ClockPair first, second;
};

class StreamDump {
 public:
  // Throws schema::Error.
  StreamDump(const std::string& path, const DumpBegin& begin);
  void add(const Message& message);  // Passes over what is not kept.

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  void put(const void* data, size_t bytes);

  std::unique_ptr<std::FILE, Close> file_;
};

// Reads a whole dump back as messages. Regions are made anew, with slot 0 claimed as the program
// did. Throws schema::Error.
struct LoadedDump {
  DumpBegin begin{};
  std::vector<Message> messages;
  size_t ring_bytes = 0;
};
LoadedDump load_dump(const std::string& path);

}  // namespace heapledger::collector
