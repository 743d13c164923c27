# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with the recorder is not the program's business: it runs on to its end as without us, and the trace opens and says what
it lacks. The collector is killed or stopped, the disk is full, the trace reaches its size, the whole process group is killed, two
recordings want one file."""

import errno
import os
import signal
import subprocess
import time

import recording

PAIRS = 1_000_000  # Of the flood: 2,000,000 calls.
STALL_MAX_S = 8  # A dead collector is noticed after two seconds; the rest is for a busy machine.


def collector_of(path):
    """The pid of the collector that writes this trace."""
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/comm", encoding="ascii") as file:
                if not file.read().startswith("heapledger-col"):
                    continue
            for number in os.listdir(f"/proc/{entry}/fd"):
                if os.readlink(f"/proc/{entry}/fd/{number}") == path:
                    return int(entry)
        except (OSError, ValueError):
            pass
    return None


class RecorderFaults(recording.RecordingTest):
    def plain_sql(self, query, path=None):
        """Rows of a query by the plain sqlite3 shell, as lists of texts; None while the file is not there or locked."""
        done = subprocess.run(["sqlite3", "-batch", "-cmd", ".timeout 5000", path or self.path("trace.db"), query],
                              capture_output=True, text=True, timeout=recording.TIMEOUT_S)
        return None if done.returncode != 0 else [line.split("|") for line in done.stdout.splitlines()]

    def await_value(self, query, wanted, path=None):
        for _ in range(600):
            rows = self.plain_sql(query, path)
            if rows and wanted(rows[0][0]):
                return
            time.sleep(0.05)
        self.fail(f"{query}: {rows}")

    def start(self, command, options=("--quiet",), name="trace.db"):
        """Begins a recording; returns it once the collector has written the first of its calls."""
        run = subprocess.Popen([recording.HEAPLEDGER, "record", "-o", self.path(name), *options, "--", *command],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder,
                               start_new_session=True)
        self.addCleanup(run.stdout.close)
        self.addCleanup(run.stderr.close)
        self.addCleanup(run.kill)
        return run

    def start_until(self, *arguments, name="trace.db"):
        """`until` with some calls in the trace already. Returns the run and the collector's pid."""
        run = self.start([recording.victim("until"), self.path("go"), *arguments], name=name)
        for _ in range(600):
            if os.path.exists(self.path(name)):
                break
            time.sleep(0.02)
        self.await_value("SELECT count(*) FROM event_batch", lambda count: int(count) > 0, self.path(name))
        collector = collector_of(self.path(name))
        self.assertIsNotNone(collector)
        return run, collector

    def go_on(self, run):
        """Lets `until` finish. Returns its stdout, stderr, status and how long that took."""
        began = time.monotonic()
        with open(self.path("go"), "w", encoding="ascii"):
            pass
        out, err = run.communicate(timeout=recording.TIMEOUT_S)
        return out, err.decode(), run.returncode, time.monotonic() - began

    def native_until(self, *arguments):
        with open(self.path("go"), "w", encoding="ascii"):
            pass
        native = self.native([recording.victim("until"), self.path("go"), *arguments])
        os.unlink(self.path("go"))
        self.assertEqual(native.returncode, 7)
        return native

    def check_cut(self, *words, name="trace.db"):
        """The trace opens in plain sqlite3 and in the reports, has calls in it, and says that it was cut."""
        self.assertEqual(self.plain_sql("PRAGMA integrity_check", self.path(name)), [["ok"]])
        trace = recording.Trace(self.path(name), None)
        self.assertGreater(trace.one("SELECT count(*) FROM event"), 0)
        summary = self.native([recording.HEAPLEDGER, "summary", trace.path])
        self.assertEqual(summary.returncode, 0, summary.stderr)
        text = " ".join(summary.stdout.decode().split())
        for word in ("the recording was cut short", *words):
            self.assertIn(word, text)
        return trace

    def test_killed_collector(self):
        # Goal: the program runs on as if alone, with one line from `record`. Method: its collector is killed in mid-recording.
        native = self.native_until()
        run, collector = self.start_until()
        os.kill(collector, signal.SIGKILL)
        out, err, status, seconds = self.go_on(run)
        self.assertEqual((out, status), (native.stdout, native.returncode))
        ours = [line for line in err.splitlines(True) if line.startswith("heapledger: ")]
        self.assertEqual(err, ours[0] + native.stderr.decode())
        self.assertEqual(len(ours), 1)
        self.assertIn("collector: it has ended", ours[0])
        self.assertLess(seconds, STALL_MAX_S)
        self.check_cut("its collector ended before it could close the file")

    def test_what_a_cut_recording_says_of_settings(self):
        # Goal: what is predicted without the recording's end never comes without a word of it. Method: kill the collector in mid-recording.
        run, collector = self.start_until("alone")
        os.kill(collector, signal.SIGKILL)
        self.assertEqual(self.go_on(run)[2], 7)
        trace = self.check_cut("its collector ended before it could close the file")
        words = "the recording was cut short"
        for command in ("sweep", "advise", "replay"):
            options = ["--runs", "1", "--quiet"] if command == "replay" else []
            done = self.native([recording.HEAPLEDGER, command, *options, trace.path])
            self.assertEqual((done.returncode, done.stderr), (0, b""), command)
            self.assertIn(words, " ".join(done.stdout.decode().split()), command)
        self.assertIn(words, " ".join(trace.report("advise")["doubts"]))

    def test_killed_collector_of_a_slow_program(self):
        # Goal: what is more than some seconds old stays, however little it is. Method: 200 calls a second, which fill a batch in five minutes:
        # they must come into the file long before that. Kill it then; nothing that was there is gone.
        run, collector = self.start_until("slow")
        calls = "SELECT coalesce(sum(events), 0) FROM event_batch"
        self.await_value(calls, lambda count: int(count) > 300)
        before = int(self.plain_sql(calls)[0][0])
        os.kill(collector, signal.SIGKILL)
        self.assertEqual(self.go_on(run)[2], 7)
        trace = self.check_cut("its collector ended before it could close the file")
        self.assertGreaterEqual(trace.one("SELECT count(*) FROM event"), before)

    def test_collector_killed_at_once(self):
        # Goal: a trace with nothing but the program in it opens, too. Method: kill it as soon as it has written that the program runs.
        run = self.start([recording.victim("until"), self.path("go")])
        self.assertEqual(run.stdout.readline(), b"begin\n")
        self.await_value("SELECT count(*) FROM process", lambda count: count == "1")
        os.kill(collector_of(self.path("trace.db")), signal.SIGKILL)
        self.assertEqual(self.go_on(run)[2], 7)
        self.assertEqual(self.plain_sql("SELECT count(*) FROM process"), [["1"]])
        summary = self.native([recording.HEAPLEDGER, "summary", self.path("trace.db")])
        # With luck the program's first word was written, too; then there is a summary, with nothing in it.
        said = summary.stderr if summary.returncode != 0 else b" ".join(summary.stdout.split())
        self.assertIn(b"the recording was cut short", said)
        # No calls: nothing to predict from, or to replay.
        if recording.Trace(self.path("trace.db"), None).one("SELECT count(*) FROM event_batch") == 0:
            for command in ("sweep", "advise", "replay"):
                refused = self.native([recording.HEAPLEDGER, command, *(["--quiet"] if command == "replay" else []), self.path("trace.db")])
                self.assertEqual((refused.returncode, refused.stdout), (1, b""), command)
                self.assertRegex(refused.stderr, b"^heapledger: .*(no recorded calls|was not recorded|cut)")

    def test_stopped_collector(self):
        # Goal: no progress for ten seconds is a dead collector, for the program and for `record`; once continued it closes the trace.
        native = self.native_until("alone")
        run, collector = self.start_until("alone")
        os.kill(collector, signal.SIGSTOP)
        try:
            out, err, status, seconds = self.go_on(run)
        finally:
            os.kill(collector, signal.SIGCONT)
        self.assertEqual((out, status), (native.stdout, native.returncode))
        self.assertIn("collector: no sign of life for 10 s", err)
        self.assertEqual(len(err.splitlines()), 1, err)
        self.assertGreater(seconds, 9)
        self.assertLess(seconds, 20 + STALL_MAX_S)
        self.await_value("SELECT value FROM meta WHERE key = 'state'", lambda state: state == "complete")
        self.assertGreater(recording.Trace(self.path("trace.db"), None).one("SELECT events_lost FROM process WHERE id = 1"), 0)

    def test_stopped_collector_and_new_programs(self):
        # Goal: a program that starts while the collector is stopped waits a moment, not ten seconds, and has a row that says why there is
        # nothing in it. Method: a shell that runs eight of them.
        run = self.start(["sh", "-c", "echo begin; while [ ! -e go ]; do sleep 0.05; done; for i in 1 2 3 4 5 6 7 8; do env true; done; echo end"])
        self.assertEqual(run.stdout.readline(), b"begin\n")
        self.await_value("SELECT count(*) FROM process WHERE recorded = 1", lambda count: int(count) > 1)
        collector = collector_of(self.path("trace.db"))
        os.kill(collector, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with open(self.path("go"), "w", encoding="ascii"):
                pass
            self.assertEqual(run.stdout.readline(), b"end\n")
            seconds = time.monotonic() - began
        finally:
            os.kill(collector, signal.SIGCONT)
        self.assertLess(seconds, 10 + STALL_MAX_S)  # One second for each, not ten.
        out, err = run.communicate(timeout=recording.TIMEOUT_S)
        self.assertEqual((out, err, run.returncode), (b"", b"", 0))
        self.await_value("SELECT value FROM meta WHERE key = 'state'", lambda state: state == "complete")
        unrecorded = self.plain_sql("SELECT count(*) FROM process WHERE recorded = 0 AND reason = 'it did not wait for the collector''s answer'")
        self.assertGreaterEqual(int(unrecorded[0][0]), 8)

    def test_stopped_collector_of_another_pid_namespace(self):
        # Goal: where /proc cannot say that the collector is stopped, a new image waits two seconds, not ten. Method: one image, run by a
        # shell with process numbers of its own.
        if subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode != 0:
            self.skipTest("cannot unshare the pid namespace")
        program = "echo begin; while [ ! -e go ]; do sleep 0.05; done; env true; echo end"
        run = self.start(["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", program])
        self.assertEqual(run.stdout.readline(), b"begin\n")
        self.await_value("SELECT count(*) FROM process WHERE recorded = 1", lambda count: int(count) > 2)
        collector = collector_of(self.path("trace.db"))
        # `sleep 0.05` is a new image, too: the one that waits at the stop is the first of three.
        os.kill(collector, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with open(self.path("go"), "w", encoding="ascii"):
                pass
            self.assertEqual(run.stdout.readline(), b"end\n")
            seconds = time.monotonic() - began
        finally:
            os.kill(collector, signal.SIGCONT)
        self.assertGreater(seconds, 1.5)
        self.assertLess(seconds, 4 * 2 + STALL_MAX_S)  # Four at most: the two of `sleep`, `env`, and `true`.
        out, err = run.communicate(timeout=recording.TIMEOUT_S)
        self.assertEqual((out, err, run.returncode), (b"", b"", 0))
        self.await_value("SELECT value FROM meta WHERE key = 'state'", lambda state: state == "complete")

    def test_library_of_another_version(self):
        # Goal: an image whose library is of another build is turned away, and its row says why. Method: a Hello by hand.
        hello = self.path("hello.py")
        with open(hello, "w", encoding="ascii") as file:
            file.write("import os, socket, struct\n"
                       "line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
                       "line.connect('\\0' + os.environ['HEAPLEDGER_SESSION'])\n"
                       "line.send(struct.pack('<QII', 0x3130524745444C48, 1, os.getpid()))\n"
                       "magic, version, status, size = struct.unpack('<QIIQ', line.recv(64))\n"
                       "print(magic == 0x3130524745444C48, version > 1, status, size)\n")
        trace = self.record(["sh", "-c", f"HEAPLEDGER_RECORD=off python3 -S {hello}; true"], ["--quiet"])
        self.assertEqual((trace.run.returncode, trace.run.stdout, trace.run.stderr), (0, b"True True 1 0\n", b""))
        rows = trace.sql("SELECT reason FROM process WHERE recorded = 0 AND command LIKE '%hello.py'")
        self.assertEqual([row["reason"] for row in rows], ["its libheapledger.so is of another version than heapledger-collector"])

    def test_killed_process_group(self):
        # Goal: the collector is in no group of the program's: it finishes the trace alone. Method: SIGKILL to the whole group.
        run, _ = self.start_until()
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=recording.TIMEOUT_S)
        self.await_value("SELECT value FROM meta WHERE key = 'state'", lambda state: state == "complete")
        trace = recording.Trace(self.path("trace.db"), None)
        self.assertEqual(trace.one("SELECT events_lost FROM process WHERE id = 1"), 0)
        summary = self.native([recording.HEAPLEDGER, "summary", trace.path])
        self.assertEqual(summary.returncode, 0, summary.stderr)
        self.assertNotIn(b"the recording was cut short", summary.stdout)

    def check_stopped(self, run, why):
        """A flood whose recording ended before it did: the program's output and status, what is said, the trace."""
        self.assertEqual((run.returncode, run.stdout), (0, b"%d\n" % PAIRS), run.stderr)
        lines = run.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("recording stopped, the program runs on", lines[0])
        self.assertIn(why, lines[0])
        trace = self.check_cut(why)
        self.assertEqual(trace.meta("state"), "stopped")
        self.assertIn(why, trace.meta("stopped_why"))
        return trace

    def test_size_limit(self):
        # Goal: recording ends a little below --max-size, all that was packed is there, the rest is counted.
        limit = 1 << 20
        trace = self.record([recording.victim("flood"), str(PAIRS)], ["--quiet", "--max-size", "1M"])
        self.check_stopped(trace.run, f"the trace has reached --max-size {limit}")
        self.assertLess(os.path.getsize(trace.path), limit + (1 << 20))  # With the reports' tables.
        row = trace.sql("SELECT events, events_lost, exit_status FROM process WHERE id = 1")[0]
        self.assertEqual(row["exit_status"], 0)
        self.assertGreater(row["events"], 0)
        self.assertGreater(row["events_lost"], 0)
        self.assertEqual(trace.one("SELECT count(*) FROM event"), row["events"])

    def test_size_limit_that_no_trace_fits_in(self):
        trace = self.record(["touch", self.path("mark")], ["--max-size", "64K"])
        self.assertEqual(trace.run.returncode, 1)
        self.assertRegex(trace.run.stderr.decode(), r"^heapledger: record: --max-size 65536: an empty trace takes \d+ bytes\n$")
        self.assertEqual(os.listdir(self.folder), [])

    def test_size_limit_without_record(self):
        environment = dict(os.environ, LD_PRELOAD=os.path.join(recording.BIN, "libheapledger.so"),
                           HEAPLEDGER_OUTPUT=self.path("trace.db"), HEAPLEDGER_MAX_SIZE="1m")
        run = self.native([recording.victim("flood"), str(PAIRS)], env=environment)
        self.assertEqual((run.returncode, run.stdout), (0, b"%d\n" % PAIRS), run.stderr)
        self.await_value("SELECT value FROM meta WHERE key = 'state'", lambda state: state == "stopped")
        self.check_cut("the trace has reached --max-size")

    def test_full_disk(self):
        # Goal: what was committed before the disk was full stays, and the trace says why there is no more. Method: a small file system,
        # filled in mid-recording.
        folder = self.path("small")
        os.mkdir(folder)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "heapledger-test", folder], capture_output=True)
        if mounted.returncode != 0:
            self.skipTest("cannot mount a small tmpfs: " + mounted.stderr.decode().strip())
        self.addCleanup(subprocess.run, ["umount", "-l", folder], check=True)
        native = self.native_until("alone")
        run, _ = self.start_until("alone", name="small/trace.db")
        with open(os.path.join(folder, "filler"), "wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096) == 4096:
                    pass
            except OSError as error:
                self.assertEqual(error.errno, errno.ENOSPC)
        # Until the collector has noticed.
        self.assertIn(b"recording stopped, the program runs on: ", run.stderr.readline())
        out, err, status, _ = self.go_on(run)
        self.assertEqual((out, status, err), (native.stdout, native.returncode, ""))
        self.check_cut("disk is full", name="small/trace.db")
        self.assertEqual(self.plain_sql("SELECT value FROM meta WHERE key = 'state'", self.path("small/trace.db")), [["stopped"]])

    def test_a_file_that_is_being_recorded(self):
        # Goal: neither a second recording nor --force touches a trace that is being written; what is left behind gives way.
        run, collector = self.start_until()
        for options, why in (((), "exists; --force overwrites"), (("--force",), "is being recorded by another heapledger")):
            second = self.native([recording.HEAPLEDGER, "record", *options, "-o", self.path("trace.db"), "--", "touch", self.path("mark")])
            self.assertEqual((second.returncode, second.stdout), (1, b""))
            self.assertEqual(second.stderr.decode(), f"heapledger: record: {self.path('trace.db')}: {why}\n")
            self.assertFalse(os.path.exists(self.path("mark")))
        self.assertEqual(self.go_on(run)[2], 7)
        self.assertEqual(self.plain_sql("SELECT value FROM meta WHERE key = 'state'"), [["complete"]])
        self.assertIsNone(collector_of(self.path("trace.db")), collector)
        again = self.record(["true"], ["--quiet", "--force"])
        self.assertEqual((again.run.returncode, again.run.stderr), (0, b""))
        self.assertIn("true", again.one("SELECT exe FROM process WHERE id = 1"))

    def test_two_that_begin_at_once(self):
        # Goal: one of them records, the others say why not; with --force the last one stands, and no trace is half another's.
        for options in ((), ("--force",)):
            runs = [self.start(["sleep", "0.3"], ("--quiet", *options), "shared.db") for _ in range(4)]
            for run in runs:
                run.wait(recording.TIMEOUT_S)
            statuses = sorted(run.returncode for run in runs)
            self.assertEqual(statuses[0], 0)
            if not options:
                self.assertEqual(statuses, [0, 1, 1, 1])
            self.assertEqual(self.plain_sql("SELECT (SELECT value FROM meta WHERE key = 'state'), count(*) FROM process",
                                            self.path("shared.db")), [["complete", "1"]])


if __name__ == "__main__":
    recording.main()
