// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/stream_dump.h"

#include <cerrno>
#include <cstring>
#include <map>

#include "schema/error.h"

namespace heapledger::collector {
namespace {

constexpr uint64_t kDumpMagic = 0x31504d55444c4847;  // "GHLDUMP1" in memory.

enum class DumpKind : uint32_t { kImage = 1, kWindow = 2 };

struct DumpImage {
  RegionLayout layout;
  uint32_t image;
  pid_t pid;
  int64_t raw_ns;
  uint64_t exe_bytes;
};

struct DumpWindow {
  int64_t began_raw_ns;
  uint64_t pieces;
  uint64_t bytes;  // Of the rings.
  ClockPair pair;
  bool has_pair;
  bool whole;
};

struct DumpPiece {
  uint32_t image;
  uint32_t slot;
  uint64_t bytes;
};

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb")) {
    if (!file_) throw schema::Error(path, std::strerror(errno));
  }
  bool take_or_end(void* to, size_t bytes) {
    return std::fread(to, 1, bytes, file_.get()) == bytes;
  }
  void take(void* to, size_t bytes) {
    if (!take_or_end(to, bytes)) throw schema::Error(path_, "is no whole dump of this build");
  }
  template <typename T>
  T take() {
    T value;
    take(&value, sizeof value);
    return value;
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

using Regions = std::map<uint32_t, RegionPtr>;

Message load_image(Reader& reader, Regions& regions) {
  const auto image = reader.take<DumpImage>();
  auto region = std::make_shared<Region>(image.image, image.layout, RegionSettings{});
  schema::ProcessSlot& slot = region->process_slot(0);
  slot.pid = static_cast<uint32_t>(image.pid);
  slot.parent_slot = UINT32_MAX;
  slot.state.store(schema::ProcessState::kLive);
  region->control().process_slots_used.store(1);
  std::string exe(image.exe_bytes, '\0');
  reader.take(exe.data(), exe.size());
  regions[image.image] = region;
  return ImageJoined{region, image.pid,   static_cast<uint32_t>(image.pid), 0, exe,
                     exe,    image.raw_ns};
}

Window load_window(Reader& reader, const Regions& regions) {
  const auto head = reader.take<DumpWindow>();
  Window window;
  window.began_raw_ns = head.began_raw_ns;
  window.whole = head.whole;
  if (head.has_pair) window.pair = head.pair;
  size_t offset = 0;
  for (uint64_t i = 0; i < head.pieces; ++i) {
    const auto piece = reader.take<DumpPiece>();
    window.rings.push_back({regions.at(piece.image), piece.slot, false, offset, piece.bytes});
    offset += piece.bytes;
  }
  reader.take(window.raw.extend(head.bytes), head.bytes);
  return window;
}

}  // namespace

StreamDump::StreamDump(const std::string& path, const DumpBegin& begin)
    : file_(std::fopen(path.c_str(), "wb")) {
  if (!file_) throw schema::Error(path, std::strerror(errno));
  DumpBegin marked = begin;
  marked.magic = kDumpMagic;
  put(&marked, sizeof marked);
}

void StreamDump::put(const void* data, size_t bytes) { std::fwrite(data, 1, bytes, file_.get()); }

void StreamDump::add(const Message& message) {
  if (const auto* news = std::get_if<ImageJoined>(&message)) {
    const DumpKind kind = DumpKind::kImage;
    put(&kind, sizeof kind);
    const DumpImage image{news->region->layout(), news->region->image(), news->pid, news->raw_ns,
                          news->exe.size()};
    put(&image, sizeof image);
    put(news->exe.data(), news->exe.size());
  }
  const auto* window = std::get_if<Window>(&message);
  if (window == nullptr) return;
  const DumpKind kind = DumpKind::kWindow;
  put(&kind, sizeof kind);
  DumpWindow head{window->began_raw_ns,     window->rings.size(), 0, {},
                  window->pair.has_value(), window->whole};
  if (window->pair) head.pair = *window->pair;
  for (const RingPiece& piece : window->rings) head.bytes += piece.bytes;
  put(&head, sizeof head);
  for (const RingPiece& piece : window->rings) {
    const DumpPiece kept{piece.region->image(), piece.slot, piece.bytes};
    put(&kept, sizeof kept);
  }
  for (const RingPiece& piece : window->rings) put(window->raw.data() + piece.offset, piece.bytes);
}

LoadedDump load_dump(const std::string& path) {
  Reader reader(path);
  LoadedDump dump;
  dump.begin = reader.take<DumpBegin>();
  if (dump.begin.magic != kDumpMagic) throw schema::Error(path, "is no dump of a ring stream");
  Regions regions;
  DumpKind kind;
  while (reader.take_or_end(&kind, sizeof kind)) {
    if (kind == DumpKind::kImage) {
      dump.messages.push_back(load_image(reader, regions));
    } else {
      Window window = load_window(reader, regions);
      dump.ring_bytes += window.raw.size();
      dump.messages.push_back(std::move(window));
    }
  }
  return dump;
}

}  // namespace heapledger::collector
