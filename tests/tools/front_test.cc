// SPDX-License-Identifier: Apache-2.0
// The parts of the front command that need no recording: sizes, where options end, what a program
// file is, and what runs that are counted tell.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>

#include "tools/heapledger/command_error.h"
#include "tools/heapledger/command_line.h"
#include "tools/heapledger/counted_run.h"
#include "tools/heapledger/narration.h"
#include "tools/heapledger/program_file.h"
#include "tools/heapledger/record_options.h"

namespace heapledger::front {
namespace {

TEST(ParseSize, ReadsSuffixesAndRefusesTheRest) {
  // Goal: a size is a number with at most one of K, M, G. Method: both sides of each rule.
  EXPECT_EQ(parse_size("0"), 0U);
  EXPECT_EQ(parse_size("131072"), 131072U);
  EXPECT_EQ(parse_size("128K"), 131072U);
  EXPECT_EQ(parse_size("32m"), 33554432U);
  EXPECT_EQ(parse_size("2G"), 2147483648U);
  EXPECT_EQ(parse_size("18446744073709551615"), UINT64_MAX);
  for (const char* text : {"", "K", "12X", "1KK", "-1", "+1", "1.5M", " 1", "1 ", "0x10",
                           "18446744073709551616", "18014398509481984K"}) {
    EXPECT_FALSE(parse_size(text)) << text;
  }
}

// Options and program of a `record` command line.
CommandLine split(const std::vector<std::string>& words) {
  CLI::App app;
  OptionValues given;
  add_record_options(app, given);
  return split_command(app, words);
}

using Words = std::vector<std::string>;

TEST(SplitCommand, EndsAtTheFirstWordThatIsNoOption) {
  // Goal: the program's own options are never ours. Method: the forms an option can have.
  EXPECT_EQ(split({"ls", "--quiet"}).program, (Words{"ls", "--quiet"}));
  EXPECT_EQ(split({"--quiet", "ls", "-o", "x"}).program, (Words{"ls", "-o", "x"}));
  EXPECT_EQ(split({"-o", "x", "ls"}).program, (Words{"ls"}));
  EXPECT_EQ(split({"--output=x", "ls"}).program, (Words{"ls"}));
  EXPECT_EQ(split({"-ox", "ls"}).program, (Words{"ls"}));
  EXPECT_EQ(split({"--top-pad", "1M", "--", "--odd-name"}).program, (Words{"--odd-name"}));
  EXPECT_EQ(split({"-", "a"}).program, (Words{"-", "a"}));
  EXPECT_TRUE(split({"--quiet"}).program.empty());
}

TEST(RecordOptions, HaveTheVariableOfTheirName) {
  // Goal: HEAPLEDGER_<OPTION> is the flag in upper case. Method: derive one from the other.
  for (const RecordOption& option : kRecordOptions) {
    const std::string flags = option.flags;
    std::string name = "HEAPLEDGER_" + flags.substr(flags.find("--") + 2);
    for (char& letter : name)
      letter = letter == '-' ? '_' : static_cast<char>(std::toupper(letter));
    EXPECT_EQ(name, option.variable);
  }
}

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(RecordOptions, StandInTheManualAndTheCompletion) {
  // Goal: a new option is documented. Method: every flag is looked up in both files.
  const std::filesystem::path tools = HEAPLEDGER_SOURCE_DIR "/tools";
  const std::string manual = text_of(tools / "man/heapledger-record.1");
  const std::string completion = text_of(tools / "completion/heapledger");
  ASSERT_FALSE(manual.empty());
  for (const RecordOption& option : kRecordOptions) {
    const std::string flags = option.flags;
    const std::string flag = flags.substr(flags.find("--"));
    std::string roff;
    for (const char letter : flag) roff += letter == '-' ? "\\-" : std::string(1, letter);
    EXPECT_NE(manual.find(roff), std::string::npos) << flag;
    EXPECT_NE(completion.find(flag), std::string::npos) << flag;
  }
}

TEST(FindProgram, EndsAsAShellWould) {
  // Goal: 127 for what is not there, 126 for what cannot be executed.
  const auto status_of = [](const std::string& name) {
    try {
      find_program(name);
      return 0;
    } catch (const CommandError& error) {
      return error.exit_status();
    }
  };
  EXPECT_EQ(status_of("sh"), 0);
  EXPECT_EQ(status_of("/bin/sh"), 0);
  EXPECT_EQ(status_of("no-such-program"), kNotFound);
  EXPECT_EQ(status_of("/no/such/program"), kNotFound);
  EXPECT_EQ(status_of(""), kNotFound);
  EXPECT_EQ(status_of("/etc/passwd"), kCannotExecute);
  EXPECT_EQ(status_of("/etc"), kCannotExecute);
}

// A file in the test's folder, written and made executable.
std::string executable(const std::string& name, const std::string& content) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path, std::ios::binary) << content;
  chmod(path.c_str(), 0755);
  return path;
}

