# SPDX-License-Identifier: Apache-2.0
"""Another preload that wraps malloc, before and after ours: both do their work, and the program does not notice."""

import os

import recording
from test_processes import load_truth

OTHER = recording.victim("libcounting_preload.so")
OURS = os.path.join(recording.BIN, "libheapledger.so")
THREADS = 100


class Preloads(recording.RecordingTest):
    def check(self, command, **environment):
        """Returns the count of the other preload, None where it kept none."""
        program = [recording.victim("many_threads"), "passing", self.path("truth"), str(THREADS)]
        log = self.path("counting.log")
        trace = self.record([*command, *program], ["--quiet"], env={**os.environ, "COUNTING_LOG": log, **environment})
        self.assertEqual((trace.run.returncode, trace.run.stdout, trace.run.stderr), (0, f"threads: {THREADS}\n".encode(), b""))
        self.assert_clean(trace)
        parts = {size: count for size, count in load_truth(self.path("truth")).items() if count != 0}
        self.assertEqual(sum(parts.values()), 2 * THREADS)
        rows = trace.sql(
            f"SELECT size, count(*) AS n FROM event WHERE kind = 'malloc' AND size BETWEEN {min(parts)} AND {max(parts)} GROUP BY size")
        self.assertEqual({row["size"]: row["n"] for row in rows}, parts)
        self.assertEqual(trace.sql("SELECT exe, recorded, reason FROM process WHERE recorded != 1"), [])
        self.assertEqual(trace.one("SELECT sum(incomplete_stacks) FROM process"), 0)
        if not os.path.exists(log):
            return None
        with open(log, encoding="ascii") as file:
            return int(file.read())

    def test_after_ours(self):
        self.check([], LD_PRELOAD=OTHER)  # Ours serves the calls: nobody asks the other one.

    def test_before_ours(self):
        calls = self.check(["env", f"LD_PRELOAD={OTHER}:{OURS}"])
        self.assertGreaterEqual(calls, 2 * THREADS)


if __name__ == "__main__":
    recording.main()
