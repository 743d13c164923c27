# SPDX-License-Identifier: Apache-2.0
"""Table syscall against what strace sees with an instruction pointer inside libheapledger.so."""

import ast
import json
import re
import subprocess

import recording

LINE = re.compile(r"^\[([0-9a-f]+)\] (brk|mmap|munmap|mremap|madvise|mprotect)\((.*)\)\s+= (\S+)")
ARGUMENTS = {"brk": 1, "mmap": 6, "munmap": 2, "mremap": 5, "madvise": 3, "mprotect": 3}
NAMES = "brk,mmap,munmap,mremap,madvise,mprotect"


def to_number(text):
    text = text.strip()
    if text == "NULL":
        return 0
    return int(text, 16) if text.startswith("0x") else ast.literal_eval(text)


def strace_calls(path):
    """(ip, name, args, result) of each call of one thread; flags are numbers (strace -X raw)."""
    with open(path, encoding="ascii", errors="replace") as lines:
        for line in lines:
            match = LINE.match(line)
            if match is None:
                continue
            ip, name, args, result = match.groups()
            numbers = [to_number(a) for a in args.split(",")]
            if name == "mremap" and len(numbers) == 4:
                numbers.append(0)  # strace leaves out what the flags do not use.
            yield int(ip, 16), name, [n & (2**64 - 1) for n in numbers], to_number(result)


class Syscalls(recording.RecordingTest):
    def check(self, command, options=()):
        trace_path = self.path("trace.db")
        log = self.path("strace.txt")
        run = subprocess.run(
            ["strace", "-ff", "-i", "-X", "raw", "-e", f"trace={NAMES}", "-e", "signal=none", "-o", log,
             recording.HEAPLEDGER, "record", "-o", trace_path, *options, "--", *command],
            capture_output=True, cwd=self.folder, timeout=recording.TIMEOUT_S)
        self.assertEqual(run.returncode, 0, run.stderr)
        trace = recording.Trace(trace_path, run)
        pid = trace.one("SELECT pid FROM process WHERE id = 1")
        shim = trace.sql(
            "SELECT start_address AS first, end_address AS last FROM module WHERE process = 1 AND path LIKE '%libheapledger.so'")
        self.assertEqual(len(shim), 1)

        # One thread: with a log per thread (-ff) no call is cut in two by another thread's.
        seen = [(name, args, result) for ip, name, args, result in strace_calls(f"{log}.{pid}")
                if shim[0]["first"] <= ip < shim[0]["last"]]
        recorded = trace.sql(
            "SELECT name, arg0, arg1, arg2, arg3, arg4, arg5, result, origin FROM syscall "
            "WHERE process = 1 AND (origin != 'program' OR name = 'brk') ORDER BY time_ns")
        rows = []
        for row in recorded:
            args = [row[f"arg{i}"] & (2**64 - 1) for i in range(ARGUMENTS[row["name"]])]
            rows.append((row["name"], args, row["result"] if row["result"] >= 0 else -1))
        self.assertEqual(seen, rows)
        # The recorder's own are rows of their own, of the kinds that meta names.
        own = {row["name"] for row in recorded if row["origin"] == "recorder"}
        self.assertLessEqual(own, set(json.loads(trace.meta("recorder_calls"))))
        self.assertGreater(sum(row["origin"] == "allocator" for row in recorded), 2)
        # The program's own, but for brk, go through libc: they are seen there, and recorded all the same.
        own_calls = trace.sql("SELECT name, count(*) AS n FROM syscall WHERE process = 1 AND origin = 'program' GROUP BY name")
        return {row["name"]: row["n"] for row in own_calls}

    def test_growth_trim_and_mapped_blocks(self):
        own = self.check([recording.victim("syscall_mix")])
        self.assertGreaterEqual(own["mmap"], 2)
        for name in ("mprotect", "madvise", "mremap", "munmap", "brk"):
            self.assertGreaterEqual(own.get(name, 0), 1, name)

    def test_fixed_threshold(self):
        self.check([recording.victim("syscall_mix")], ["--mmap-threshold", "64K"])

    def test_real_programs(self):
        self.check(["perl", "-e", 'my @a; push @a, "x" x ($_ % 5000) for 1 .. 20000; @a = (); print "done\\n"'])
        self.check(["sqlite3", ":memory:", "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 200000) "
                    "SELECT length(group_concat(x)) FROM c;"], ["--force"])


if __name__ == "__main__":
    recording.main()
