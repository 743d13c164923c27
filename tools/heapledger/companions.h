// SPDX-License-Identifier: Apache-2.0
// Where the other parts of heapledger lie: beside this program in the build tree, in the sibling
// folders of an installed copy. Found relative to this program's own file, so that a copy works
// from any folder.
#pragma once

#include <string>

namespace heapledger::front {

// Path of this program's own file.
std::string own_path();

// Path of a companion; throws CommandError where it is nowhere.
std::string find_analyzer();
std::string find_collector();  // HEAPLEDGER_COLLECTOR in the environment wins.
std::string find_shim();
std::string find_replayer();

}  // namespace heapledger::front
