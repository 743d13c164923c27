// SPDX-License-Identifier: Apache-2.0
// The ledger's part of the final pass: the books at each snapshot, RSS line by line at the one with
// most RSS and at the last one, and the modelled peak between them.
//
// One object per process, fed by its replay. The lines wait until the models have said where the
// free chunks are.
// Thread safety: as its Database. Cost: sorts the live blocks at two snapshots, reads smaps' lines
// at each.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "analyzer/finalize/fidelity.h"
#include "analyzer/replay/heap_ledger.h"
#include "analyzer/replay/kernel_view.h"

namespace heapledger::analyzer {

// A snapshot that reports default to.
struct LedgerSnapshot {
  std::string at;  // peak | exit
  int64_t snapshot = 0;
  int64_t end_ns = 0;
};
// At most two, in order of time; both may be the same snapshot.
std::vector<LedgerSnapshot> ledger_snapshots(schema::Database& db, int64_t process);
// When the models must stop for them.
ModelTimes ledger_times(schema::Database& db, const TraceInfo& info);

// Replay and kernel at one snapshot.
struct Balance {
  int64_t snapshot = 0;
  KernelView kernel;
  uint64_t heap_bytes = 0, heap_bytes_min = 0, heap_bytes_max = 0;
  uint64_t unfaulted_bytes = 0, touched_absent_bytes = 0;

  // What the heap changed by while the snapshot was taken, as far as it explains the kernel's
  // figure, and what is left.
  int64_t moved_bytes() const;
  int64_t residual_bytes() const;
};
Balance balance_at(schema::Database& db, const Replay& replay, const SnapshotMoment& moment,
                   MapNotes& notes);

class LedgerPass {
 public:
  LedgerPass(schema::Database& db, MapNotes& notes, int64_t process);

  // ReplayOptions::on_snapshot.
  void on_snapshot(const Replay& replay, const SnapshotMoment& moment);
  // After the replay's end.
  void finish(const Replay& replay);
  // Writes the tables; the models' moments are known now.
  void write(FidelityPass& models);

 private:
  struct Image {
    LedgerSnapshot at;
    Balance balance;
    HeapLedger heap;
  };

  void note_peak_before(const Balance& balance, const SnapshotMoment& moment);
  void note_peak(double rss_bytes, int64_t time_ns);
  void write_image(Image& image, const ModelMoment* model);

  schema::Database& db_;
  MapNotes& notes_;
  int64_t process_;
  std::vector<LedgerSnapshot> wanted_;
  std::vector<Image> images_;
  std::vector<Balance> balances_;  // Without the kernel's lines.
  struct Known {
    int64_t end_ns;
    double rss_bytes;
  };
  std::optional<Known> last_;  // Snapshot.
  double peak_bytes_ = 0;
  int64_t peak_ns_ = 0;
};

// The lines of a part, as table `ledger` has them.
std::vector<RssLine> lines_of(const HeapLedger& heap);

}  // namespace heapledger::analyzer
