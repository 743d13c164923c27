// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/fidelity.h"

#include <filesystem>

namespace heapledger::analyzer {

std::vector<Fidelity> compute_fidelity(schema::Database& db, const TraceInfo& info) {
  const auto cpus = schema::meta_int(db, "cpus").value_or(1);
  std::vector<Fidelity> results;
  std::vector<Op> ops;
  for (const ProcessInfo& process : info.processes) {
    if (!process.recorded) continue;
    ModelOptions options;
    options.layout = LayoutKind::kGlibc;
    options.settings = recorded_settings(process);
    options.cpus = static_cast<size_t>(cpus);
    const std::unique_ptr<Model> model = make_model(options);
    // What is damaged is noted where the process is replayed.
    RecordedOps reader(db, info, process.id, [](const schema::Damage&) {});
    while (reader.next_chunk(ops)) model->run(ops);
    results.push_back({process.id, model->counts()});
  }
  return results;
}

FidelityPass::FidelityPass(schema::Database& db, const TraceInfo& info) : db_(db), info_(info) {
  std::error_code error;
  if (!std::filesystem::exists(db.path(), error)) return;
  // Opened here: the thread must not meet the pass's transaction half-way.
  schema::Database own = schema::open_trace(db.path(), schema::OpenMode::kReadOnly);
  thread_ = std::thread([this, own = std::move(own)]() mutable {
    try {
      results_ = compute_fidelity(own, info_);
    } catch (...) {
      error_ = std::current_exception();
    }
  });
}

FidelityPass::~FidelityPass() {
  if (thread_.joinable()) thread_.join();
}

void FidelityPass::finish() {
  if (thread_.joinable()) {
    thread_.join();
  } else {
    results_ = compute_fidelity(db_, info_);
  }
  if (error_) std::rethrow_exception(error_);
  schema::Statement insert = db_.prepare("INSERT INTO fidelity VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
  for (const Fidelity& row : results_) {
    const auto& calls = row.counts.calls;
    insert.run_with(row.process, row.counts.held_bytes_peak, calls[0], calls[1], calls[2], calls[3],
                    calls[4], calls[5]);
  }
}

}  // namespace heapledger::analyzer
