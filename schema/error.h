// SPDX-License-Identifier: Apache-2.0
// The one exception type of everything that may throw: the trace library, the collector's start,
// the analyzer.
//
// An error says what could not be done and why, in words that stand on one line after
// "heapledger: <command>: ". Whoever passes it on may add what it was doing:
//
//     throw Error("cannot open trace 'x.db'", "no such file");
//     catch (Error& error) { error.while_("reading batch 17"); throw; }
//
//     cannot open trace 'x.db': no such file (while reading batch 17)
//
// Only main() turns one into text and an exit status.
#pragma once

#include <exception>
#include <string>

namespace heapledger::schema {

class Error : public std::exception {
 public:
  Error(std::string what, std::string why) : what_(std::move(what)), why_(std::move(why)) {
    compose();
  }

  // Adds what was being done, innermost first. Give it what follows the word "while".
  // NOLINTNEXTLINE(readability-identifier-naming): the word itself is C++'s.
  Error& while_(const std::string& doing) {
    context_ += context_.empty() ? "while " + doing : ", while " + doing;
    compose();
    return *this;
  }

  const char* what() const noexcept override { return text_.c_str(); }
  const std::string& why() const noexcept { return why_; }

 private:
  void compose() {
    text_ = what_;
    if (!why_.empty()) text_ += ": " + why_;
    if (!context_.empty()) text_ += " (" + context_ + ")";
  }

  std::string what_;
  std::string why_;
  std::string context_;
  std::string text_;
};

}  // namespace heapledger::schema
