// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/heap/differential/comparison.h"

#include <fmt/format.h>
#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "interposer/heap/allocator_impl.h"
#include "tests/interposer/heap/differential/scripted_os.h"

namespace heapledger::heap::differential {

namespace {

using Model = Allocator<Glibc, ScriptedOs>;

// ---- A model that ends by abort() or a bad access is a divergence like any other.

sigjmp_buf g_model_died;

void on_death(int number) { siglongjmp(g_model_died, number); }

class DeathWatch {
 public:
  DeathWatch() {
    struct sigaction action = {};
    action.sa_handler = on_death;
    for (size_t i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &old_[i]);
  }
  ~DeathWatch() {
    for (size_t i = 0; i < 3; ++i) sigaction(kSignals[i], &old_[i], nullptr);
  }
  DeathWatch(const DeathWatch&) = delete;
  DeathWatch& operator=(const DeathWatch&) = delete;

 private:
  static constexpr int kSignals[3] = {SIGABRT, SIGSEGV, SIGBUS};
  struct sigaction old_[3] = {};
};

// ---- Contents: each block's ends carry its slot's number; small blocks are filled.

constexpr size_t kFilledWhole = 2048;
constexpr size_t kEndBytes = 32;

struct Block {
  unsigned char* data = nullptr;
  size_t usable = 0;

  void fill(unsigned char value) const {
    if (usable <= kFilledWhole) {
      std::memset(data, value, usable);
      return;
    }
    std::memset(data, value, kEndBytes);
    std::memset(data + usable - kEndBytes, value, kEndBytes);
  }
  bool holds(unsigned char value, size_t bytes) const {
    const auto differs = [value](unsigned char byte) { return byte != value; };
    const size_t front = std::min(bytes, usable <= kFilledWhole ? usable : kEndBytes);
    if (std::any_of(data, data + front, differs)) return false;
    if (bytes < usable || usable <= kFilledWhole) return true;
    return std::none_of(data + usable - kEndBytes, data + usable, differs);
  }
};

class Comparison {
 public:
  Comparison(const Sequence& sequence, const Recording& recording)
      : sequence_(sequence),
        recording_(recording),
        script_(recording.calls, settings_of(sequence)),
        model_(std::make_unique<Model>(ScriptedOs{&script_})),
        slots_(sequence.slot_count) {}

  // Throws Mismatch.
  void run() {
    for (at = 0; at < recording_.ops_done; ++at) {
      script_.begin_op(static_cast<int64_t>(at));
      const Op& op = sequence_.ops[at];
      thread_ =
          &threads_[op.thread < kThreadsMax && threads_[op.thread].alive ? op.thread : 0].state;
      if (op.kind >= kOpTrim) {
        run_other(op, recording_.results[at]);
      } else {
        run_call(op, recording_.results[at]);
      }
      script_.end_op();
    }
    const char* why = nullptr;
    if (!model_->arena_is_valid(&threads_[0].state, &why)) {
      throw Mismatch(fmt::format("the arena is not valid: {}", why));
    }
  }

  size_t at = 0;

 private:
  static Settings settings_of(const Sequence& sequence) {
    std::vector<const char*> entries;
    for (const std::string& entry : sequence.environment) entries.push_back(entry.c_str());
    entries.push_back(nullptr);
    Settings settings = default_settings(sequence.glibc_version);
    apply_environment(&settings, entries.data());
    return settings;
  }

  static unsigned char mark_of(uint32_t slot) {
    return static_cast<unsigned char>(slot * 37 + 0x11);
  }

  void run_call(const Op& op, const OpResult& expected);
  void* make_call(const Op& op, void* old, int* error);
  void* align(const Op& op, int* error);
  void run_other(const Op& op, const OpResult& expected);
  void start_thread(uint64_t number);
  void end_thread(uint64_t number);
  void go_on_in_child();
  void compare_info(const std::vector<uint64_t>& expected);
  void check_contents(const Op& op, const Block& old, size_t kept) const;
  static void check_zero(const void* block, size_t bytes);

