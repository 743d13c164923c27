// SPDX-License-Identifier: Apache-2.0
// The accounts of many allocating stacks, packed: what the blobs in site_batch.data hold.
//
// A compiler allocates from tens of thousands of stacks, most of them used once or twice. As rows
// of table `site` they would take more room than the events themselves; packed each takes some six
// bytes. Where a trace has few sites the final pass makes rows of `site` of them (unpack_sites), so
// that any sqlite3 reads them; else `site` is a virtual table (schema/event_vtab.h).
//
// A batch is of one process, its rows in ascending order of stack; README.md, "Site batches", has
// the layout.
// Invariants. 1. decode_sites(encode_sites(rows)) == rows. 2. Any bytes may be decoded: the result
// is rows in ascending order of stack, or an Error.
// Thread safety: none needed; no state.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace heapledger::schema {

class Database;

inline constexpr size_t kBatchSites = 16384;          // What a writer should put into a batch.
inline constexpr uint32_t kBatchSitesMax = 1u << 20;  // What a reader accepts.

// The columns of table `site` after `process`, in its order.
enum SiteColumn : size_t {
  kSiteStack,
  kSiteCalls,
  kSiteBytes,
  kSiteLiveBytesPeak,
  kSiteLiveBlocksPeak,
  kSiteLiveBytesEnd,
  kSiteLiveBlocksEnd,
  kSiteInheritedBytesEnd,
  kSiteInheritedBlocksEnd,
  kSiteTemporary,
  kSiteFaults,
  kSiteSyscalls,
  kSiteSyscallNs,
  kSiteCallsWithSyscall,
  kSiteMappedBlocks,
  kSiteMappedNs,
  kSiteGrowth,
  kSiteFirstNs,
  kSiteLastNs,
  kSiteColumns,
};

using SiteRow = std::array<int64_t, kSiteColumns>;

// Throws Error where stacks do not ascend.
std::vector<uint8_t> encode_sites(std::span<const SiteRow> rows);
std::vector<SiteRow> decode_sites(std::span<const uint8_t> blob);

// Writes a process's rows to site_batch, in the caller's transaction.
void write_sites(Database& db, int64_t process, std::span<const SiteRow> rows);

// More rows than this stay packed: an ordinary table would be a good part of the trace.
inline constexpr int64_t kPlainSitesMax = 16384;
// The final pass's last word on sites: moves what is in site_batch to `site` where it is little;
// else there is no table `site`, so that the virtual one shows. In the caller's transaction.
void unpack_sites(Database& db, int64_t plain_max = kPlainSitesMax);

}  // namespace heapledger::schema
