// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/model.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "analyzer/whatif/cache_rules.h"
#include "interposer/base/bits.h"
#include "interposer/heap/allocator_impl.h"
#include "interposer/heap/start_settings.h"
#include "interposer/simulated/model_os.h"

namespace heapledger::analyzer {

namespace {

// Where the blocks are, by number. In pieces: what a large one grew out of would be memory, too.
class BlockTable {
 public:
  void*& at(uint32_t number) {
    if (number / kPiece >= pieces_.size()) [[unlikely]]
      grow(number);
    return (*pieces_[number / kPiece])[number % kPiece];
  }
  void* find(uint32_t number) const {
    return number / kPiece < pieces_.size() ? (*pieces_[number / kPiece])[number % kPiece]
                                            : nullptr;
  }
  // Inlined early: to the compiler a function that only prefetches does nothing, and goes.
  [[gnu::always_inline]] void prefetch(uint32_t number) const {
    if (number / kPiece < pieces_.size()) [[likely]]
      __builtin_prefetch(&(*pieces_[number / kPiece])[number % kPiece], 1);
  }
  BlockTable() = default;
  BlockTable(const BlockTable& other) { *this = other; }
  BlockTable& operator=(const BlockTable& other) {
    pieces_.clear();
    for (const auto& piece : other.pieces_) pieces_.push_back(std::make_unique<Piece>(*piece));
    return *this;
  }

 private:
  static constexpr size_t kPiece = 4096;
  using Piece = std::array<void*, kPiece>;
  [[gnu::noinline]] void grow(uint32_t number) {
    while (number / kPiece >= pieces_.size()) pieces_.push_back(std::make_unique<Piece>());
  }
  std::vector<std::unique_ptr<Piece>> pieces_;
};

template <class Layout>
class ModelOf : public Model {
 public:
  explicit ModelOf(const ModelOptions& options)
      : machine_(options.space),
        heap_(std::make_unique<Heap>(heap::ModelOs{&machine_})),
        residency_(options.space.residency),
        touched_below_(options.touched_below) {
    machine_.settings = options.settings;
    machine_.cpus = options.cpus;
    // What failed while it was recorded gets nothing here either.
    machine_.space.set_refusal([this](const heap::SimulatedCall& call) {
      return refusing_ && (call.name == heap::CallName::kMremap || call.bytes > 0) &&
             call.name != heap::CallName::kMunmap && call.name != heap::CallName::kMadvise;
    });
  }

  void run(std::span<const Op> ops) override {
    position_ = 0;
    for (const Op& op : ops) {
      prefetch_after(ops, position_);
      if (op.failed) [[unlikely]] {
        refusing_ = true;
        run_one(op);
        refusing_ = false;
      } else if (!run_simple(op)) {
        run_one(op);
      }
      if (op.kind != OpKind::kTouch) ++operation_;
      ++position_;
    }
  }

  ModelCounts counts() const override {
    ModelCounts result;
    for (size_t i = 0; i < heap::kCallNames; ++i) {
      result.calls[i] = machine_.space.calls(static_cast<heap::CallName>(i)) - inherited_.calls[i];
    }
    result.held_bytes_peak = machine_.space.held_bytes_peak();
    result.operations = operation_;
    return result;
  }

  heap::AddressSpace& space() override { return machine_.space; }
  size_t position() const override { return position_; }

  size_t touch(uint32_t number, size_t offset, size_t bytes) override {
    const auto* at = static_cast<const std::byte*>(block(number));
    return at == nullptr ? 0 : machine_.space.touch(at + offset, bytes);
  }

  std::vector<FreePiece> free_pieces() override {
    std::vector<FreePiece> pieces;
    const auto visit = [&](uintptr_t begin, uintptr_t end, heap::FreeKind kind) {
      if (begin < end) pieces.push_back({begin, end, kind});
    };
    heap_->visit_free(visit);
    for (const auto& state : threads_) heap_->visit_cache(*state, visit);
    return pieces;
  }

  std::unique_ptr<ModelImage> save() const override {
    auto image = std::make_unique<Image>();
    image->space = machine_.space.save();
    image->single_threaded = machine_.single_threaded;
    image->heap.resize(sizeof(Heap));
    std::memcpy(image->heap.data(), bytes_of(heap_.get()), sizeof(Heap));
    for (const auto& state : threads_) image->threads.push_back(*state);
    image->blocks = blocks_;
    image->inherited = inherited_;
    image->operation = operation_;
    image->first_thread = first_thread_;
    return image;
  }

  void restore(const ModelImage& saved) override {
    const auto& image = static_cast<const Image&>(saved);
    machine_.space.restore(image.space);
    machine_.single_threaded = image.single_threaded;
    std::memcpy(bytes_of(heap_.get()), image.heap.data(), sizeof(Heap));
    threads_.resize(image.threads.size());
    for (size_t i = 0; i < threads_.size(); ++i) *threads_[i] = image.threads[i];
    blocks_ = image.blocks;
    inherited_ = image.inherited;
    operation_ = image.operation;
    first_thread_ = image.first_thread;
  }