  const Sequence& sequence_;
  const Recording& recording_;
  Script script_;
  std::unique_ptr<Model> model_;
  struct ModelThread {
    Thread<Glibc> state;
    void* dtv = nullptr;  // What pthread_create allocates in its caller for the new thread.
    bool alive = false;
  };
  ModelThread threads_[kThreadsMax];
  Thread<Glibc>* thread_ = &threads_[0].state;  // Who makes the present call.
  std::vector<Block> slots_;
};

// The argument checks are the exported functions' in the shim (entry.cc): the allocator knows
// memalign alone.
void* Comparison::align(const Op& op, int* error) {
  const bool is_posix = op.kind == kOpPosixMemalign;
  if (is_posix && (op.b % 8 != 0 || op.b == 0 || (op.b & (op.b - 1)) != 0)) {
    *error = EINVAL;
    return nullptr;
  }
  const size_t alignment = op.kind == kOpValloc ? base::kPageBytes : op.b;
  const bool is_power_of_two = op.b != 0 && (op.b & (op.b - 1)) == 0;
  if (op.kind == kOpAlignedAlloc && !is_power_of_two &&
      model_->rules().aligned_needs_power_of_two) {
    *error = EINVAL;
    return nullptr;
  }
  void* block = model_->allocate_aligned(*thread_, alignment, op.a);
  *error = is_posix ? (block == nullptr ? ENOMEM : 0) : errno;
  return block;
}

void* Comparison::make_call(const Op& op, void* old, int* error) {
  errno = kErrnoBefore;
  void* block = nullptr;
  switch (op.kind) {
    case kOpMalloc:
      block = model_->allocate(*thread_, op.a);
      break;
    case kOpCalloc:
      block = model_->allocate_zeroed(*thread_, op.a, op.b);
      break;
    case kOpRealloc:
      block = model_->reallocate(*thread_, old, op.a);
      break;
    case kOpFree:
      model_->release(*thread_, old);
      break;
    default:
      return align(op, error);
  }
  *error = errno;
  return block;
}

void Comparison::check_zero(const void* block, size_t bytes) {
  const auto* data = static_cast<const unsigned char*>(block);
  // Large blocks by samples: a page that was not cleared is dirty in its first bytes (see fill) or
  // not at all.
  const size_t step = bytes <= 65536 ? 1 : 61;
  for (size_t i = 0; i < bytes; i += step) {
    if (data[i] != 0) throw Mismatch(fmt::format("calloc returns a dirty byte at {}", i));
  }
}

void Comparison::check_contents(const Op& op, const Block& old, size_t kept) const {
  if (!old.holds(mark_of(op.slot), kept)) {
    throw Mismatch(fmt::format("the contents of slot {} have changed", op.slot));
  }
}

void Comparison::run_call(const Op& op, const OpResult& expected) {
  Block& slot = slots_[op.slot];
  const Block old = slot;
  const bool takes_old = op.kind == kOpFree || op.kind == kOpRealloc;
  if (takes_old && old.data != nullptr) check_contents(op, old, old.usable);
  int error = 0;
  void* block = make_call(op, takes_old ? old.data : nullptr, &error);
  if (base::address_of(block) != expected.value) {
    throw Mismatch(fmt::format("the model returns {}, glibc {:#x}", block, expected.value));
  }
  const bool failed = block == nullptr;
  // 2.43's free leaves ENOMEM where there is no memory for the thread's cache; ours keeps errno.
  const int wanted = op.kind == kOpFree ? kErrnoBefore : expected.error;
  if ((failed || op.kind == kOpPosixMemalign) && error != wanted) {
    throw Mismatch(fmt::format("the model leaves errno {}, glibc {}", error, wanted));
  }
  const size_t usable = Model::usable_size(block);
  if (usable != expected.usable) {
    throw Mismatch(fmt::format("usable size: the model has {}, glibc {}", usable, expected.usable));
  }
  if (op.kind == kOpRealloc && failed && op.a != 0) return;  // The old block lives on.
  slot = {static_cast<unsigned char*>(block), usable};
  if (failed) return;
  if (op.kind == kOpCalloc) check_zero(block, op.a * op.b);
  if (op.kind == kOpRealloc && old.data != nullptr) {
    // What lay at the front of the old block is at the front of the new one.
    const size_t kept = std::min({old.usable, op.a, kEndBytes});
    check_contents(op, slot, kept);
  }
  slot.fill(mark_of(op.slot));
}

void Comparison::run_other(const Op& op, const OpResult& expected) {
  uint64_t value = expected.value;
  switch (op.kind) {
    case kOpTrim:
      value = model_->trim(op.a) ? 1 : 0;
      break;
    case kOpMallopt:
      value = model_->set_option(static_cast<int>(op.a), static_cast<int>(op.b)) ? 1 : 0;
      break;
    case kOpInfo:
      compare_info(recording_.infos[op.a]);
      break;
    case kOpThreadStart:
      start_thread(op.a);
      break;
    case kOpThreadEnd:
      end_thread(op.a);
      break;
    case kOpFork:
      go_on_in_child();
      break;
    default:
      if (const uintptr_t now = script_.skip_foreign_op()) model_->note_break(now);
  }
  if (value != expected.value) {
    throw Mismatch(fmt::format("the model returns {}, glibc {}", value, expected.value));
  }
}

// With a stack of the caller's, pthread_create allocates one thing: the table of the new thread's
// TLS blocks, 14 more than there are modules with TLS (here libc alone), and two words.
void Comparison::start_thread(uint64_t number) {
  if (number == 0 || number >= kThreadsMax || threads_[number].alive) return;
  script_.has_threads = true;
  ModelThread& thread = threads_[number];
  thread.dtv = model_->allocate_zeroed(*thread_, 1 + 14 + 2, 16);
  thread.state = {};
  thread.alive = true;
}

void Comparison::end_thread(uint64_t number) {
  if (number >= kThreadsMax || !threads_[number].alive) return;
  ModelThread& thread = threads_[number];
  model_->thread_exit(thread.state);
  thread.alive = false;
  model_->release(*thread_, thread.dtv);
}

// Only the calling thread is there, but libc does not count itself single-threaded again. What the
// others allocated stays.
void Comparison::go_on_in_child() {
  model_->fork_prepare(*thread_);
  model_->fork_child(*thread_);
  for (size_t i = 1; i < kThreadsMax; ++i) threads_[i].alive = false;
}

void Comparison::compare_info(const std::vector<uint64_t>& expected) {
  static constexpr const char* kNames[kInfoWords] = {"arena",    "ordblks", "smblks",  "hblks",
                                                     "hblkhd",   "usmblks", "fsmblks", "uordblks",
                                                     "fordblks", "keepcost"};
  const Info info = model_->info();
  const uint64_t ours[kInfoWords] = {info.system_bytes, info.free_chunks,
                                     info.fast_chunks,  info.mapped_count,
                                     info.mapped_bytes, 0,
                                     info.fast_bytes,   info.system_bytes - info.free_bytes,
                                     info.free_bytes,   info.top_bytes};
  for (size_t i = 0; i < kInfoWords; ++i) {
    if (ours[i] == expected[i]) continue;
    throw Mismatch(
        fmt::format("mallinfo2().{}: the model has {}, glibc {}", kNames[i], ours[i], expected[i]));
  }
}

}  // namespace

std::optional<Divergence> compare(const Sequence& sequence, const Recording& recording) {
  const DeathWatch watch;
  const auto comparison = std::make_unique<Comparison>(sequence, recording);
  // The allocator's frames that a death leaves have no destructors that matter: the model is given
  // up with its locks.
  const int number = sigsetjmp(g_model_died, 1);
  if (number != 0) {
    return Divergence{comparison->at, fmt::format("the model ends by signal {}", number)};
  }
  try {
    comparison->run();
  } catch (const Mismatch& mismatch) {
    return Divergence{comparison->at, mismatch.what()};
  }
  return std::nullopt;
}

}  // namespace heapledger::heap::differential
