// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "interposer/heap/allocator_impl.h"
#include "interposer/simulated/model_os.h"

namespace heapledger::analyzer {

namespace {

template <class Layout>
class ModelOf : public Model {
 public:
  explicit ModelOf(const ModelOptions& options)
      : machine_(space_options(options)), heap_(std::make_unique<Heap>(heap::ModelOs{&machine_})) {
    machine_.settings = options.settings;
    machine_.cpus = options.cpus;
    // What failed while it was recorded gets nothing here either.
    machine_.space.set_refusal([this](const heap::SimulatedCall& call) {
      return refusing_ && (call.name == heap::CallName::kMremap || call.bytes > 0) &&
             call.name != heap::CallName::kMunmap && call.name != heap::CallName::kMadvise;
    });
  }

  void run(std::span<const Op> ops) override {
    for (const Op& op : ops) {
      if (op.failed) [[unlikely]] {
        refusing_ = true;
        run_one(op);
        refusing_ = false;
      } else {
        run_one(op);
      }
      ++operation_;
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

  void set_sink(ModelSink sink) override {
    machine_.space.set_sink([this, sink = std::move(sink)](const heap::SimulatedCall& call) {
      sink(call, operation_);
    });
  }

 private:
  using Heap = heap::Allocator<Layout, heap::ModelOs>;
  using ThreadState = typename Heap::ThreadState;

  static heap::SpaceOptions space_options(const ModelOptions& options) {
    heap::SpaceOptions space;
    space.residency = options.residency;
    return space;
  }

  ThreadState& thread(uint32_t number) {
    while (threads_.size() <= number) threads_.push_back(std::make_unique<ThreadState>());
    if (number != 0) machine_.single_threaded = false;
    return *threads_[number];
  }

  void*& block(uint32_t number) {
    if (number >= blocks_.size()) blocks_.resize(std::max<size_t>(1024, number * size_t{2}));
    return blocks_[number];
  }
  void set_block(const Op& op, void* at) {
    if (op.block != Op::kNoBlock) block(op.block) = at;
  }

  void release(ThreadState& by, uint32_t number) {
    void* at = std::exchange(block(number), nullptr);
    if (at != nullptr) heap_->release_checked(by, at);
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
        heap_->note_break(machine_.space.move_break_foreign(static_cast<int64_t>(op.size)));
        break;
      case OpKind::kSetOption:
        heap_->set_option(static_cast<int>(op.block), static_cast<int>(op.size));
        break;
      case OpKind::kTrim:
        heap_->trim(op.size);
        break;
      case OpKind::kFork:
        begin_own_part(by);
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

  void begin_own_part(ThreadState& by) {
    heap_->fork_prepare(by);
    heap_->fork_child(by);
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
  std::vector<void*> blocks_;
  ModelCounts inherited_;
  uint64_t operation_ = 0;
  bool refusing_ = false;
};

}  // namespace

std::unique_ptr<Model> make_model(const ModelOptions& options) {
  if (options.layout == LayoutKind::kGlibc) return std::make_unique<ModelOf<heap::Glibc>>(options);
  return std::make_unique<ModelOf<heap::Header16>>(options);
}

heap::Settings recorded_settings(const ProcessInfo& process) {
  heap::Settings settings;
  const auto set = [](auto& setting, const std::optional<int64_t>& recorded) {
    using Type = std::remove_reference_t<decltype(setting)>;
    if (recorded) setting = static_cast<Type>(*recorded);
  };
  set(settings.mmap_threshold, process.mmap_threshold);
  set(settings.trim_threshold, process.trim_threshold);
  set(settings.top_pad, process.top_pad);
  set(settings.mmap_max, process.mmap_max);
  set(settings.arena_max, process.arena_max);
  set(settings.cache_count, process.tcache_count);
  settings.threshold_is_dynamic = process.mmap_threshold_dynamic.value_or(1) != 0;
  return settings;
}

}  // namespace heapledger::analyzer

template class heapledger::heap::Allocator<heapledger::heap::Glibc, heapledger::heap::ModelOs>;
template class heapledger::heap::Allocator<heapledger::heap::Header16, heapledger::heap::ModelOs>;
