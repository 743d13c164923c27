// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "tools/heapledger/command_error.h"

namespace heapledger::front {

namespace {

class UsageFormatter : public CLI::Formatter {
 public:
  explicit UsageFormatter(std::string text) : text_(std::move(text)) {}
  std::string make_usage(const CLI::App*, std::string) const override { return text_ + "\n"; }

 private:
  std::string text_;
};

}  // namespace

void set_usage(CLI::App& app, const std::string& text) {
  app.formatter(std::make_shared<UsageFormatter>(text));
}

CommandLine split_command(const CLI::App& app, const std::vector<std::string>& arguments) {
  CommandLine result;
  auto word = arguments.begin();
  for (; word != arguments.end(); ++word) {
    if (word->size() < 2 || (*word)[0] != '-') break;
    if (*word == "--") {
      result.separated = true;
      ++word;
      break;
    }
    result.options.push_back(*word);
    const CLI::Option* option = app.get_option_no_throw(*word);  // Null for "--flag=value" too.
    const bool takes_value = option != nullptr && option->get_items_expected_max() > 0;
    if (takes_value && word + 1 != arguments.end()) result.options.push_back(*++word);
  }
  result.program.assign(word, arguments.end());
  return result;
}

bool parse_options(CLI::App& app, const std::vector<std::string>& options) {
  try {
    app.parse(
        std::vector<std::string>(options.rbegin(), options.rend()));  // It wants them reversed.
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    return false;
  } catch (const CLI::ExtrasError&) {
    const auto extras = app.remaining();
    throw CommandError(extras.empty() ? "option" : extras.front(), "no such option; try --help",
                       kUsage);
  } catch (const CLI::ArgumentMismatch& error) {
    throw CommandError(options.empty() ? "option" : options.back(), "needs a value", kUsage);
  } catch (const CLI::ParseError& error) {
    throw CommandError(error.what(), "", kUsage);
  }
  return true;
}

}  // namespace heapledger::front
