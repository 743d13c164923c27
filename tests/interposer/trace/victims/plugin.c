// SPDX-License-Identifier: Apache-2.0
// A library for dlopen: found by its user's DT_RUNPATH, allocates on behalf of it.
#include <stdlib.h>

static void* kept;

__attribute__((constructor)) static void on_load(void) { kept = malloc(222); }
__attribute__((destructor)) static void on_unload(void) { free(kept); }

void* plugin_make(size_t size) { return malloc(size); }
