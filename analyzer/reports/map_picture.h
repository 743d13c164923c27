// SPDX-License-Identifier: Apache-2.0
// The heap map as lines of text: time downwards, addresses across, a character for what most of the
// bytes there are. Stretches of addresses that were never the allocator's are left out.
// Thread safety: plain values.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "analyzer/replay/heap_map.h"
#include "analyzer/reports/report.h"

namespace heapledger::analyzer {

// `fragmentation --map`: the picture above what the report says, and its cells for programs, under
// the key `map`.
void add_heap_map(const ReportInput& input, Document& document);

// Lines of no more than kTextWidth characters; none where the map has no cell.
std::vector<std::string> draw_heap_map(const HeapMap& map);

// One character's cells together: live share as a digit, '#' all live, '-' all free, 't' top, '.'
// untouched, 'x' released, ' ' nothing.
char map_character(const MapCell& cell);

}  // namespace heapledger::analyzer
