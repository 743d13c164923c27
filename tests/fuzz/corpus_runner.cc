// SPDX-License-Identifier: Apache-2.0
// Runs a fuzz target over the files of a directory: what a compiler without libFuzzer can do, and
// what keeps every input that once crashed from crashing again.
//     event_batch_corpus tests/fuzz/corpus/event_batch
// With a time it goes on with changed and new inputs, as libFuzzer would without its measure of
// what is new; under a sanitizer, by hand. The input that was under way is left in FOUND.
//     trace_corpus tests/fuzz/corpus/trace --seconds 600 --seed 1 --found /tmp/found
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

constexpr unsigned kHangSeconds = 120;  // SIGALRM ends the run.
constexpr size_t kNewBytesMax = 200;

struct Options {
  std::vector<std::string> folders;
  double seconds = 0;
  unsigned seed = 1;
  std::string found;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool has_value = i + 1 < argc;
    if (word == "--seconds" && has_value) {
      options.seconds = std::atof(argv[++i]);
    } else if (word == "--seed" && has_value) {
      options.seed = static_cast<unsigned>(std::atoi(argv[++i]));
    } else if (word == "--found" && has_value) {
      options.found = argv[++i];
    } else {
      options.folders.push_back(word);
    }
  }
  return options;
}

void run(const Input& input) {
  alarm(kHangSeconds);
  LLVMFuzzerTestOneInput(input.data(), input.size());
  alarm(0);
}

// An input of the corpus with some bytes changed, or one of new bytes.
Input next_input(const std::vector<Input>& corpus, std::minstd_rand& random) {
  Input input;
  if (!corpus.empty() && random() % 4 == 0) input = corpus[random() % corpus.size()];
  if (input.empty()) {
    input.resize(1 + random() % kNewBytesMax);
    for (uint8_t& byte : input) byte = static_cast<uint8_t>(random() >> 8);
  }
  for (unsigned changes = random() % 4; changes > 0; --changes) {
    input[random() % input.size()] = static_cast<uint8_t>(random() >> 8);
  }
  if (random() % 8 == 0) input.resize(random() % (input.size() + 1));
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  std::vector<Input> corpus;
  for (const std::string& folder : options.folders) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      std::ifstream file(entry.path(), std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
      corpus.emplace_back(bytes.begin(), bytes.end());
      std::fprintf(stderr, "%s\n", entry.path().c_str());
      run(corpus.back());
    }
  }
  std::printf("%zu files\n", corpus.size());
  std::minstd_rand random(options.seed);
  const auto until =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(options.seconds);
  size_t rounds = 0;
  for (; std::chrono::steady_clock::now() < until; ++rounds) {
    const Input input = next_input(corpus, random);
    if (!options.found.empty()) {
      std::ofstream file(options.found, std::ios::binary | std::ios::trunc);
      file.write(reinterpret_cast<const char*>(input.data()),
                 static_cast<std::streamsize>(input.size()));
    }
    run(input);
  }
  if (options.seconds > 0) std::printf("%zu inputs, seed %u\n", rounds, options.seed);
  return corpus.empty() ? 1 : 0;  // An empty corpus tests nothing.
}
