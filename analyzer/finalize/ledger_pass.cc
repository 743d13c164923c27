// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/ledger_pass.h"

#include <algorithm>
#include <tuple>

namespace heapledger::analyzer {

std::vector<LedgerSnapshot> ledger_snapshots(schema::Database& db, int64_t process) {
  std::vector<LedgerSnapshot> snapshots;
  for (const auto& [at, order] : {std::pair("peak", "rss_bytes DESC, end_ns, id"),
                                  std::pair("exit", "end_ns DESC, id DESC")}) {
    schema::Statement select =
        db.prepare(std::string("SELECT id, end_ns FROM snapshot WHERE process = ? AND EXISTS"
                               " (SELECT 1 FROM region WHERE snapshot = snapshot.id) ORDER BY ") +
                   order + " LIMIT 1");
    select.bind(1, process);
    if (select.step()) snapshots.push_back({at, select.column_int(0), select.column_int(1)});
  }
  return snapshots;
}

ModelTimes ledger_times(schema::Database& db, const TraceInfo& info) {
  ModelTimes times;
  for (const ProcessInfo& process : info.processes) {
    if (!process.recorded) continue;
    std::vector<int64_t> of_process;
    for (const LedgerSnapshot& snapshot : ledger_snapshots(db, process.id)) {
      of_process.push_back(snapshot.end_ns);
    }
    std::sort(of_process.begin(), of_process.end());
    of_process.erase(std::unique(of_process.begin(), of_process.end()), of_process.end());
    if (!of_process.empty()) times[process.id] = std::move(of_process);
  }
  return times;
}

int64_t Balance::moved_bytes() const {
  const uint64_t within = std::clamp(kernel.heap_bytes, heap_bytes_min, heap_bytes_max);
  return static_cast<int64_t>(within - heap_bytes);
}

int64_t Balance::residual_bytes() const {
  const uint64_t within = std::clamp(kernel.heap_bytes, heap_bytes_min, heap_bytes_max);
  return static_cast<int64_t>(kernel.heap_bytes - within);
}

Balance balance_at(schema::Database& db, const Replay& replay, const SnapshotMoment& moment,
                   MapNotes& notes) {
  const MemoryMap& memory = replay.memory();
  Balance balance;
  balance.snapshot = moment.id;
  balance.kernel = kernel_view(db, moment.id, moment.window.held,
                               notes.own_at(replay.process().id, moment.end_ns), memory.resident());
  balance.heap_bytes = memory.held_resident_bytes();
  balance.heap_bytes_min = moment.window.held_resident_min;
  balance.heap_bytes_max = moment.window.held_resident_max;
  for (const auto& [start, range] : memory.held().ranges()) {
    balance.unfaulted_bytes += memory.unfaulted().bytes(start, range.end);
    balance.touched_absent_bytes += memory.touched_absent().bytes(start, range.end);
  }
  return balance;
}

LedgerPass::LedgerPass(schema::Database& db, MapNotes& notes, int64_t process)
    : db_(db), notes_(notes), process_(process), wanted_(ledger_snapshots(db, process)) {}

void LedgerPass::on_snapshot(const Replay& replay, const SnapshotMoment& moment) {
  Balance balance = balance_at(db_, replay, moment, notes_);
  note_peak_before(balance, moment);
  for (const LedgerSnapshot& wanted : wanted_) {
    if (wanted.snapshot != moment.id) continue;
    Image image{wanted, balance, HeapLedger(replay, notes_.arenas_at(process_, moment.end_ns))};
    if (balance.kernel.has_pages) image.heap.set_kernel_bytes(balance.kernel.resident);
    image.balance.kernel.resident = {};
    images_.push_back(std::move(image));
  }
  balance.kernel.resident.clear();
  balance.kernel.other.clear();
  balances_.push_back(std::move(balance));
}

// RSS between two snapshots: that of the first and what the replay saw come and go since. What it
// did not see (neighbouring pages of files, the loader's calls) is known by the second, and taken
// to have come evenly.
void LedgerPass::note_peak_before(const Balance& balance, const SnapshotMoment& moment) {
  const auto rss = static_cast<double>(static_cast<int64_t>(balance.kernel.rss_bytes) -
                                       balance.residual_bytes());
  const ResidencyPeak& peak = moment.before;
  const auto moved = [](uint64_t from, uint64_t to) {
    return static_cast<double>(to) - static_cast<double>(from);
  };
  const double by_this = rss + moved(moment.resident_bytes, peak.bytes);
  if (!last_ || last_->end_ns >= moment.end_ns) {
    note_peak(by_this, peak.at_ns);
  } else {
    const double by_last = last_->rss_bytes + moved(peak.bytes_at_first, peak.bytes);
    const double share = static_cast<double>(peak.at_ns - last_->end_ns) /
                         static_cast<double>(moment.end_ns - last_->end_ns);
    note_peak(by_last + (by_this - by_last) * std::clamp(share, 0.0, 1.0), peak.at_ns);
  }
  note_peak(rss, moment.end_ns);
  last_ = {moment.end_ns, rss};
}

void LedgerPass::note_peak(double rss_bytes, int64_t time_ns) {
  if (rss_bytes <= peak_bytes_) return;
  peak_bytes_ = rss_bytes;
  peak_ns_ = time_ns;
}

void LedgerPass::finish(const Replay& replay) {
  if (!last_) return;
  const ResidencyPeak& peak = replay.resident_peak();
  note_peak(last_->rss_bytes + static_cast<double>(peak.bytes - peak.bytes_at_first), peak.at_ns);
}

void LedgerPass::write(FidelityPass& models) {
  schema::Statement insert =
      db_.prepare("INSERT INTO balance VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
  for (const Balance& row : balances_) {
    insert.run_with(row.snapshot, process_, row.kernel.rss_bytes,
                    row.kernel.rss_bytes - row.kernel.heap_bytes, row.kernel.heap_bytes,
                    row.heap_bytes, row.heap_bytes_min, row.heap_bytes_max, row.residual_bytes(),
                    row.unfaulted_bytes, row.touched_absent_bytes, row.kernel.heap_swap_bytes,
                    row.kernel.heap_huge_bytes, row.kernel.heap_shared_bytes);
  }
  for (Image& image : images_) write_image(image, models.moment(process_, image.at.end_ns));
  if (peak_bytes_ == 0) return;
  db_.prepare("INSERT INTO ledger_moment VALUES (?, 'model peak', ?, ?, NULL, NULL)")
      .run_with(process_, peak_ns_, static_cast<int64_t>(peak_bytes_));
}

void LedgerPass::write_image(Image& image, const ModelMoment* model) {
  image.heap.classify(model == nullptr ? std::vector<FreePiece>() : model->free);
  schema::Statement line = db_.prepare("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?)");
  for (const RssLine& row : lines_of(image.heap)) {
    line.run_with(process_, image.at.at, image.at.snapshot, row.region, row.name, row.bytes,
                  "replay");
  }
  for (const RssLine& row : image.balance.kernel.other) {
    line.run_with(process_, image.at.at, image.at.snapshot, row.region, row.name, row.bytes,
                  "smaps");
  }
  schema::Statement region = db_.prepare("INSERT INTO ledger_region VALUES (?, ?, ?, ?, ?, ?)");
  for (const HeapPart& part : image.heap.parts()) {
    std::optional<uint64_t> kernel_bytes;
    if (image.balance.kernel.has_pages) kernel_bytes = part.kernel_bytes;
    region.run_with(process_, image.at.at, part.name, part.size_bytes, part.resident_bytes(),
                    kernel_bytes);
  }
  std::optional<uint64_t> glibc;
  if (model != nullptr) glibc = model->glibc_held_bytes;
  db_.prepare("INSERT INTO ledger_moment VALUES (?, ?, ?, ?, ?, ?)")
      .run_with(process_, image.at.at, image.at.end_ns, image.balance.kernel.rss_bytes,
                image.heap.held_bytes(), glibc);
}

std::vector<RssLine> lines_of(const HeapLedger& heap) {
  constexpr std::pair<const char*, uint64_t HeapPart::*> kLines[] = {
      {"requested by live blocks", &HeapPart::requested},
      {"headers and rounding", &HeapPart::overhead},
      {"the allocator's own", &HeapPart::own},
      {"free in thread caches", &HeapPart::in_cache},
      {"free in bins", &HeapPart::in_bins},
      {"free at the top", &HeapPart::in_top},
      {"free, kind not known", &HeapPart::free_unknown},
      {"never used", &HeapPart::never_used},
  };
  std::vector<const HeapPart*> parts;
  for (const HeapPart& part : heap.parts()) parts.push_back(&part);
  // The main heap first, arenas by number, mappings last: as their names are ordered, but for that.
  std::sort(parts.begin(), parts.end(), [](const HeapPart* a, const HeapPart* b) {
    const auto key = [](const HeapPart* part) {
      const bool is_arena = part->name.starts_with("arena");
      return std::tuple(is_arena                    ? 1
                        : part->name == "main heap" ? 0
                                                    : 2,
                        part->name.size(), part->name);
    };
    return key(a) < key(b);
  });
  std::vector<RssLine> lines;
  for (const HeapPart* at : parts) {
    const HeapPart& part = *at;
    for (const auto& [name, bytes] : kLines) {
      if (part.*bytes != 0) lines.push_back({part.name, name, part.*bytes});
    }
  }
  return lines;
}

}  // namespace heapledger::analyzer
