// SPDX-License-Identifier: Apache-2.0
// `heapledger mark PID|TRACE TEXT`: a mark in a recording that is running, set from outside. It
// goes to the collector through the door that new images use, and is there, with a snapshot of the
// process, when the command returns.
//
// Nothing says which collector records a process, so each one of this user is asked: there are few.
#pragma once

#include <string>
#include <vector>

namespace heapledger::front {

int run_mark(const std::vector<std::string>& arguments);

}  // namespace heapledger::front
