# SPDX-License-Identifier: Apache-2.0
"""Trees of processes: every call of every process is in the trace, in a process of its own, and the program does not notice.

The victim's processes count their own calls where the count outlives them (programs/process_truth.h).
HEAPLEDGER_TEST_FORKS is the depth of the chain of forks, 1,000 if not set.
"""

import array
import os
import subprocess

import recording

FIRST_SIZE = 10000  # As in programs/process_truth.h.
HEAD_BYTES = 64

# What the calls of these sections' processes are charged to: the parent, whose memory they run on.
SHARED_ROWS = {"vforks", "clones_on_the_same_memory"}
SAID_NOTHING = "ended before it ran a program or allocated"
NEEDS_ROOT = {"in_an_empty_root"}


def load_truth(path):
    """Size of the blocks -> calls that returned, by part."""
    with open(path, "rb") as file:
        parts = int.from_bytes(file.read(4), "little")
        file.seek(HEAD_BYTES)
        counts = array.array("I", file.read(4 * parts))
    return {FIRST_SIZE + part: count for part, count in enumerate(counts)}


class ProcessTrees(recording.RecordingTest):
    def setUp(self):
        super().setUp()
        self.program = recording.victim("process_trees")

    def run_section(self, section, *arguments, options=()):
        """Runs it with and without recording; returns the trace and what its parts say of their calls."""
        native = self.native([self.program, section, self.path("native.truth"), *arguments])
        self.assertEqual((native.returncode, native.stderr), (0, b""))
        truth = self.path("truth")
        trace = self.record([self.program, section, truth, *arguments], ["--quiet", "--wait", *options])
        self.assertEqual(trace.run.stdout.decode(), native.stdout.decode())
        self.assertEqual(trace.run.stderr.decode(), "")
        self.assertEqual(trace.run.returncode, native.returncode)
        parts = load_truth(truth)
        self.assertEqual(len(parts), len(load_truth(self.path("native.truth"))))
        self.assertGreaterEqual(len(parts), 3)
        return trace, parts

    def check(self, section, *arguments):
        if section in NEEDS_ROOT and os.geteuid() != 0:
            self.skipTest("needs root")
        trace, parts = self.run_section(section, *arguments)
        self.assert_clean(trace)
        rows = trace.sql(
            f"SELECT process, size, count(*) AS n FROM event WHERE kind = 'malloc' AND size BETWEEN {min(parts)} AND {max(parts)} "
            "GROUP BY process, size")
        self.assertEqual({row["size"]: row["n"] for row in rows}, parts)
        self.assertEqual(len(rows), len(parts), "a part's calls are in one process each")
        processes = {row["process"] for row in rows}
        if section in SHARED_ROWS:
            self.assertLess(len(processes), len(parts))
        unrecorded = trace.sql("SELECT pid, exe, command, reason FROM process WHERE recorded = 0")
        if section in SHARED_ROWS:
            unrecorded = [row for row in unrecorded if row["reason"] != SAID_NOTHING]
        self.assertEqual(unrecorded, [])
        # Within an image, an id is given out once, whichever of its processes does it.
        twice = trace.with_events(
            "SELECT image, e.id, count(*) AS n FROM e JOIN process ON process.id = e.process WHERE e.id != 0 GROUP BY image, e.id "
            "HAVING n > 1 LIMIT 3")
        self.assertEqual(twice, [])
        return trace, parts, processes

    def test_a_chain_of_forks(self):
        depth = int(os.environ.get("HEAPLEDGER_TEST_FORKS", "1000"))
        trace, _, processes = self.check("fork_chain", str(depth))
        self.assertEqual(len(processes), depth + 1)
        chain = trace.sql("WITH RECURSIVE down(id, n) AS (SELECT 1, 1 UNION ALL SELECT process.id, n + 1 FROM process JOIN down "
                          "ON process.parent = down.id) SELECT max(n) AS n FROM down")
        self.assertEqual(chain[0]["n"], depth + 1, "each is a child of the one before")

    def test_a_tower_of_forks(self):
        _, _, processes = self.check("fork_tower", "60")
        self.assertEqual(len(processes), 61)

    def test_a_bush_of_forks(self):
        _, _, processes = self.check("fork_bush")
        self.assertEqual(len(processes), 20 * 4 + 1)

    def test_more_at_once_than_there_are_slots(self):
        # Goal: who found no slot is named, with what it did; the others, and the program, notice nothing. Method: 1,024 slots, 1,040 children
        # that live together.
        trace, parts = self.run_section("fork_crowd", "1040")
        refused = trace.sql("SELECT id, forked, reason, exit_status, events, events_lost FROM process WHERE recorded = 0")
        self.assertEqual(len(refused), 1041 - 1024)
        for row in refused:
            self.assertEqual((row["forked"], row["events"]), (1, 0))
            self.assertIn(row["exit_status"], (1, None))  # Unknown where it had ended before anyone could look.
            self.assertIn("more processes of one program were alive than can be recorded at once", row["reason"])
            self.assertGreaterEqual(row["events_lost"], 8)  # Its four pairs of malloc and free.
        self.assertEqual(trace.one("SELECT sum(events_lost) FROM process WHERE recorded = 1"), 0)
        rows = trace.sql(f"SELECT size, count(*) AS n FROM event WHERE kind = 'malloc' AND size BETWEEN {min(parts)} AND {max(parts)} "
                         "GROUP BY size")
        self.assertEqual(len(rows), len(parts) - 2 * len(refused))
        self.assertTrue(all(parts[row["size"]] == row["n"] for row in rows))

    def test_vforks(self):
        self.check("vforks")

    def test_raw_clones(self):
        _, _, processes = self.check("raw_clones")
        self.assertEqual(len(processes), 20 * 2 + 1)

    def test_clones_on_the_same_memory(self):
        self.check("clones_on_the_same_memory")

    def test_execs_with_and_without_an_environment(self):
        self.check("execs")

    def test_spawns(self):
        self.check("spawns")

    def test_daemons(self):
        self.check("daemons")

    def test_in_an_empty_root(self):
        self.check("in_an_empty_root")

    def test_in_namespaces(self):
        if subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("namespaces are not allowed here")
        self.check("in_namespaces")

    def test_in_a_sandbox(self):
        trace, _, processes = self.check("in_a_sandbox")
        self.assertEqual(len(processes), 1 + 3 * 2)
        self.assertEqual(trace.one("SELECT count(*) FROM process WHERE recorded != 1"), 0)

    def test_a_program_started_in_a_sandbox_is_left_alone(self):
        trace, parts = self.run_section("exec_in_a_sandbox")
        self.assert_clean(trace)
        calls = trace.one(f"SELECT count(*) FROM event WHERE kind = 'malloc' AND size BETWEEN {min(parts)} AND {max(parts)}")
        self.assertEqual(calls, 15)  # Not those of the new program.
        self.assertEqual(trace.one("SELECT count(*) FROM process WHERE recorded = 0"), 1)
        self.assertEqual(trace.one("SELECT count(*) FROM mark WHERE kind = 'note' AND text LIKE '%behind a seccomp filter%'"), 1)


if __name__ == "__main__":
    recording.main()
