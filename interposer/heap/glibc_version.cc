// SPDX-License-Identifier: Apache-2.0
#include "interposer/heap/glibc_version.h"

#include <gnu/libc-version.h>

namespace heapledger::heap {

uint16_t running_glibc_version() { return parse_glibc_version(gnu_get_libc_version()); }

}  // namespace heapledger::heap
