// SPDX-License-Identifier: Apache-2.0
#include "analyzer/model_command.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "analyzer/whatif/model.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

using Json = nlohmann::ordered_json;

int64_t first_recorded(const TraceInfo& info) {
  for (const ProcessInfo& process : info.processes) {
    if (process.recorded) return process.id;
  }
  throw schema::Error("no process was recorded", "");
}

const char* function_of(const Op& op) {
  if (const auto* row = schema::kind_row(op.event); row != nullptr && schema::is_call(op.event)) {
    return row->name;
  }
  switch (op.kind) {
    case OpKind::kThreadEnd:
      return "end of thread";
    case OpKind::kForeignBreak:
      return "the program's sbrk";
    case OpKind::kSetOption:
      return "mallopt";
    case OpKind::kTrim:
      return "malloc_trim";
    default:
      return "fork";
  }
}

Json call_json(const heap::SimulatedCall& call, uint64_t operation, const Op& op) {
  return {{"name", heap::call_name(call.name)},
          {"bytes", call.address == 0 && call.name == heap::CallName::kBrk ? 0 : call.bytes},
          {"old_bytes", call.old_bytes},
          {"cause", heap::cause_name(call.cause)},
          {"ok", call.ok},
          {"operation", operation},
          {"function", function_of(op)},
          {"size", op.size},
          {"thread", op.thread}};
}

}  // namespace

void run_model(const std::string& path, const std::string& layout, std::optional<int64_t> process,
               FILE* out) {
  schema::Database db = schema::open_trace(path, schema::OpenMode::kReadOnly);
  const TraceInfo info = load_trace_info(db);
  const int64_t id = process.value_or(first_recorded(info));
  ModelOptions options;
  options.layout = layout == "header16" ? LayoutKind::kHeader16 : LayoutKind::kGlibc;
  options.settings = recorded_settings(db, info, id);
  options.cpus = static_cast<size_t>(schema::meta_int(db, "cpus").value_or(1));
  const std::unique_ptr<Model> model = make_model(options);
  RecordedOps reader(db, info, id);
  std::vector<Op> ops;
  Json calls = Json::array();
  const Op* now = nullptr;
  model->set_sink([&](const heap::SimulatedCall& call, uint64_t operation) {
    calls.push_back(call_json(call, operation, *now));
  });
  while (reader.next_chunk(ops)) {
    for (const Op& op : ops) {
      now = &op;
      if (op.kind == OpKind::kFork) calls.clear();  // What came before was an ancestor's.
      model->run({&op, 1});
    }
  }
  const ModelCounts counts = model->counts();
  Json by_name;
  for (size_t i = 0; i < heap::kCallNames; ++i) {
    by_name[heap::call_name(static_cast<heap::CallName>(i))] = counts.calls[i];
  }
  const Json document = {{"layout", layout},
                         {"process", id},
                         {"operations", counts.operations},
                         {"unmatched_ends", reader.unmatched_ends()},
                         {"held_bytes_peak", counts.held_bytes_peak},
                         {"counts", std::move(by_name)},
                         {"syscalls", std::move(calls)}};
  const std::string text = document.dump() + "\n";
  std::fwrite(text.data(), 1, text.size(), out);
}

}  // namespace heapledger::analyzer
