# SPDX-License-Identifier: Apache-2.0
"""Threads by the thousand, alive at once and one after another: every call is in the trace, and ring memory goes back to the system.

HEAPLEDGER_TEST_THREADS is how many pass in the second test, 5,000 if not set.
"""

import os

import recording
from test_processes import HEAD_BYTES, load_truth


class ManyThreads(recording.RecordingTest):
    def check(self, way, count):
        """Returns what the victim says of the region's resident KiB: (at most, in the end)."""
        program = recording.victim("many_threads")
        native = self.native([program, way, self.path("native.truth"), str(count)])
        self.assertEqual((native.returncode, native.stderr), (0, b""))
        truth = self.path("truth")
        trace = self.record([program, way, truth, str(count)], ["--quiet"])
        self.assertEqual((trace.run.returncode, trace.run.stdout, trace.run.stderr), (0, native.stdout, b""))
        self.assert_clean(trace)
        parts = load_truth(truth)
        rows = trace.sql(
            f"SELECT size, count(*) AS n FROM event WHERE kind = 'malloc' AND size BETWEEN {min(parts)} AND {max(parts)} GROUP BY size")
        self.assertEqual({row["size"]: row["n"] for row in rows}, parts)
        self.assertEqual(trace.one("SELECT count(*) FROM thread"), count + 1)
        threads = trace.one(
            f"SELECT count(DISTINCT thread) FROM event WHERE kind = 'malloc' AND size BETWEEN {min(parts)} AND {max(parts)}")
        self.assertEqual(threads, count)
        with open(truth, "rb") as file:
            head = memoryview(file.read(HEAD_BYTES)).cast("I")
        return head[2], head[3]

    def test_two_thousand_at_once(self):
        peak, end = self.check("alive", 2000)
        self.assertGreater(peak, 2000 * 4, "a page for each ring")
        self.assertLess(peak, 2000 * 1024, "less than a whole ring for each")
        self.assertLess(end, 4096 + 1024)

    def limited(self, limit, count):
        """`count` threads at once under a limit, natively and recorded. Returns the trace, the program's process row, and the parts."""
        command = ["sh", "-c", f'ulimit {limit}; exec "$0" "$@"', recording.victim("many_threads"), "alive"]
        native = self.native([*command, self.path("native.truth"), str(count)])
        self.assertEqual((native.returncode, native.stderr), (0, b""))
        trace = self.record([*command, self.path("truth"), str(count)], ["--quiet"])
        self.assertEqual((trace.run.returncode, trace.run.stdout, trace.run.stderr), (0, native.stdout, b""))
        rows = trace.sql("SELECT id, recorded, reason, events_lost FROM process WHERE exe LIKE '%many_threads'")
        self.assertEqual(len(rows), 1)
        return trace, rows[0], load_truth(self.path("truth"))

    def calls_by_part(self, trace, parts):
        rows = trace.sql(
            f"SELECT size, count(*) AS n FROM event WHERE kind = 'malloc' AND size BETWEEN {min(parts)} AND {max(parts)} GROUP BY size")
        return {size: 0 for size in parts} | {row["size"]: row["n"] for row in rows}

    def test_under_a_limit_of_data(self):
        # Goal: the recorder's own memory takes nothing of the limit, and all is recorded. Method: 60 threads in 16 MiB; three quarters of
        # the limit are stacks and arenas of their own for twice as many.
        trace, process, parts = self.limited("-d 16384", 60)
        self.assert_clean(trace)
        self.assertEqual(process["recorded"], 1, process)
        self.assertEqual(self.calls_by_part(trace, parts), parts)

    def test_more_at_once_than_there_are_rings(self):
        # Goal: the threads that got no ring are counted and said, and nobody waits for them. Method: an address space with room for few.
        trace, process, parts = self.limited("-v 400000", 45)
        self.assertEqual((process["recorded"], process["reason"]), (2, "more of its threads were alive than can be recorded at once"))
        calls = self.calls_by_part(trace, parts)
        missing = sum(parts.values()) - sum(calls.values())
        self.assertGreater(missing, 0)
        self.assertGreaterEqual(process["events_lost"], missing)
        self.assertTrue(all(n <= parts[size] for size, n in calls.items()))

    def test_one_batch_after_another(self):
        peak, end = self.check("passing", int(os.environ.get("HEAPLEDGER_TEST_THREADS", "5000")))
        self.assertGreater(peak, 0)
        self.assertLess(peak, 64 * 1024, "rings are handed on or returned")
        self.assertLess(end, 4096 + 1024)


if __name__ == "__main__":
    recording.main()
