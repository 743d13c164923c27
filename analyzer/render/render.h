// SPDX-License-Identifier: Apache-2.0
// A Document as text for people, JSON for programs, CSV for spreadsheets.
//
// Text: numbers with units, aligned, at most kTextWidth columns; a row's stack stands below its
// numbers, innermost first, cut after kTextFrames. JSON: integers in bytes and nanoseconds, whole
// stacks. CSV (RFC 4180): every table with its header, an empty line between tables.
// Thread safety: pure.
#pragma once

#include <string>

#include "analyzer/reports/table.h"

namespace heapledger::analyzer {

inline constexpr size_t kTextWidth = 100;
inline constexpr size_t kTextFrames = 8;

std::string render_text(const Document& document);
std::string render_json(const Document& document);
std::string render_csv(const Document& document);

nlohmann::ordered_json table_json(const Table& table);
nlohmann::ordered_json stack_json(const StackText& stack);
std::string csv_field(const std::string& text);

}  // namespace heapledger::analyzer
