// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/wire_reader.h"

namespace heapledger::collector {
namespace {

using schema::EventHead;
using schema::EventKind;

// Bytes of the fixed part by kind number; 0: unknown.
constexpr std::array<uint16_t, 256> fixed_parts() {
  std::array<uint16_t, 256> bytes{};
  for (const schema::EventKindRow& row : schema::kEventKinds) {
    bytes[static_cast<size_t>(row.kind)] = row.bytes;
  }
  return bytes;
}
constexpr std::array<uint16_t, 256> kFixedParts = fixed_parts();

uint64_t text_bytes_of(const WireEvent& event) {
  switch (event.head.kind) {
    case EventKind::kModuleLoad:
    case EventKind::kModuleUnload:
      return event.as<schema::ModuleEvent>().text_bytes;
    case EventKind::kMark:
    case EventKind::kNote:
      return event.as<schema::TextEvent>().text_bytes;
    case EventKind::kExec:
    case EventKind::kExecFailed:
      return event.as<schema::ExecEvent>().text_bytes;
    default:
      return 0;
  }
}

}  // namespace

bool WireReader::next(WireEvent& event) {
  while (position_ + 8 <= piece_.size()) {
    const std::byte* at = piece_.data() + position_;
    const size_t left = piece_.size() - position_;
    // The first word has kind, flags and lengths; a pad may consist of nothing else.
    std::memcpy(&event.head, at, 8);
    const size_t bytes = size_t{event.head.words} * 8;
    if (bytes == 0 || bytes > left) break;
    position_ += bytes;
    if (event.head.kind == EventKind::kPad) continue;
    if (bytes < sizeof(EventHead)) {
      ++damaged_;
      continue;
    }
    const size_t fixed = kFixedParts[static_cast<size_t>(event.head.kind)];
    if (fixed == 0) {
      ++unknown_;
      continue;
    }
    std::memcpy(&event.head, at, sizeof event.head);
    event.at = at;
    if (!split(bytes, fixed, event)) {
      ++damaged_;
      continue;
    }
    ++events_;
    return true;
  }
  if (position_ < piece_.size()) ++damaged_;
  position_ = piece_.size();
  return false;
}

bool WireReader::split(size_t bytes, size_t fixed, WireEvent& event) {
  size_t at = fixed;
  if (at > bytes) return false;
  const auto take_word = [&](schema::EventFlags flag) {
    uint64_t word = 0;
    if (!event.has(flag)) return word;
    if (at + 8 <= bytes) std::memcpy(&word, event.at + at, 8);
    at += 8;
    return word;
  };
  event.usable = take_word(schema::kHasUsable);
  event.alignment = take_word(schema::kHasAlignment);
  event.text = {};
  if (event.head.kind >= EventKind::kCallKindEnd) {
    const uint64_t text = text_bytes_of(event);
    if (at > bytes || text > bytes - at) return false;
    event.text = {reinterpret_cast<const char*>(event.at + at), text};
    at += schema::text_words(text) * 8;
  }
  if (!event.has(schema::kHasStack)) {
    event.head.fresh = 0;
    event.head.keep = 0;
  }
  event.fresh = event.at + at;
  return at + size_t{event.head.fresh} * 8 <= bytes;
}

}  // namespace heapledger::collector
