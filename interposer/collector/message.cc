// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/message.h"

#include <utility>

namespace heapledger::collector {
namespace {

size_t message_bytes(const Message& message) {
  const auto* window = std::get_if<Window>(&message);
  return window == nullptr ? 0 : window->raw.capacity();
}

}  // namespace

void MessageQueue::push(Message message) {
  const std::lock_guard lock(mutex_);
  bytes_ += message_bytes(message);
  messages_.push_back(std::move(message));
  filled_.notify_one();
}

bool MessageQueue::has_room() const {
  const std::lock_guard lock(mutex_);
  return bytes_ < bytes_max_;
}

std::optional<Message> MessageQueue::pop(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  if (!filled_.wait_for(lock, timeout, [this] { return !messages_.empty(); })) return std::nullopt;
  Message message = std::move(messages_.front());
  messages_.pop_front();
  bytes_ -= message_bytes(message);
  return message;
}

size_t MessageQueue::backlog_bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace heapledger::collector
