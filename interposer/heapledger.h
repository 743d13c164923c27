// SPDX-License-Identifier: Apache-2.0
/*
 * heapledger.h: what a program can tell heapledger while it is being recorded. C and C++.
 *
 * Nothing has to be linked: outside of a recording the function is not there, and the macro does
 * nothing.
 *
 *     HEAPLEDGER_MARK("index built");
 *
 * A mark is a named moment in the trace, with the call stack and a snapshot of memory (it waits for
 * the snapshot, a second at most). Any thread; not from signal handlers. `text` is copied, at most
 * 8192 bytes of it.
 */
#ifndef HEAPLEDGER_H
#define HEAPLEDGER_H

#ifdef __cplusplus
extern "C" {
#endif

void heapledger_mark(const char* text) __attribute__((weak));

#ifdef __cplusplus
}
#endif

#define HEAPLEDGER_MARK(text)                        \
  do {                                               \
    if (heapledger_mark != 0) heapledger_mark(text); \
  } while (0)

#endif