  void set_sink(ModelSink sink) override {
    machine_.space.set_sink([this, sink = std::move(sink)](const heap::SimulatedCall& call) {
      sink(call, operation_);
    });
  }

 private:
  using Heap = heap::Allocator<Layout, heap::ModelOs>;
  using ThreadState = typename Heap::ThreadState;
  using View = heap::ChunkView<Layout>;

  struct Image : ModelImage {
    heap::AddressSpace::Image space;
    bool single_threaded = true;
    std::vector<std::byte> heap;
    std::vector<ThreadState> threads;
    BlockTable blocks;
    ModelCounts inherited;
    uint64_t operation = 0;
    uint32_t first_thread = 0;
  };

  // An allocator is plain data that nobody but it points into, at one place all its life.
  static_assert(std::is_trivially_destructible_v<Heap>);
  static std::byte* bytes_of(Heap* heap) {
    return static_cast<std::byte*>(static_cast<void*>(heap));
  }

  ThreadState& thread(uint32_t number) {
    while (threads_.size() <= number) threads_.push_back(std::make_unique<ThreadState>());
    if (number != first_thread_) machine_.single_threaded = false;
    return *threads_[number];
  }

  void*& block(uint32_t number) { return blocks_.at(number); }
  void set_block(const Op& op, void* at) {
    if (op.block != Op::kNoBlock) block(op.block) = at;
    if (!residency_ || at == nullptr) return;
    touch_headers(static_cast<const std::byte*>(at));
    if (op.size < touched_below_) machine_.space.touch(at, op.size);
  }

  // What later operations will touch, step by step, each when the step before has arrived: where
  // the block is, its header, and the next chunk's. Without a branch on what kind they are, which
  // follows no pattern.
  [[gnu::always_inline]] void prefetch_after(std::span<const Op> ops, size_t position) const {
    constexpr size_t kAheadNumber = 24;
    constexpr size_t kAheadHeader = 14;
    constexpr size_t kAheadNext = 6;
    if (position + kAheadNumber >= ops.size()) return;
    blocks_.prefetch(number_of(ops[position + kAheadNumber]));
    const std::byte* at = place_of(ops[position + kAheadHeader]);
    __builtin_prefetch(at - Heap::kHeaderBytes, 1);
    __builtin_prefetch(at, 1);  // Perhaps on another cache line.
    const heap::Chunk* chunk = View::of_block(place_of(ops[position + kAheadNext]));
    __builtin_prefetch(View::next(chunk), 1);
  }
  static uint32_t number_of(const Op& op) {
    return op.old_block != Op::kNoBlock ? op.old_block : op.block;
  }
  // Of the block that it will end; somewhere else where there is none.
  const std::byte* place_of(const Op& op) const {
    const uintptr_t at = base::address_of(blocks_.find(number_of(op)));
    const uintptr_t nowhere = base::address_of(&nowhere_[Heap::kHeaderBytes]);
    return static_cast<const std::byte*>(
        base::pointer_to(at | (nowhere & (0 - uintptr_t{at == 0}))));
  }

  // The allocator wrote to the chunk's own header, and in an arena to the next one's: a neighbour's
  // or the top's.
  void touch_headers(const std::byte* at) {
    const std::byte* end = at + Heap::usable_size(at);
    machine_.space.touch(at - Heap::kHeaderBytes, Heap::kHeaderBytes);
    const bool is_mapped = (View::head(View::of_block(at)) & heap::kIsMapped) != 0;
    if (!is_mapped) machine_.space.touch(end, Heap::kHeaderBytes);
  }

  // How far the program's own step of the break goes here: a program that gave back what it got may
  // find more of the heap above it than it did, and the heap's memory stays the heap's.
  int64_t foreign_step(const Op& op) const {
    const auto step = static_cast<int64_t>(op.size);
    return std::max(step, -static_cast<int64_t>(machine_.space.foreign_break_bytes()));
  }

  void release(ThreadState& by, uint32_t number) {
    void* at = std::exchange(block(number), nullptr);
    if (at != nullptr) heap_->release_checked(by, at);
  }

  // What nearly all are, without the rest's weight.
  [[gnu::always_inline]] bool run_simple(const Op& op) {
    if (op.thread >= threads_.size() || residency_) return false;
    if (op.thread != first_thread_ && machine_.single_threaded) return false;
    ThreadState& by = *threads_[op.thread];
    if (op.kind == OpKind::kRelease) {
      release(by, op.block);
      return true;
    }
    if (op.kind != OpKind::kAllocate || op.block == Op::kNoBlock) return false;
    block(op.block) = heap_->allocate(by, op.size);
    return true;
  }

