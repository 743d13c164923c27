// SPDX-License-Identifier: Apache-2.0
//
// Everything of the allocator that is not inlined into its callers. Included once by whoever
// instantiates it:
//   template class heapledger::heap::Allocator<Header16, SomeOs>;
#pragma once

#include "interposer/heap/allocator.h"
#include "interposer/heap/allocator_admin.h"
#include "interposer/heap/allocator_arenas.h"
#include "interposer/heap/allocator_cache.h"
#include "interposer/heap/allocator_heaps.h"
#include "interposer/heap/allocator_huge.h"
#include "interposer/heap/allocator_large_cache.h"
#include "interposer/heap/allocator_nested.h"
#include "interposer/heap/allocator_release.h"
#include "interposer/heap/allocator_resize.h"
#include "interposer/heap/allocator_system.h"
#include "interposer/heap/allocator_take.h"
#include "interposer/heap/allocator_valid.h"
#include "interposer/heap/allocator_walk.h"
