# SPDX-License-Identifier: Apache-2.0
"""`record --syscalls kernel`: every memory system call of every thread, against strace; nothing counted twice; what is said where it may not be."""

import json
import os
import re
import subprocess
import unittest

import recording
from test_syscalls import ARGUMENTS, LINE, NAMES, to_number

PAGE = 4096
RAW, OWN, LIB = 3 * PAGE, 5 * PAGE, 2 * PAGE  # As in programs/syscall_paths.cc.
EXEC = re.compile(r"^\[[0-9a-f]+\] execve\(.*\)\s+= 0$")


def usable():
    """Whether the kernel's tracepoints may be used here, as doctor says."""
    done = subprocess.run([recording.HEAPLEDGER, "doctor", "--json"], capture_output=True, text=True, timeout=recording.TIMEOUT_S)
    check = next(check for check in json.loads(done.stdout)["checks"] if check["name"] == "tracepoints")
    return check["state"] == "ok", check["detail"]


def strace_images(path):
    """The calls of one thread, a list per program that it ran."""
    images = [[]]
    with open(path, encoding="ascii", errors="replace") as lines:
        for line in lines:
            if EXEC.match(line):
                images.append([])
            match = LINE.match(line)
            if match is None:
                continue
            _, name, args, result = match.groups()
            numbers = [to_number(a) for a in args.split(",")]
            if name == "mremap" and len(numbers) == 4:
                numbers.append(0)  # strace leaves out what the flags do not use.
            images[-1].append((name, [n & (2**64 - 1) for n in numbers], to_number(result)))
    return images


