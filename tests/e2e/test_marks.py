# SPDX-License-Identifier: Apache-2.0
"""`heapledger mark`: marks from outside in a recording that is running, which the program does not notice."""

import os
import subprocess
import time

import recording


class Marks(recording.RecordingTest):
    def start(self, command, environment=None, name="trace.db"):
        run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder, env=environment)
        self.addCleanup(run.stdout.close)
        self.addCleanup(run.stderr.close)
        self.addCleanup(run.kill)
        self.assertEqual(run.stdout.readline(), b"begin\n")
        return run, recording.Trace(self.path(name), None)

    def record_until(self, *arguments):
        return self.start([recording.HEAPLEDGER, "record", "--quiet", "-o", self.path("trace.db"), "--",
                           recording.victim("until"), self.path("go"), *arguments])

    def finish(self, run):
        with open(self.path("go"), "w", encoding="ascii") as file:
            file.write("go\n")
        out, err = run.communicate(timeout=recording.TIMEOUT_S)
        return run.returncode, out, err

    def mark(self, target, text):
        return self.native([recording.HEAPLEDGER, "mark", str(target), text])

    def assert_marked(self, target, text):
        done = self.mark(target, text)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))

    def assert_refused(self, target, text, status, words):
        done = self.mark(target, text)
        self.assertEqual((done.returncode, done.stdout), (status, b""))
        self.assertEqual(done.stderr.decode(), f"heapledger: mark: {words}\n")

    def marks(self, trace):
        return trace.sql("SELECT time_ns, process, thread, text FROM mark WHERE kind = 'mark' ORDER BY time_ns")

    def process_number(self, run):
        """Of the program that `record` runs."""
        with open(f"/proc/{run.pid}/task/{run.pid}/children", encoding="ascii") as file:
            (child,) = file.read().split()
        return int(child)

    def test_by_process_and_by_trace(self):
        # Goal: each mark is in the trace between the program's calls of that time, with a snapshot, and the program's behaviour is that of
        # an unrecorded run. Method: three marks; what the program did between them is counted.
        with open(self.path("go"), "w", encoding="ascii"):
            pass
        native = self.native([recording.victim("until"), self.path("go"), "alone"])
        os.unlink(self.path("go"))
        run, trace = self.record_until("alone")
        pid = self.process_number(run)
        self.assert_marked(pid, "first, from outside")
        time.sleep(0.2)
        self.assert_marked(trace.path, "by its f\u00efle")
        time.sleep(0.2)
        self.assert_marked(pid, "third")
        status, out, err = self.finish(run)
        self.assertEqual((status, b"begin\n" + out, err), (native.returncode, native.stdout, native.stderr))
        rows = self.marks(trace)
        self.assertEqual([row["text"] for row in rows], ["first, from outside", "by its f\u00efle", "third"])
        self.assertEqual({(row["process"], row["thread"]) for row in rows}, {(1, None)})
        for before, after in zip(rows, rows[1:]):
            self.assertGreaterEqual(after["time_ns"] - before["time_ns"], 150_000_000)
            calls = trace.one(f"SELECT count(*) FROM event WHERE time_ns BETWEEN {before['time_ns']} AND {after['time_ns']}")
            self.assertGreater(calls, 0)
        # Each has its snapshot, after the mark and before the next one.
        snapshots = [row["time_ns"] for row in trace.sql("SELECT time_ns FROM snapshot WHERE reason = 'mark' ORDER BY time_ns")]
        self.assertEqual(len(snapshots), 3)
        stamps = [row["time_ns"] for row in rows]
        self.assertEqual(sorted(stamps + snapshots), [stamp for pair in zip(stamps, snapshots) for stamp in pair])
        # As text, a long one is cut where the numbers beside it are wide.
        timeline = self.native([recording.HEAPLEDGER, "timeline", "--csv", trace.path]).stdout.decode()
        for row in rows:
            self.assertIn(row["text"], timeline)
        self.assertIn("by its f\u00efle", self.native([recording.HEAPLEDGER, "timeline", trace.path]).stdout.decode())
        self.assert_clean(trace)

    def test_forked_children_and_a_bare_preload(self):
        # Goal: a child's number marks the child alone, the trace marks all that live; without `record` it is the same.
        environment = {**os.environ, "LD_PRELOAD": os.path.join(recording.BIN, "libheapledger.so"), "HEAPLEDGER_OUTPUT": self.path("trace.db"),
                       "GO": self.path("go")}
        os.mkfifo(self.path("go"))
        program = "(read line < $GO) & echo begin; echo $!; wait"
        run, trace = self.start(["sh", "-c", program], environment)
        child = int(run.stdout.readline())
        self.assert_marked(child, "child")
        self.assert_marked(run.pid, "parent")
        self.assert_marked(trace.path, "both")
        self.assertEqual(self.finish(run), (0, b"", b""))
        for _ in range(600):
            done = subprocess.run(["sqlite3", "-cmd", ".timeout 5000", trace.path, "SELECT value FROM meta WHERE key = 'state'"],
                                  capture_output=True, text=True)
            if done.stdout.strip() == "complete":
                break
            time.sleep(0.05)
        rows = trace.sql("SELECT pid, text FROM mark JOIN process ON process.id = mark.process WHERE kind = 'mark' ORDER BY mark.time_ns, pid")
        pids = sorted((run.pid, child))
        self.assertEqual([(row["pid"], row["text"]) for row in rows],
                         [(child, "child"), (run.pid, "parent"), (pids[0], "both"), (pids[1], "both")])

    def test_what_cannot_be_marked(self):
        # Goal: one clear line. Method: no such target, a process nobody records, a recording that is over, texts of no use.
        run, trace = self.record_until("alone")
        self.assert_refused(os.getpid(), "x", 1, f"{os.getpid()}: no recording of this process is running")
        self.assert_refused("no-such-trace.db", "x", 1, "no-such-trace.db: neither a process number nor a trace")
        self.assert_refused("0", "x", 1, "0: neither a process number nor a trace")
        self.assert_refused(trace.path, "", 2, "TEXT: between 1 and 1024 bytes")
        self.assert_refused(trace.path, "x" * 1025, 2, "TEXT: between 1 and 1024 bytes")
        self.assert_marked(trace.path, "x" * 1024)
        self.assertEqual(self.finish(run)[0], 7)
        self.assert_refused(trace.path, "late", 1, f"{trace.path}: it is not being recorded now")
        self.assertEqual([row["text"] for row in self.marks(trace)], ["x" * 1024])
        alone = self.native([recording.HEAPLEDGER, "mark", "1"])
        self.assertEqual((alone.returncode, alone.stderr), (2, b"heapledger: mark: PID|TRACE TEXT: two words are needed; try --help\n"))


if __name__ == "__main__":
    recording.main()
