// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay_file_command.h"

#include <nlohmann/json.hpp>

#include "analyzer/reports/open_trace.h"
#include "analyzer/whatif/model.h"
#include "analyzer/whatif/replay_file_writer.h"
#include "analyzer/whatif/setting_grid.h"

namespace heapledger::analyzer {

void run_replay_file(const std::string& path, const std::string& output, std::optional<int64_t> pid,
                     FILE* out) {
  Trace trace = open_for_report(path);
  ReportOptions options;
  options.process = pid;
  const ReportInput input{{&trace, 1}, options};
  const ProcessInfo& process = main_process(input);
  const ReplayFileFacts facts = write_replay_file(trace.db, trace.info, process.id, output);
  const auto recorded = setting_grid(recorded_settings(trace.db, trace.info, process.id), {});
  Document document;
  add_notes(input, document);
  nlohmann::ordered_json json = {{"pid", process.pid},
                                 {"exe", process.exe},
                                 {"operations", facts.operations},
                                 {"threads", facts.threads},
                                 {"unmatched_ends", facts.unmatched_ends},
                                 {"touches_known", facts.touches_known},
                                 {"tunables", recorded.front().tunables_text()},
                                 {"notes", document.notes}};
  const std::string text = json.dump() + "\n";
  std::fwrite(text.data(), 1, text.size(), out);
}

}  // namespace heapledger::analyzer
