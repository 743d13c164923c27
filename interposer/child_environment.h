// SPDX-License-Identifier: Apache-2.0
// The environment that a program gets which a recorded process starts.
//
// Usually it has the session's variables and LD_PRELOAD from its parent. Where the program cleared
// or rebuilt it (env -i, execve with an empty list), they are put back, behind a marker, and the
// new image hides them again before its main runs: it is recorded, and sees what it was given.
// Where this library cannot be reached from the new program's root (chroot), it is left out of
// LD_PRELOAD, since the loader would complain on stderr; likewise behind a seccomp filter that the
// program has set, since the new image's start would ask the kernel for what may end it.
// HEAPLEDGER_RECORD=off in an environment is obeyed.
//
// Thread safety: remember_session() and hide_session() at start; a ChildEnvironment belongs to one
// call. Works in a vfork child: no allocation, the room for a new list comes from the caller's
// stack.
#pragma once

#include <cstddef>
#include <cstdint>

namespace heapledger {

// From here on children are followed, into this session.
void remember_session(const char* session) noexcept;

// In the new image: takes what the parent put back out of `environ`.
void hide_session() noexcept;

class ChildEnvironment {
 public:
  ChildEnvironment(char* const* given, const char* program) noexcept;

  // Room that build() needs; 0: what was given does as it is.
  size_t bytes() const noexcept { return bytes_; }
  // The new list, made in `room`, which must stay until the call is over.
  char* const* build(void* room) const noexcept;

  // This library was taken out, not put in.
  bool leaves_library_out() const noexcept { return change_ == Change::kTakeOut; }

 private:
  const char* changed_preload(char* text) const noexcept;

  enum class Change : uint8_t { kNone, kPutIn, kTakeOut };

  char* const* given_;
  size_t count_ = 0;
  const char* preload_ = nullptr;  // The value of LD_PRELOAD, where it is given.
  bool has_session_ = false;
  bool has_library_ = false;
  Change change_ = Change::kNone;
  size_t bytes_ = 0;
};

// Writes `list` (of LD_PRELOAD) without this library to `out`, which has room for it; returns the
// length.
size_t without_library(const char* list, char* out) noexcept;

}  // namespace heapledger
