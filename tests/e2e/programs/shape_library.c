// SPDX-License-Identifier: Apache-2.0
// A library that calls back. Built twice, with frames of different sizes in code of the same
// layout, so that one library's frames at an address are not the other's.
#if !defined(NAME) || !defined(ROOM)
#error "NAME: of its function; ROOM: bytes of the frame"
#endif

__attribute__((visibility("default"), noinline)) int NAME(void (*back)(int), int levels) {
  volatile char room[ROOM];
  room[0] = (char)levels;
  back(levels);
  return room[0] + 1;
}
