# SPDX-License-Identifier: Apache-2.0
"""How programs end, and programs that cannot be recorded: same status, a complete trace, one clear line."""

import os
import shutil
import signal

import recording


class Ends(recording.RecordingTest):
    def check_killed(self, number):
        calls = 5000
        trace = self.record([recording.victim("killed"), str(int(number)), str(calls)])
        self.assertEqual(recording.killed_by(trace.run.returncode), number, trace.run.stderr)
        self.assertIn(number.name.encode(), trace.run.stderr)
        self.assert_clean(trace)
        row = trace.sql("SELECT signal, exit_status, ended_by FROM process WHERE id = 1")[0]
        self.assertEqual((row["signal"], row["exit_status"], row["ended_by"]), (int(number), None, "signal"))
        made, freed = map(int, trace.run.stdout.split())
        self.assertEqual(trace.one("SELECT count(*) FROM event WHERE kind = 'malloc' AND (size = 33 OR size >= 1000000)"), made)
        frees = trace.with_events(
            "SELECT count(*) AS n FROM e AS f JOIN e AS m ON m.id = f.ended_id WHERE f.kind = 'free' AND m.size >= 1000000")
        self.assertEqual(frees[0]["n"], freed)

    def test_segmentation_fault(self):
        self.check_killed(signal.SIGSEGV)

    def test_sigkill(self):
        self.check_killed(signal.SIGKILL)

    def test_sigint(self):
        self.check_killed(signal.SIGINT)

    def test_exit_status_is_the_programs(self):
        trace = self.record(["sh", "-c", "exit 42"])
        self.assertEqual(trace.run.returncode, 42)
        self.assertEqual(trace.one("SELECT exit_status FROM process WHERE id = 1"), 42)

    def test_a_program_that_does_not_exist(self):
        trace = self.record(["./no-such-program"])
        self.assertEqual(trace.run.returncode, 127)
        self.assertEqual(trace.run.stderr.decode(), "heapledger: record: ./no-such-program: No such file or directory\n")

    def test_a_file_that_is_no_program(self):
        text = self.path("text")
        with open(text, "w", encoding="ascii") as file:
            file.write("hello\n")
        trace = self.record([text])
        self.assertEqual(trace.run.returncode, 126)
        self.assertEqual(len(trace.run.stderr.splitlines()), 1)

    def test_a_static_program(self):
        trace = self.record([recording.victim("hello_static")], ["--quiet"])
        self.assertEqual(trace.run.returncode, 7)
        self.assertEqual(trace.run.stdout, b"static\n")
        lines = trace.run.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("statically linked", lines[0])

    def test_a_static_child_has_a_row_with_the_reason(self):
        trace = self.record(["sh", "-c", recording.victim("hello_static") + "; exit 3"])
        self.assertEqual(trace.run.returncode, 3)
        rows = trace.sql("SELECT recorded, reason, exe FROM process WHERE exe LIKE '%hello_static'")
        self.assertEqual(len(rows), 1, trace.sql("SELECT id, pid, exe, recorded, reason FROM process"))
        self.assertEqual(rows[0]["recorded"], 0)
        self.assertIn("statically linked", rows[0]["reason"])

    def test_waiting_for_any_child_sees_only_its_own(self):
        trace = self.record([recording.victim("wait_any")])
        self.assertEqual((trace.run.returncode, trace.run.stdout), (0, b"2 children\n"), trace.run.stderr)

    def test_a_program_with_a_malloc_of_its_own(self):
        trace = self.record([recording.victim("own_malloc")], timeout=30)
        self.assertEqual((trace.run.returncode, trace.run.stdout), (0, b"done 1\n"), trace.run.stderr)
        self.assertIn(b"a malloc of its own", trace.run.stderr)
        self.assertEqual(trace.one("SELECT count(*) FROM mark WHERE kind = 'note' AND text LIKE '%malloc of its own%'"), 1)
        row = trace.sql("SELECT recorded, reason FROM process")[0]
        self.assertEqual(row["recorded"], 2)
        self.assertIn("a malloc of its own", row["reason"])
        self.assertGreater(trace.one("SELECT count(*) FROM syscall WHERE name = 'mmap' AND origin = 'program'"), 30)

    def test_a_program_with_jemalloc_linked_in(self):
        if not os.path.exists(recording.victim("with_jemalloc")):
            self.skipTest("libjemalloc-dev is not installed")
        native = self.native([recording.victim("with_jemalloc")])
        self.assertEqual(native.returncode, 0)
        trace = self.record([recording.victim("with_jemalloc")], timeout=60)
        self.assertEqual((trace.run.returncode, trace.run.stdout), (0, native.stdout), trace.run.stderr)
        self.assertEqual(trace.run.stderr.count(b"a malloc of its own"), 1)
        row = trace.sql("SELECT recorded, reason FROM process")[0]
        self.assertEqual(row["recorded"], 2)
        self.assertIn("a malloc of its own", row["reason"])
        self.assertGreater(trace.one("SELECT count(*) FROM syscall WHERE name = 'mmap' AND origin = 'program'"), 0)

    def test_an_allocator_beside_malloc(self):
        # Goal: a second allocator under names of its own is said, the calls of malloc and its mappings are there. Method: Rust's names.
        native = self.native([recording.victim("beside_malloc")])
        trace = self.record([recording.victim("beside_malloc")], ["--quiet"])
        self.assertEqual((trace.run.returncode, trace.run.stdout, trace.run.stderr), (0, native.stdout, b""))
        row = trace.sql("SELECT recorded, reason, events_lost FROM process")[0]
        self.assertEqual((row["recorded"], row["events_lost"]), (2, 0))
        self.assertEqual(row["reason"], "it has an allocator beside malloc (_rjem_malloc): those calls are not recorded, its system calls are")
        self.assertEqual(trace.one("SELECT count(*) FROM event WHERE kind = 'malloc' AND size = 7777"), 100)
        self.assertEqual(trace.one("SELECT count(*) FROM event WHERE size = 2000"), 0)
        self.assertEqual(trace.one("SELECT count(*) FROM syscall WHERE name = 'mmap' AND origin = 'program' AND arg1 = 1048576"), 1)

    def test_its_operators_use_it_too(self):
        native = self.native([recording.victim("own_operators")])
        self.assertEqual((native.returncode, native.stderr), (0, b""))
        plain = {**os.environ, "LD_PRELOAD": os.path.join(recording.BIN, "libheapledger.so"), "HEAPLEDGER_RECORD": "off"}
        if self.user is None:
            self.assertEqual(self.native([recording.victim("own_operators")], env=plain).stdout, native.stdout)
        trace = self.record([recording.victim("own_operators")], ["--quiet"], timeout=30)
        self.assertEqual((trace.run.returncode, trace.run.stdout), (0, native.stdout), trace.run.stderr)

    def test_little_room_for_data(self):
        truth = self.path("truth")
        program = f"{recording.victim('process_trees')} fork_tower {truth} 5"
        trace = self.record(["sh", "-c", f"ulimit -d 12288; exec {program}"], ["--wait"])
        self.assertEqual((trace.run.returncode, trace.run.stdout), (0, b"statuses: 0\n"), trace.run.stderr)
        self.assertEqual(trace.sql("SELECT exe, reason FROM process WHERE recorded != 1"), [])
        self.assert_clean(trace)
        self.assertEqual(trace.one("SELECT count(DISTINCT process) FROM event WHERE kind = 'malloc' AND size BETWEEN 10000 AND 10020"), 6)

    def test_descriptors_are_those_of_an_unrecorded_run(self):
        command = ["sh", "-c", "ls /proc/self/fd | wc -l"]
        self.assertEqual(self.record(command).run.stdout, self.native(command).stdout)


class SetuidPrograms(recording.RecordingTest):
    """A setuid program ignores LD_PRELOAD unless its user is root: recorded as nobody."""

    user = "nobody"

    def setUp(self):
        super().setUp()
        if os.geteuid() != 0:
            self.skipTest("only root can make a setuid program")
        self.program = self.path("setuid")
        shutil.copy("/usr/bin/id", self.program)
        os.chmod(self.program, 0o4755)

    def test_directly(self):
        trace = self.record([self.program, "-u"], ["--quiet"])
        self.assertEqual((trace.run.returncode, trace.run.stdout), (0, b"0\n"), trace.run.stderr)
        lines = trace.run.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("setuid", lines[0])

    def test_as_a_child(self):
        trace = self.record(["sh", "-c", self.program + " -u; exit 0"])
        self.assertEqual(trace.run.stdout, b"0\n")
        rows = trace.sql("SELECT recorded, reason FROM process WHERE exe LIKE '%/setuid'")
        self.assertEqual([row["recorded"] for row in rows], [0])
        self.assertIn("setuid", rows[0]["reason"])


class EndsAsNobody(Ends):
    user = "nobody"


if __name__ == "__main__":
    recording.main()
