# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random times loses nothing that had returned.

The victim notes every call that has returned in memory that it shares with the test. After each kill the trace must hold, for each
thread, all that was noted, in order, and at most one call more. HEAPLEDGER_KILLS says how many kills (200 by hand; fewer in CI)."""

import mmap
import os
import random
import signal
import struct
import subprocess
import time

import recording

KILLS = int(os.environ.get("HEAPLEDGER_KILLS", "10"))
NOTES = 1024
FIRST_SIZE = 7654321
BOOK = struct.Struct("<QQQ40x")
NOTE = struct.Struct("<QQQ")
BOOK_BYTES = BOOK.size + NOTES * NOTE.size
KINDS = {1: "malloc", 2: "calloc", 3: "realloc", 4: "free"}


class Notebook:
    def __init__(self, data, number):
        start = number * BOOK_BYTES
        self.count, self.pid, self.tid = BOOK.unpack_from(data, start)
        first = max(0, self.count - NOTES + 1)  # The oldest may have been under the pen.
        self.notes = []
        for call in range(first, self.count):
            kind, address, size = NOTE.unpack_from(data, start + BOOK.size + call % NOTES * NOTE.size)
            self.notes.append((KINDS[kind], address, size))


class Kills(recording.RecordingTest):
    def record_and_kill(self, threads, delay_s):
        """Kills the victim `delay_s` after all its threads have begun. Returns its notebooks and the trace."""
        notes = self.path("notes")
        with open(notes, "wb") as file:
            file.truncate(threads * BOOK_BYTES)
        trace = self.path("trace.db")
        with open(notes, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
            run = subprocess.Popen([recording.HEAPLEDGER, "record", "--quiet", "--force", "-o", trace, "--",
                                    recording.victim("noting"), notes, str(threads)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder)
            while any(Notebook(data, number).count == 0 for number in range(threads)):
                self.assertIsNone(run.poll(), run.stderr)
                time.sleep(0.001)
            time.sleep(delay_s)
            os.kill(Notebook(data, 0).pid, signal.SIGKILL)
            out, err = run.communicate(timeout=recording.TIMEOUT_S)
            books = [Notebook(data, number) for number in range(threads)]
        self.assertEqual((run.returncode, out, err), (-signal.SIGKILL, b"", b""))
        return books, recording.Trace(trace, run)

    def check(self, book, rows, what):
        """`rows`: of this thread, with `place` counted from its first call of ours (1) on."""
        calls = {row["place"]: (row["kind"], row["address"], row["size"] or 0) for row in rows}
        self.assertIn(max(calls), (book.count, book.count + 1), what)
        first = book.count - len(book.notes)
        traced = [calls.get(first + i + 1) for i in range(len(book.notes))]
        if traced != book.notes:  # assertEqual would print all of them.
            wrong = next(i for i, pair in enumerate(zip(traced, book.notes)) if pair[0] != pair[1])
            self.fail(f"{what}: call {first + wrong}: noted {book.notes[wrong]}, traced {traced[wrong]}")

    def kill_often(self, threads):
        seed = int(os.environ.get("HEAPLEDGER_SEED", time.time_ns() % 1_000_000_007))
        generator = random.Random(seed)
        calls = 0
        for number in range(KILLS):
            books, trace = self.record_and_kill(threads, generator.random() * 0.05)
            self.assertEqual(trace.sql("SELECT signal, events_lost FROM process"), [{"signal": 9, "events_lost": 0}])
            rows = trace.with_events(
                f", f AS (SELECT thread, min(time_ns) AS start FROM e WHERE size = {FIRST_SIZE} GROUP BY thread),"
                " n AS (SELECT e.thread, e.kind, e.address, e.size,"
                " row_number() OVER (PARTITION BY e.thread ORDER BY e.time_ns) AS place,"
                " count(*) OVER (PARTITION BY e.thread) AS calls"
                " FROM e JOIN f ON f.thread = e.thread WHERE e.time_ns >= f.start)"
                " SELECT thread.tid, kind, address, size, place FROM n JOIN thread ON thread.id = n.thread"
                f" WHERE place > calls - {NOTES + 1}")
            for book in books:
                mine = [row for row in rows if row["tid"] == book.tid]
                self.check(book, mine, f"seed {seed}, kill {number}, thread {book.tid}")
                calls += book.count
        print(f"{KILLS} kills, {threads} threads, {calls} calls noted, none missing", flush=True)

    def test_one_thread(self):
        self.kill_often(1)

    def test_four_threads(self):
        self.kill_often(4)


if __name__ == "__main__":
    recording.main()
