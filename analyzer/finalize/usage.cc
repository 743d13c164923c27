// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/usage.h"

#include <algorithm>

namespace heapledger::analyzer {

void UsageCounts::make_thread(uint32_t id) {
  threads_.resize(std::max<size_t>(size_t{id} + 1, threads_.size() * 2));
}

}  // namespace heapledger::analyzer
