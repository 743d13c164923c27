// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/doctor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/heapledger/command_line.h"
#include "tools/heapledger/doctor_checks.h"

namespace heapledger::front {

namespace {

const char* state_text(CheckState state) {
  switch (state) {
    case CheckState::kOk:
      return "ok";
    case CheckState::kLimited:
      return "limited";
    case CheckState::kNo:
      return "no";
  }
  return "";
}

void print_json(const std::vector<Check>& checks, bool recording) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Check& check : checks) {
    rows.push_back(
        {{"name", check.name},
         {"state", state_text(check.state)},
         {"detail", check.detail},
         {"command", check.command.empty() ? nlohmann::json() : nlohmann::json(check.command)}});
  }
  fmt::print("{}\n", nlohmann::json{{"recording", recording}, {"checks", rows}}.dump(2));
}

void print_text(const std::vector<Check>& checks, bool recording) {
  for (const Check& check : checks) {
    fmt::print("{:<16} {:<8} {}\n", check.name, state_text(check.state), check.detail);
    if (!check.command.empty()) fmt::print("{:<16} {:<8}   more: {}\n", "", "", check.command);
  }
  fmt::print("\n{}\n", recording ? "Recording works here." : "Recording does not work here.");
}

}  // namespace

int run_doctor(const std::vector<std::string>& arguments) {
  CLI::App app("What this machine allows, and how to allow more.", "heapledger doctor");
  bool json = false;
  app.add_flag("--json", json, "for programs");
  if (!parse_options(app, arguments)) return 0;
  const std::vector<Check> checks = run_checks();
  bool recording = false;
  for (const Check& check : checks) {
    if (check.name == "recording") recording = check.state != CheckState::kNo;
  }
  json ? print_json(checks, recording) : print_text(checks, recording);
  return recording ? 0 : 1;
}

}  // namespace heapledger::front
