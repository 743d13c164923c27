// SPDX-License-Identifier: Apache-2.0
// Victims of many parts: PROGRAM NAME runs one of them, PROGRAM list prints their names. Exit
// status 2 where there is no such part.
#pragma once

#include <stdio.h>
#include <string.h>

namespace victim {

struct NamedPart {
  const char* name;
  void (*run)();
};
#define SECTION(name) \
  { #name, name }

template <size_t kCount>
int run_named_part(const NamedPart (&parts)[kCount], int argc, char** argv) {
  if (argc != 2) return 2;
  const bool lists = strcmp(argv[1], "list") == 0;
  for (const NamedPart& part : parts) {
    if (lists) puts(part.name);
    if (strcmp(argv[1], part.name) == 0) {
      part.run();
      return 0;
    }
  }
  return lists ? 0 : 2;
}

}  // namespace victim
