// SPDX-License-Identifier: Apache-2.0
// One fault each: planted leak|pin|churn|refault|waste|spread|well. `well` has none.
#include <malloc.h>
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

using Blocks = std::vector<char*>;

void drop(Blocks& blocks) {
  for (char* block : blocks) std::free(block);
  blocks.clear();
}

// leak: a session's log is never given back.
[[gnu::noinline]] void open_session() {
  char* log = static_cast<char*>(std::malloc(700));
  std::memset(log, 1, 700);
}
[[gnu::noinline]] char* read_request() { return static_cast<char*>(std::malloc(300)); }
void leak() {
  for (int i = 0; i < 6000; ++i) {
    open_session();
    Blocks requests;
    for (int j = 0; j < 20; ++j) requests.push_back(read_request());
    drop(requests);
  }
}

// pin: an index entry made last lies above a table that goes.
[[gnu::noinline]] char* add_index_entry() { return static_cast<char*>(std::malloc(1500)); }
[[gnu::noinline]] char* read_row(size_t size) {
  char* row = static_cast<char*>(std::malloc(size));
  std::memset(row, 1, size);
  return row;
}
void pin() {
  Blocks table;
  table.reserve(900);  // No holes below for the entry.
  for (int i = 0; i < 900; ++i) table.push_back(read_row(60'000));
  char* entry = add_index_entry();
  drop(table);
  entry[0] = 'y';
}

// churn: each tile is a mapping of its own.
[[gnu::noinline]] void render_tile() {
  char* tile = static_cast<char*>(std::malloc(300'000));
  std::memset(tile, 1, 300'000);
  std::free(tile);
}
void churn() {
  mallopt(M_MMAP_THRESHOLD, 128 * 1024);
  for (int i = 0; i < 3000; ++i) render_tile();
}

// refault: the heap's end goes back after every frame and is touched again in the next.
[[gnu::noinline]] char* draw_layer() {
  char* layer = static_cast<char*>(std::malloc(50'000));
  std::memset(layer, 1, 50'000);
  return layer;
}
void draw_frame() {
  Blocks layers;
  for (int i = 0; i < 160; ++i) layers.push_back(draw_layer());
  drop(layers);
}
void refault() {
  mallopt(M_TRIM_THRESHOLD, 64 * 1024);
  mallopt(M_TOP_PAD, 0);
  for (int i = 0; i < 60; ++i) draw_frame();
}

// waste: a byte for each tag.
[[gnu::noinline]] char* make_tag() { return static_cast<char*>(std::malloc(1)); }
void waste() {
  Blocks tags;
  tags.reserve(400'000);
  for (int i = 0; i < 400'000; ++i) tags.push_back(make_tag());
  drop(tags);
}

// spread: four threads send messages from arenas of their own, the main thread frees them; one of
// each arena stays and keeps its end.
constexpr int kSenders = 4;
constexpr int kMessages = 2000;
Blocks sent[kSenders];
pthread_barrier_t all_sent, all_read;

[[gnu::noinline]] char* send_message() {
  char* message = static_cast<char*>(std::malloc(3000));
  std::memset(message, 1, 3000);
  return message;
}
void* run_sender(void* messages) {
  for (char*& message : *static_cast<Blocks*>(messages)) message = send_message();
  pthread_barrier_wait(&all_sent);
  pthread_barrier_wait(&all_read);
  return nullptr;
}
void spread() {
  mallopt(M_ARENA_MAX, kSenders + 1);
  pthread_barrier_init(&all_sent, nullptr, kSenders + 1);
  pthread_barrier_init(&all_read, nullptr, kSenders + 1);
  pthread_t threads[kSenders];
  for (int i = 0; i < kSenders; ++i) {
    sent[i].resize(kMessages);
    if (pthread_create(&threads[i], nullptr, run_sender, &sent[i]) != 0) std::abort();
  }
  pthread_barrier_wait(&all_sent);
  for (Blocks& messages : sent) {
    for (int i = 0; i + 1 < kMessages; ++i) std::free(messages[static_cast<size_t>(i)]);
  }
  pthread_barrier_wait(&all_read);
  for (const pthread_t thread : threads) pthread_join(thread, nullptr);
}

void well() {
  Blocks rows;
  for (int i = 0; i < 2000; ++i) rows.push_back(read_row(4000));
  drop(rows);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "";
  if (fault == "leak") leak();
  if (fault == "pin") pin();
  if (fault == "churn") churn();
  if (fault == "refault") refault();
  if (fault == "waste") waste();
  if (fault == "spread") spread();
  if (fault == "well") well();
}
