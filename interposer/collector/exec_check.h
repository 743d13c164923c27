// SPDX-License-Identifier: Apache-2.0
// Why a program that was run did not say Hello: the dynamic loader ignores LD_PRELOAD for it, or
// there is no loader. Decided by looking at its file.
#pragma once

#include <string>

namespace heapledger::collector {

// Never empty: where the file gives no reason, the environment must be it.
std::string why_not_recorded(const std::string& exe);

}  // namespace heapledger::collector
