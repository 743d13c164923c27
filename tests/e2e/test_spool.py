# SPDX-License-Identifier: Apache-2.0
"""A program that makes events faster than they are packed: they are spooled, and only at the limit does it wait. Nothing is lost.

Program and collector share one processor, of which the thread that packs gets a tenth while the program runs.
"""

import os
import unittest

import recording

PAIRS = 1_000_000


class Spool(recording.RecordingTest):
    def flood(self, *options, environment=None):
        cpu = min(os.sched_getaffinity(0))
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})  # Inherited.
        try:
            trace = self.record([recording.victim("flood"), str(PAIRS)], options, env=dict(os.environ, **(environment or {})))
        finally:
            os.sched_setaffinity(0, before)
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        self.assertEqual(int(trace.run.stdout), PAIRS)
        lost = trace.one("SELECT sum(events_lost) FROM process")
        self.assertEqual(lost, 0)
        # Each block was begun once and ended once; stdio and the loader make a few of their own.
        rows = trace.sql("SELECT count(DISTINCT id) AS begun, count(DISTINCT ended_id) AS ended FROM event WHERE kind IN ('malloc', 'free')")
        self.assertGreaterEqual(rows[0]["begun"], PAIRS)
        self.assertLess(rows[0]["begun"], PAIRS + 1000)
        self.assertGreaterEqual(rows[0]["ended"], PAIRS)
        return trace

    def test_what_is_not_packed_yet_is_spooled(self):
        trace = self.flood(environment={"HEAPLEDGER_BACKLOG": "4M"})
        self.assertGreater(trace.meta("spool_peak_bytes"), 4 << 20)
        self.assertGreaterEqual(trace.meta("spool_limit_bytes"), trace.meta("spool_peak_bytes"))
        self.assertEqual(os.listdir(self.folder), ["trace.db"])

    def test_at_the_limit_the_program_waits(self):
        trace = self.flood("--spool-limit", "0", environment={"HEAPLEDGER_BACKLOG": "1M"})
        self.assertEqual(trace.meta("spool_peak_bytes"), 0)
        self.assertEqual(trace.meta("spool_limit_bytes"), 0)
        self.assertGreater(trace.meta("stalls"), 0)
        self.assertGreater(trace.meta("stall_ns"), 0)
        self.assertEqual(trace.one("SELECT sum(stall_ns) FROM process"), trace.meta("stall_ns"))

    def test_a_limit_between_is_kept(self):
        trace = self.flood("--spool-limit", "16M", environment={"HEAPLEDGER_BACKLOG": "1M"})
        self.assertGreater(trace.meta("spool_peak_bytes"), 1 << 20)
        self.assertLessEqual(trace.meta("spool_peak_bytes"), 16 << 20)
        self.assertEqual(trace.meta("spool_limit_bytes"), 16 << 20)


if __name__ == "__main__":
    recording.main()
