// SPDX-License-Identifier: Apache-2.0
// Every form of operator new and delete, once; then the failures: bad_alloc, nothrow null, the new
// handler. Ends with 0 if all behaved as C++ says.
#include <cstdint>
#include <new>

namespace {

int handler_calls = 0;

void handler() {
  if (++handler_calls == 3) std::set_new_handler(nullptr);
}
[[noreturn]] void throwing_handler() { throw std::bad_alloc(); }

void forms() {
  const std::align_val_t alignment{64};
  ::operator delete(::operator new(1001));
  ::operator delete[](::operator new[](1002));
  ::operator delete(::operator new(1003, std::nothrow), std::nothrow);
  ::operator delete[](::operator new[](1004, std::nothrow), std::nothrow);
  ::operator delete(::operator new(1005, alignment), alignment);
  ::operator delete[](::operator new[](1006, alignment), alignment);
  ::operator delete(::operator new(1007, alignment, std::nothrow), alignment, std::nothrow);
  ::operator delete[](::operator new[](1008, alignment, std::nothrow), alignment, std::nothrow);
  ::operator delete (::operator new(1009), std::size_t{1009});
  ::operator delete[](::operator new[](1010), std::size_t{1010});
  ::operator delete (::operator new(1011, alignment), std::size_t{1011}, alignment);
  ::operator delete[](::operator new[](1012, alignment), std::size_t{1012}, alignment);
  ::operator delete(nullptr);
}

bool throws(std::size_t size) {
  try {
    ::operator delete(::operator new(size));
    return false;
  } catch (const std::bad_alloc&) {
    return true;
  }
}

}  // namespace

int main() {
  forms();
  volatile std::size_t too_much = PTRDIFF_MAX;
  if (!throws(too_much)) return 1;
  if (::operator new(too_much, std::nothrow) != nullptr) return 2;
  if (::operator new[](too_much, std::align_val_t{64}, std::nothrow) != nullptr) return 3;
  std::set_new_handler(handler);
  if (!throws(too_much)) return 4;
  if (handler_calls != 3) return 5;
  std::set_new_handler(throwing_handler);
  if (::operator new(too_much, std::nothrow) != nullptr) return 6;
  return 0;
}
