// SPDX-License-Identifier: Apache-2.0
// Calls that would stumble over the shared region, which is reserved far larger than it is used.
//
// mlockall would bring all of it in: what no thread uses is made inaccessible meanwhile, and all of
// it is unlocked afterwards. A limit of the address space would count all of it: what no thread
// uses is given up first, so that the program finds the room it would have without us. Later
// threads then find fewer rings. (A limit of data counts nothing of it: own_calls.h.)
#include <sys/mman.h>
#include <sys/resource.h>

#include "interposer/lifecycle.h"
#include "interposer/trace/rings_spare.h"

#define HL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using heapledger::real;
namespace trace = heapledger::trace;

void make_room_below(int resource, const rlimit* limit) {
  if (resource != RLIMIT_AS) return;
  if (limit == nullptr || limit->rlim_cur == RLIM_INFINITY) return;
  if (heapledger::traced()) trace::give_up_spare_rings();
}

}  // namespace

HL_EXPORT int mlockall(int flags) noexcept {
  if (!heapledger::traced()) return real().mlockall(flags);
  const trace::SpareRingsHidden hidden;
  return real().mlockall(flags);
}

HL_EXPORT int setrlimit(__rlimit_resource_t resource, const rlimit* limit) noexcept {
  make_room_below(static_cast<int>(resource), limit);
  return real().setrlimit(resource, limit);
}
HL_EXPORT int setrlimit64(__rlimit_resource_t resource, const rlimit64* limit) noexcept {
  return setrlimit(resource, reinterpret_cast<const rlimit*>(limit));  // One layout on x86-64.
}

HL_EXPORT int prlimit(pid_t pid, __rlimit_resource resource, const rlimit* limit,
                      rlimit* old) noexcept {
  if (pid == 0) make_room_below(static_cast<int>(resource), limit);
  return real().prlimit(pid, resource, limit, old);
}
HL_EXPORT int prlimit64(pid_t pid, __rlimit_resource resource, const rlimit64* limit,
                        rlimit64* old) noexcept {
  return prlimit(pid, resource, reinterpret_cast<const rlimit*>(limit),
                 reinterpret_cast<rlimit*>(old));
}
