// SPDX-License-Identifier: Apache-2.0
// A thread that does one piece of work at a time for its owner.
//
// It is started with the first piece and ends with the object. Only where threads can be had: else
// the work is done in start().
// Thread safety: start() and wait() belong to the owner's thread. What the work reads and writes is
// the owner's again after wait().
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace heapledger::schema {

class Worker {
 public:
  Worker() = default;
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      is_ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // The piece before must have been waited for. What it throws comes out of wait().
  void start(std::function<void()> work) {
    if (!thread_.joinable() && !begin()) {
      do_one(work);
      return;
    }
    {
      const std::lock_guard lock(mutex_);
      work_ = std::move(work);
      is_busy_ = true;
    }
    changed_.notify_all();
  }
  void wait() {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !is_busy_; });
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  bool begin() {
    try {
      thread_ = std::thread([this] { run(); });
      return true;
    } catch (const std::system_error&) {
      return false;
    }
  }
  void do_one(const std::function<void()>& work) {
    try {
      work();
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return is_busy_ || is_ending_; });
      if (!is_busy_) return;
      lock.unlock();
      do_one(work_);
      lock.lock();
      is_busy_ = false;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> work_;
  std::exception_ptr error_;  // The worker's while it is busy, else the owner's.
  bool is_busy_ = false;
  bool is_ending_ = false;
  std::thread thread_;
};

}  // namespace heapledger::schema
