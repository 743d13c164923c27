// SPDX-License-Identifier: Apache-2.0
// A pprof profile (github.com/google/pprof, proto/profile.proto), as plain protobuf: pprof takes it
// with or without gzip. Locations are our frames; inlined calls are lines of one location.
#include <map>
#include <string_view>
#include <tuple>

#include "analyzer/export/export.h"

namespace heapledger::analyzer {

namespace {

// The wire format: a varint of (field << 3 | type), then a varint (type 0) or a length and bytes
// (type 2).
class Message {
 public:
  void add(uint64_t field, uint64_t value) {
    varint(field << 3);
    varint(value);
  }
  void add(uint64_t field, std::string_view bytes) {
    varint(field << 3 | 2);
    varint(bytes.size());
    text_ += bytes;
  }
  void add(uint64_t field, const Message& message) { add(field, std::string_view(message.text_)); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += static_cast<char>(value | 0x80);
    text_ += static_cast<char>(value);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// Field numbers of profile.proto.
namespace profile {
constexpr uint64_t kSampleType = 1, kSample = 2, kLocation = 4, kFunction = 5, kStrings = 6,
                   kDefaultSampleType = 14;
}
namespace value_type {
constexpr uint64_t kType = 1, kUnit = 2;
}
namespace sample {
constexpr uint64_t kLocations = 1, kValues = 2;
}
namespace location {
constexpr uint64_t kId = 1, kAddress = 3, kLine = 4;
}
namespace line {
constexpr uint64_t kFunction = 1, kLine = 2;
}
namespace function {
constexpr uint64_t kId = 1, kName = 2, kSystemName = 3, kFile = 4;
}

class Profile {
 public:
  Profile() { string(""); }  // String 0 is empty.

  std::string build(const ReportInput& input) {
    for (const ExportValue& value : kExportValues) {
      Message type;
      type.add(value_type::kType, string(value.type));
      type.add(value_type::kUnit, string(value.unit));
      out_.add(profile::kSampleType, type);
    }
    for (const ExportSample& row : export_samples(input)) add_sample(row);
    out_.add(profile::kDefaultSampleType, string("peak_space"));
    for (const std::string& text : in_order_) out_.add(profile::kStrings, std::string_view(text));
    return out_.text();
  }

 private:
  uint64_t string(const std::string& text) {
    const auto [found, fresh] = strings_.try_emplace(text, strings_.size());
    if (fresh) in_order_.push_back(text);
    return found->second;
  }

  void add_sample(const ExportSample& row) {
    Message ids;
    for (const FrameText& frame : row.stack) {
      ids.varint(location_of(frame));
    }
    Message values;
    for (const int64_t value : row.values) values.varint(static_cast<uint64_t>(value));
    Message message;
    message.add(sample::kLocations, ids);
    message.add(sample::kValues, values);
    out_.add(profile::kSample, message);
  }

  uint64_t location_of(const FrameText& frame) {
    const auto [found, fresh] =
        locations_.try_emplace({frame.function, frame.file, frame.line, frame.module, frame.offset},
                               locations_.size() + 1);
    if (!fresh) return found->second;
    Message source;
    source.add(line::kFunction, function_of(frame));
    source.add(line::kLine, static_cast<uint64_t>(frame.line));
    Message message;
    message.add(location::kId, found->second);
    message.add(location::kAddress, frame.offset);
    message.add(location::kLine, source);
    out_.add(profile::kLocation, message);
    return found->second;
  }

  uint64_t function_of(const FrameText& frame) {
    std::string name = frame.function.empty() ? frame_label(frame, false) : frame.function;
    const auto [found, fresh] = functions_.try_emplace({name, frame.file}, functions_.size() + 1);
    if (!fresh) return found->second;
    Message message;
    message.add(function::kId, found->second);
    message.add(function::kName, string(name));
    message.add(function::kSystemName, string(name));
    message.add(function::kFile, string(frame.file));
    out_.add(profile::kFunction, message);
    return found->second;
  }

  Message out_;
  std::map<std::string, uint64_t> strings_;
  std::vector<std::string> in_order_;
  std::map<std::tuple<std::string, std::string, int64_t, std::string, uint64_t>, uint64_t>
      locations_;
  std::map<std::pair<std::string, std::string>, uint64_t> functions_;
};

}  // namespace

std::string export_pprof(const ReportInput& input) { return Profile().build(input); }

}  // namespace heapledger::analyzer