  void run_one(const Op& op) {
    ThreadState& by = thread(op.thread);
    switch (op.kind) {
      case OpKind::kAllocate:
        set_block(op, heap_->allocate(by, op.size));
        break;
      case OpKind::kZeroed:
        set_block(op, heap_->allocate_zeroed(by, 1, op.size));
        break;
      case OpKind::kAligned:
        set_block(op, heap_->allocate_aligned(by, op.alignment, op.size));
        break;
      case OpKind::kRelease:
        release(by, op.block);
        break;
      case OpKind::kResize:
        resize(by, op);
        break;
      case OpKind::kThreadEnd:
        heap_->thread_exit(by);
        break;
      case OpKind::kForeignBreak:
        heap_->note_break(machine_.space.move_break_foreign(foreign_step(op)));
        break;
      case OpKind::kSetOption:
        heap_->set_option(static_cast<int>(op.block), static_cast<int>(op.size));
        break;
      case OpKind::kTrim:
        heap_->trim(op.size);
        break;
      case OpKind::kFork:
        begin_own_part(op.thread, by);
        break;
      case OpKind::kTouch:
        if (residency_) touch(op.block, op.alignment, op.size);
        break;
    }
  }

  void resize(ThreadState& by, const Op& op) {
    void* old = block(op.old_block);
    void* fresh = heap_->reallocate(by, old, op.size);
    if (op.failed || (fresh == nullptr && op.size != 0)) return;  // The old block lives on.
    block(op.old_block) = nullptr;
    set_block(op, fresh);
  }

  void begin_own_part(uint32_t forking_thread, ThreadState& by) {
    heap_->fork_prepare(by);
    heap_->fork_child(by);
    // libc does not become single-threaded again: a child of several threads keeps to the arena of
    // the one that forked (seen with glibc 2.36).
    first_thread_ = forking_thread;
    inherited_ = {};
    for (size_t i = 0; i < heap::kCallNames; ++i) {
      inherited_.calls[i] = machine_.space.calls(static_cast<heap::CallName>(i));
    }
    machine_.space.restart_peaks();
    operation_ = UINT64_MAX;  // The next one is the first.
  }

  heap::Machine machine_;
  std::unique_ptr<Heap> heap_;
  std::vector<std::unique_ptr<ThreadState>> threads_;
  BlockTable blocks_;
  ModelCounts inherited_;
  uint64_t operation_ = 0;
  uint32_t first_thread_ = 0;  // Alone until another one calls.
  size_t position_ = 0;
  bool refusing_ = false;
  const bool residency_;
  const size_t touched_below_;
  alignas(64) std::array<std::byte, 64> nowhere_{};  // A chunk of no bytes.
};

}  // namespace

std::unique_ptr<Model> make_model(const ModelOptions& options) {
  if (options.layout == LayoutKind::kGlibc) return std::make_unique<ModelOf<heap::Glibc>>(options);
  return std::make_unique<ModelOf<heap::Header16>>(options);
}

heap::Settings recorded_settings(schema::Database& db, const TraceInfo& info, int64_t process) {
  const ProcessInfo* at = &info.process(process);
  // Only a damaged trace has a parent that came later.
  while (at->forked && at->parent && *at->parent < at->id) at = &info.process(*at->parent);
  heap::Settings settings;
  const auto set = [](auto& setting, const std::optional<int64_t>& recorded) {
    using Type = std::remove_reference_t<decltype(setting)>;
    if (recorded) setting = static_cast<Type>(*recorded);
  };
  set(settings.mmap_threshold, at->mmap_threshold);
  set(settings.trim_threshold, at->trim_threshold);
  set(settings.top_pad, at->top_pad);
  set(settings.mmap_max, at->mmap_max);
  set(settings.arena_max, at->arena_max);
  set(settings.cache_count, at->tcache_count);
  settings.threshold_is_dynamic = at->mmap_threshold_dynamic.value_or(1) != 0;
  schema::Statement select = db.prepare(
      "SELECT old_value, new_value FROM policy_event WHERE process = ?"
      " AND kind = 'setting at start'");
  select.bind_all(at->id);
  while (select.step()) {
    for (const heap::StartSetting& setting : heap::kStartSettings) {
      if (setting.number == select.column_int(0)) setting.set(settings, select.column_uint(1));
    }
  }
  return settings;
}

FreedChunkRules recorded_cache_rules(schema::Database& db, const TraceInfo& info, int64_t process) {
  const heap::Settings settings = recorded_settings(db, info, process);
  return {settings.cache_count,
          heap::policy_bytes(std::min(settings.cache_request_max, heap::kCacheRequestMax)),
          settings.fast_chunk_max};
}

}  // namespace heapledger::analyzer

template class heapledger::heap::Allocator<heapledger::heap::Glibc, heapledger::heap::ModelOs>;
template class heapledger::heap::Allocator<heapledger::heap::Header16, heapledger::heap::ModelOs>;