class KernelSyscalls(recording.RecordingTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        good, why = usable()
        if not good:
            raise unittest.SkipTest(why)

    def rows(self, trace, tid):
        """The calls of one thread as the trace has them, a list per process row."""
        images = {}
        for row in trace.sql(
                "SELECT s.process, s.name, arg0, arg1, arg2, arg3, arg4, arg5, result FROM syscall s JOIN thread t ON t.id = s.thread "
                f"WHERE t.tid = {tid} ORDER BY s.process, s.time_ns"):
            args = [row[f"arg{i}"] & (2**64 - 1) for i in range(ARGUMENTS[row["name"]])]
            images.setdefault(row["process"], []).append((row["name"], args, row["result"] if row["result"] >= 0 else -1))
        return list(images.values())

    def assert_all_seen(self, trace):
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        self.assertEqual(trace.meta("syscall_source"), "kernel")
        self.assertEqual(int(trace.meta("syscalls_lost")), 0)
        self.assertEqual(int(trace.meta("syscalls_unmatched")), 0)

    def test_every_call_of_every_thread(self):
        """Names, arguments, results and order of each thread of each process are strace's."""
        trace_path = self.path("trace.db")
        log = self.path("strace.txt")
        run = subprocess.run(
            ["strace", "-ff", "-i", "-X", "raw", "-e", f"trace={NAMES},execve", "-e", "signal=none", "-o", log,
             recording.HEAPLEDGER, "record", "--syscalls", "kernel", "-o", trace_path, "--", recording.victim("syscall_paths")],
            capture_output=True, cwd=self.folder, timeout=recording.TIMEOUT_S)
        trace = recording.Trace(trace_path, run)
        self.assert_all_seen(trace)
        tids = [row["tid"] for row in trace.sql("SELECT DISTINCT tid FROM thread")]
        self.assertGreaterEqual(len(tids), 7)  # Main, three threads, three children.
        main = trace.one("SELECT pid FROM process WHERE id = 1")
        seen = {tid: strace_images(f"{log}.{tid}") for tid in tids}
        seen[main] = seen[main][1:]  # Before: `record`, about to run the program.
        recorded = {tid: self.rows(trace, tid) for tid in tids}
        # A vfork child works on its parent's memory while that sleeps: its calls are told as the parent's.
        (vforked,) = [tid for tid in tids if not recorded[tid]]
        calls = seen.pop(vforked)[0]
        self.assertEqual(len(calls), 8)
        last = len(seen[main][-1]) - 4
        seen[main][-1][last:last] = calls
        total = 0
        for tid in seen:
            images = [image for image in seen[tid] if image]
            self.assertEqual(len(images), len(recorded[tid]), tid)
            for image, rows in zip(images, recorded[tid]):
                self.assertEqual(image, rows, tid)
                total += len(rows)
        self.assertGreater(total, 600)

    def counts(self, trace, columns, where="1"):
        """What a new arena's heap unmaps is left out: of 128 MiB both ends, but one where the kernel happened to align it, 1 run in 32."""
        return {tuple(row[c] for c in columns): row["n"] for row in trace.sql(
            f"SELECT {', '.join(columns)}, count(*) AS n FROM syscall WHERE {where} AND NOT (name = 'munmap' AND coalesce(cause, '') = 'new heap') "
            f"GROUP BY {', '.join(columns)}")}

    def test_nothing_is_counted_twice(self):
        """The allocator's and the wrappers' calls are those of a run without; the others come on top, with who made them."""
        native = self.native([recording.victim("syscall_paths")])
        kernel = self.record([recording.victim("syscall_paths")], ["--syscalls", "kernel", "--quiet"], name="kernel.db")
        self.assertEqual((kernel.run.returncode, kernel.run.stdout, kernel.run.stderr), (native.returncode, native.stdout, native.stderr))
        wrappers = self.record([recording.victim("syscall_paths")], name="wrappers.db")
        self.assert_all_seen(kernel)
        self.assertEqual(wrappers.meta("syscall_source"), "wrappers")
        by_allocator = "origin = 'allocator'"
        self.assertEqual(self.counts(kernel, ("process", "name", "cause"), by_allocator),
                         self.counts(wrappers, ("process", "name", "cause"), by_allocator))
        by_libc = f"origin = 'program' AND (arg1 IN ({LIB}, {2 * LIB}))"
        self.assertEqual(self.counts(kernel, ("process", "name"), by_libc), self.counts(wrappers, ("process", "name"), by_libc))
        # Four times all_ways of 25 each, 3 after dlopen; the child of fork 25; before its exec 1, and 25 after it.
        raw = self.counts(kernel, ("name",), f"origin = 'program' AND arg1 = {RAW}")
        self.assertEqual(raw, {("mmap",): 154, ("mprotect",): 154, ("munmap",): 154})
        own = self.counts(kernel, ("name",), f"origin = 'program' AND arg1 = {OWN}")
        self.assertEqual(own, {("mmap",): 120, ("munmap",): 120})
        self.assertEqual(self.counts(wrappers, ("name",), f"arg1 IN ({RAW}, {OWN})"), {})
        # The linker's own, and libc's for thread stacks.
        self.assertGreater(self.counts(kernel, ("origin",))[("loader",)], 30)
        self.assertNotIn(("loader",), self.counts(wrappers, ("origin",)))
        self.assertGreaterEqual(kernel.one("SELECT count(*) FROM syscall WHERE name = 'mmap' AND origin = 'program' AND arg1 > 8000000"), 1)
        # Who made them: the function that called syscall(), the one with the instruction in it.
        callers = {row["text"] for row in kernel.sql(
            f"SELECT DISTINCT text FROM syscall s JOIN stack_text t ON t.id = s.stack WHERE s.arg1 = {RAW} AND s.process = 1 AND s.origin = 'program'")}
        self.assertTrue(callers and all("by_syscall" in text and text.endswith("[incomplete]") for text in callers), callers)

    def test_times_are_the_kernels(self):
        """Calls of a thread do not overlap, and lie in its life; the reports say who saw them."""
        trace = self.record([recording.victim("syscall_mix")], ["--syscalls", "kernel"])
        self.assert_all_seen(trace)
        overlaps = trace.one(
            "SELECT count(*) FROM (SELECT time_ns, duration_ns, lead(time_ns) OVER (PARTITION BY thread ORDER BY time_ns) AS next FROM syscall) "
            "WHERE time_ns + duration_ns > next")
        self.assertEqual(overlaps, 0)
        summary = trace.report("summary")
        self.assertEqual(summary["syscall_source"], "kernel")
        self.assertEqual(summary["syscalls_lost"], 0)
        self.assertGreater(summary["syscalls"]["mmap"]["loader"]["count"], 5)
        report = trace.report("syscalls")
        total = trace.one("SELECT count(*) FROM syscall WHERE origin != 'recorder'")
        self.assertEqual(sum(row["count"] for row in report["rows"]), total)

    def test_without_page_faults_and_with_a_bare_preload(self):
        """The kernel's word on forks and execs comes with the calls where no page faults are recorded; a preload is attached late."""
        trace = self.record([recording.victim("syscall_paths")], ["--syscalls", "kernel", "--no-faults"])
        self.assert_all_seen(trace)
        self.assertEqual(trace.one("SELECT count(*) FROM process"), 5)  # Main, three children, one of them two programs.
        path = self.path("bare.db")
        shim = os.path.join(recording.BIN, "libheapledger.so")
        run = subprocess.run([recording.victim("syscall_mix")], capture_output=True, cwd=self.folder, timeout=recording.TIMEOUT_S,
                             env=dict(os.environ, LD_PRELOAD=shim, HEAPLEDGER_OUTPUT=path, HEAPLEDGER_SYSCALLS="kernel"))
        self.wait_complete(path)
        bare = recording.Trace(path, run)
        self.assert_all_seen(bare)
        self.assert_clean(bare)  # Its first event is earlier than the collector.

    def wait_complete(self, path):
        for _ in range(600):
            done = subprocess.run(["sqlite3", "-cmd", ".timeout 5000", path, "SELECT value FROM meta WHERE key = 'state'"], capture_output=True, text=True)
            if done.stdout.strip() == "complete":
                return
            subprocess.run(["sleep", "0.05"], check=True)
        self.fail("the recording did not end")


class KernelSyscallsRefused(recording.RecordingTest):
    user = "nobody"

    def test_it_says_why_and_goes_on_with_the_wrappers(self):
        probe = subprocess.run(self.as_user([os.path.join(recording.BIN, "heapledger-collector"), "--probe-syscalls"]),
                               capture_output=True, text=True, timeout=recording.TIMEOUT_S)
        if probe.returncode == 0:
            self.skipTest("every user may read tracefs here")
        trace = self.record([recording.victim("syscall_mix")], ["--syscalls", "kernel"])
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        said = [line for line in trace.run.stderr.decode().splitlines() if "--syscalls kernel" in line]
        self.assertEqual(len(said), 1, trace.run.stderr)
        self.assertIn(probe.stdout.strip(), said[0])
        self.assertEqual(trace.meta("syscall_source"), "wrappers")
        self.assertEqual(trace.meta("syscall_note"), probe.stdout.strip())
        self.assertGreater(trace.one("SELECT count(*) FROM syscall WHERE origin = 'allocator'"), 10)
        self.assertEqual(trace.report("syscalls")["syscall_source"], "wrappers")


if __name__ == "__main__":
    recording.main()
