// SPDX-License-Identifier: Apache-2.0
// What was live when the live bytes of the process peaked, by allocating stack. One process's heap:
// the one that held most, or --process.
#include <fmt/format.h>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"

namespace heapledger::analyzer {

Document run_peak(const ReportInput& input) {
  Trace& trace = input.trace();
  const ProcessInfo& process = main_process(input);
  Table table("sites", "",
              {{"bytes", "bytes", Unit::kBytes, true},
               {"blocks", "blocks", Unit::kCount, true},
               {"live_bytes_end", "still live at exit", Unit::kBytes, true},
               {"stack", "", Unit::kText}});
  schema::Statement select = trace.db.prepare(
      "SELECT stack, live_bytes_peak, live_blocks_peak, live_bytes_end FROM site"
      " WHERE process = ? AND (live_blocks_peak > 0 OR live_bytes_end > 0)");
  select.bind(1, process.id);
  while (select.step()) {
    table.add({select.column_int(1), select.column_int(2), select.column_int(3),
               trace.stack(select.column_int(0))});
  }
  table.sort_by("bytes");
  // The timeline keeps the fullest moment of each part of the run, so the peak is in it.
  schema::Statement peak = trace.db.prepare(
      "SELECT live_bytes, time_ns, live_blocks, held_bytes FROM timeline WHERE process = ?"
      " ORDER BY live_bytes DESC, time_ns LIMIT 1");
  peak.bind(1, process.id);
  Document document;
  document.json["process"] = process.id;
  document.json["pid"] = process.pid;
  table.empty_text = "nothing was ever live";
  std::string heading = "Live at the peak";
  if (peak.step()) {
    table.totals["bytes"] = peak.column_int(0);
    document.json["live_bytes_peak"] = peak.column_int(0);
    document.json["live_bytes_peak_ns"] = peak.column_int(1);
    heading += fmt::format(" of live bytes, {} (process {}): {} of {} held",
                           human_time(peak.column_int(1)), process.pid,
                           human_bytes(peak.column_int(0)), human_bytes(peak.column_int(3)));
  }
  document.add_table(std::move(table), heading);
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