TEST(RecordingObstacle, ReadsTheFileBehindAScript) {
  // Goal: a script stands for its interpreter, whatever the line looks like; loops end.
  EXPECT_FALSE(recording_obstacle("/bin/sh"));
  EXPECT_FALSE(recording_obstacle(executable("plain", "echo no interpreter line\n")));
  EXPECT_FALSE(recording_obstacle(executable("script", "#! /bin/sh -e\n")));
  EXPECT_FALSE(recording_obstacle(executable("loop", "#!" + testing::TempDir() + "loop\n")));
  std::string thirty_two_bit = text_of("/bin/sh").substr(0, 4096);
  thirty_two_bit[4] = 1;  // EI_CLASS: ELFCLASS32.
  const std::string interpreter = executable("interpreter32", thirty_two_bit);
  const auto obstacle = recording_obstacle(executable("script32", "#!" + interpreter + "\n"));
  ASSERT_TRUE(obstacle);
  EXPECT_EQ(obstacle->reason, "32-bit program");
}

TEST(RecordingObstacle, SurvivesAnyCutOfAnElfFile) {
  // Goal: a damaged file is left to exec to judge. Method: cut at every length of the headers.
  const std::string whole = text_of("/bin/sh").substr(0, 1024);
  for (size_t size = 0; size < whole.size(); ++size) {
    recording_obstacle(executable("cut", whole.substr(0, size)));
  }
}

TEST(Texts, ReadWell) {
  // Goal: numbers, sizes and words as people and shells read them.
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1234567), "1,234,567");
  EXPECT_EQ(bytes_text(1023), "1023 B");
  EXPECT_EQ(bytes_text(1536), "1.5 KiB");
  EXPECT_EQ(shell_word("trace.db"), "trace.db");
  EXPECT_EQ(shell_word("it's"), "'it'\\''s'");
  EXPECT_EQ(ending_text(3 << 8), "ended with status 3");
  EXPECT_EQ(ending_text(11), "was killed by SIGSEGV (Segmentation fault)");
}

TEST(CountedRun, SeesWhatWasGivenBackBeforeTheEnd) {
  // Goal: the peak of RSS is that before the memory goes, and neither ours nor that of what it
  // replaces. Method: dd fills a buffer of 64 MiB, which it frees; then a shell becomes a program
  // that needs little.
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  const std::string path = std::string("PATH=") + getenv("PATH");
  const auto filled =
      run_traced({"dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"}, {path});
  EXPECT_EQ(filled.status, 0);
  EXPECT_GE(filled.rss_peak_bytes, 64 * kMiB);
  EXPECT_LT(filled.rss_peak_bytes, 80 * kMiB);
  EXPECT_GT(filled.minor_faults, 10U);
  std::vector<char> ours(64 * kMiB, 1);
  const auto small = run_traced({"sh", "-c", "exec true"}, {path});
  EXPECT_EQ(small.status, 0);
  EXPECT_GT(small.rss_peak_bytes, 100U << 10);
  EXPECT_LT(small.rss_peak_bytes, 16 * kMiB);
  EXPECT_LT(small.minor_faults, 2000U);
  EXPECT_EQ(ours.back(), 1);
}

TEST(CountedRun, IsTheSameBesideTheProgramAndUnderPtrace) {
  // Goal: both ways count the same things: the first process with its loader, through exec, without
  // its children. Method: programs whose calls are the same in each run.
  const Words environment = {std::string("PATH=") + getenv("PATH")};
  const Words programs[] = {{"true"},
                            {"dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"},
                            {"sh", "-c", "ls / | sort; ls; exec true"}};
  for (const Words& program : programs) {
    std::string why;
    const auto beside = run_undisturbed(program, environment, why);
    if (!beside) GTEST_SKIP() << why;
    const auto traced = run_traced(program, environment);
    EXPECT_EQ(beside->status, 0);
    EXPECT_EQ(beside->calls, traced.calls) << program[0];
    EXPECT_GT(beside->total(), 5U);
    // wait() adds the faults of children that the program waited for.
    if (program[0] == "sh") continue;
    EXPECT_NEAR(static_cast<double>(beside->minor_faults), static_cast<double>(traced.minor_faults),
                0.2 * static_cast<double>(traced.minor_faults));
  }
  std::string why;
  const auto failing = run_undisturbed({"sh", "-c", "exit 3"}, environment, why);
  ASSERT_TRUE(failing);
  EXPECT_EQ(WEXITSTATUS(failing->status), 3);
}

}  // namespace
}  // namespace heapledger::front
