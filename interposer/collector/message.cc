// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/message.h"

#include <utility>

namespace heapledger::collector {
namespace {

// The drain thread's rounds are about this long at most; asked for ahead.
constexpr size_t kRoundBytes = 8U << 20;

size_t memory_bytes_of(const Message& message) {
  const auto* window = std::get_if<Window>(&message);
  return window == nullptr ? 0 : window->raw.capacity();
}

}  // namespace

void MessageQueue::push(Message message) {
  auto* window = std::get_if<Window>(&message);
  if (window != nullptr && window->raw.size() != 0) {
    std::unique_lock lock(mutex_);
    const bool fits = memory_bytes_ + window->raw.capacity() <= memory_bytes_max_;
    lock.unlock();  // The other threads need not wait for the disk.
    if (!fits) window->spooled = spool_.write({window->raw.data(), window->raw.size()});
    if (window->spooled) window->raw = RawBytes();
  }
  const std::lock_guard lock(mutex_);
  memory_bytes_ += memory_bytes_of(message);
  if (window != nullptr && window->spooled) spooled_bytes_ += window->spooled->bytes;
  messages_.push_back(std::move(message));
  filled_.notify_one();
}

bool MessageQueue::has_room() const {
  {
    const std::lock_guard lock(mutex_);
    if (memory_bytes_ < memory_bytes_max_ || memory_bytes_ + spooled_bytes_ == 0) return true;
  }
  return spool_.has_room(kRoundBytes);
}

std::optional<Message> MessageQueue::pop(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  if (!filled_.wait_for(lock, timeout, [this] { return !messages_.empty(); })) return std::nullopt;
  Message message = std::move(messages_.front());
  messages_.pop_front();
  memory_bytes_ -= memory_bytes_of(message);
  auto* window = std::get_if<Window>(&message);
  if (window == nullptr || !window->spooled) return message;
  spooled_bytes_ -= window->spooled->bytes;
  lock.unlock();
  spool_.read(*window->spooled, window->raw.extend(window->spooled->bytes));
  window->spooled.reset();
  return message;
}

uint64_t MessageQueue::backlog_bytes() const {
  const std::lock_guard lock(mutex_);
  return memory_bytes_ + spooled_bytes_;
}

}  // namespace heapledger::collector
