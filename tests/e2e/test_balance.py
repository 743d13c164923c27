# SPDX-License-Identifier: Apache-2.0
"""The books balance: a victim at rest against its own account and the kernel's, line by line; real programs at every snapshot."""

import os
import random
import shutil
import subprocess
import time

import recording

PAGE = 4096


class Steps:
    """One recording of at_rest: what the victim said, and the ledger at each of its marks."""

    def __init__(self, test):
        self.trace = test.record([recording.victim("at_rest")], ["--fault-source", "perf"])
        test.assertEqual(self.trace.run.returncode, 0, self.trace.run.stderr)
        self.said = {}
        for line in self.trace.run.stdout.decode().splitlines():
            words = line.split()
            pairs = dict(word.split("=") for word in words if "=" in word)
            self.said[" ".join(word for word in words if "=" not in word)] = {key: int(value) for key, value in pairs.items()}
        # The snapshot that a mark waited for is the first of its process that began after it.
        rows = self.trace.sql(
            "SELECT m.text AS text, p.pid AS pid, b.*, (s.end_ns) AS end_ns FROM mark m JOIN process p ON p.id = m.process"
            " JOIN snapshot s ON s.id = (SELECT id FROM snapshot WHERE process = m.process AND reason = 'mark' AND time_ns >= m.time_ns"
            " ORDER BY time_ns LIMIT 1) JOIN balance b ON b.snapshot = s.id WHERE m.kind = 'mark'")
        self.balance = {row["text"]: row for row in rows}
        self.ledgers = {}

    def ledger(self, step):
        if step not in self.ledgers:
            row = self.balance[step]
            self.ledgers[step] = self.trace.report("ledger", "--process", str(row["pid"]), "--at", "%.9f" % (row["end_ns"] / 1e9))
        return self.ledgers[step]

    def line(self, step, name, region=None):
        return sum(line["bytes"] for line in self.ledger(step)["lines"]
                   if line["name"] == name and region in (None, line["region"]) and line["source"] == "replay")

    def region(self, step, region):
        return sum(line["bytes"] for line in self.ledger(step)["lines"] if line["region"] == region)

    def moved(self, before, after, name, region=None):
        return self.line(after, name, region) - self.line(before, name, region)


class AtRest(recording.RecordingTest):
    steps = None

    @staticmethod
    def zero_page_is_known():
        return tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 7)

    def setUp(self):
        super().setUp()
        if AtRest.steps is None:
            AtRest.steps = Steps(self)
            self._cleanups.clear()  # The trace is for all of them.
            self.addClassCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def test_residual_is_zero_at_every_step(self):
        self.assertGreaterEqual(set(self.steps.balance), set(self.steps.said) | {"child"})
        for step, row in self.steps.balance.items():
            if step.startswith("zeros") and not self.zero_page_is_known():
                continue
            self.assertEqual(row["residual_bytes"], 0, step)
            self.assertEqual(row["heap_bytes_min"], row["heap_bytes_max"], step)
            self.assertEqual(row["heap_bytes"] + row["other_bytes"], row["rss_bytes"], step)

    def test_faults_alone_explain_what_the_program_touched(self):
        """Without mlock, huge pages and zero pages the snapshots correct nothing."""
        for step in ("start", "touched", "untouched", "freed", "small", "cached", "below top", "top", "trimmed", "mapped", "dropped",
                     "unmapped", "zeros gone", "nothing left", "threads", "before fork"):
            self.assertEqual(self.steps.balance[step]["unfaulted_bytes"], 0, step)
            self.assertEqual(self.steps.balance[step]["touched_absent_bytes"], 0, step)

    def test_live_bytes_are_those_on_the_victims_present_pages(self):
        names = ["start", "touched", "untouched", "freed", "small", "cached", "below top", "top", "trimmed", "mapped", "dropped", "unmapped"]
        for before, after in zip(names, names[1:]):
            self.assertEqual(self.steps.moved(before, after, "requested by live blocks"),
                             self.steps.said[after]["present"] - self.steps.said[before]["present"], f"{before} -> {after}")

    def test_free_bytes_are_where_the_allocator_keeps_them(self):
        s = self.steps
        self.assertEqual(s.moved("untouched", "freed", "free in bins"), 100 * (5008 + 16))
        self.assertEqual(s.moved("untouched", "freed", "free in thread caches"), 0)
        self.assertEqual(s.moved("small", "cached", "free in thread caches"), 7 * (112 + 16))
        self.assertEqual(s.moved("small", "cached", "free in bins"), 0)
        self.assertEqual(s.moved("below top", "top", "free at the top"), 60000 + 16)
        self.assertEqual(s.line("below top", "free at the top"), 0)
        for step in s.said:
            self.assertEqual(s.line(step, "free, kind not known"), 0, step)
        # A trim leaves whole pages to no free chunk, but for the first of each.
        self.assertLess(s.line("trimmed", "free in bins"), s.line("top", "free in bins"))
        self.assertLessEqual(s.line("trimmed", "free at the top"), 2 * PAGE)

    def test_mappings_come_and_go(self):
        s = self.steps
        self.assertEqual(s.moved("trimmed", "mapped", "requested by live blocks", "mapped blocks"),
                         s.said["mapped"]["present"] - s.said["trimmed"]["present"])
        self.assertEqual(s.moved("mapped", "dropped", "requested by live blocks", "mapped blocks"), -50 * PAGE)
        self.assertEqual(s.region("unmapped", "mapped blocks"), s.region("trimmed", "mapped blocks"))

    def test_zero_page_takes_no_memory(self):
        s = self.steps
        if not self.zero_page_is_known():
            self.skipTest("before Linux 6.7 nobody can tell the zero page from another")
        self.assertEqual(s.balance["zeros read"]["touched_absent_bytes"], 50 * PAGE)
        self.assertEqual(s.balance["zeros written"]["touched_absent_bytes"], 30 * PAGE)
        self.assertEqual(s.balance["zeros written"]["heap_bytes"] - s.balance["zeros read"]["heap_bytes"], 20 * PAGE)
        upgrades = s.trace.one("SELECT count(*) FROM fault WHERE process = 1 AND touch = 'zero_upgrade'")
        self.assertGreaterEqual(upgrades, 20)

    def test_pages_without_a_fault_are_said_to_be_so(self):
        s = self.steps
        if s.said["locked"]["locked"]:
            # All of the mapping's 513 pages; the first was touched, for the header.
            self.assertEqual(s.balance["locked"]["unfaulted_bytes"], 512 * PAGE)
        if s.said["populated"]["done"]:
            self.assertEqual(s.balance["populated"]["unfaulted_bytes"], 100 * PAGE)
        self.assertEqual(s.region("own mapping", "program") - s.region("nothing left", "program"), 1 << 20)
        self.assertEqual(s.region("own unmapped", "program"), s.region("nothing left", "program"))
        self.assertEqual(s.balance["own mapping"]["heap_bytes"], s.balance["nothing left"]["heap_bytes"])

    def test_huge_page_is_one_fault_and_two_mebibytes(self):
        s = self.steps
        if not s.said["huge"]["huge"]:
            self.skipTest("the kernel gave no huge page")
        self.assertEqual(s.balance["huge"]["huge_bytes"], 2 << 20)
        self.assertEqual(s.balance["huge"]["unfaulted_bytes"], 511 * PAGE)
        self.assertEqual(s.balance["huge gone"]["huge_bytes"], 0)

    def test_collapsed_page_has_what_was_never_touched(self):
        s = self.steps
        if not s.said["collapsed"]["collapsed"]:
            self.skipTest("the kernel makes no huge page of small ones")
        self.assertEqual(s.balance["collapsed"]["huge_bytes"], 2 << 20)
        self.assertEqual(s.balance["collapsed"]["unfaulted_bytes"], (512 - 100) * PAGE)
        self.assertEqual(s.balance["collapsed gone"]["huge_bytes"], 0)

    def test_each_thread_has_its_arena(self):
        s = self.steps
        for number in (2, 3, 4):
            self.assertEqual(s.line("threads", "requested by live blocks", f"arena {number}"), 100 * 2000)
        self.assertEqual(s.line("threads gone", "requested by live blocks", "arena 2"), 0)
        rows = s.trace.sql("SELECT arena, sum(blocks) AS blocks, sum(bytes) AS bytes, sum(freed) AS freed, sum(freed_foreign) AS foreign_frees"
                           " FROM arena_use WHERE process = 1 AND arena > 1 GROUP BY arena ORDER BY arena")
        self.assertEqual(rows, [{"arena": arena, "blocks": 100, "bytes": 100 * 2000, "freed": 100, "foreign_frees": 0} for arena in (2, 3, 4)])

    def test_child_shares_what_it_has_not_written(self):
        s = self.steps
        child = s.balance["child"]
        self.assertGreaterEqual(child["shared_bytes"], 80 * PAGE)
        self.assertEqual(s.line("child", "requested by live blocks"), s.line("before fork", "requested by live blocks"))
        copies = s.trace.one(f"SELECT count(*) FROM fault WHERE process = {child['process']} AND touch = 'cow'")
        self.assertGreaterEqual(copies, 10)


class RunningPrograms(recording.RecordingTest):
    """Snapshots of programs that run on: smaps' RSS lies within 0.5 % of the range that the replay gives, at every one of them."""

    def check(self, trace, threads=1):
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        rows = trace.sql("SELECT b.*, reason FROM balance b JOIN snapshot s ON s.id = b.snapshot")
        self.assertGreater(len(rows), 1)
        for row in rows:
            self.assertLess(abs(row["residual_bytes"]), 0.005 * row["rss_bytes"], row)
        ledger = trace.report("ledger")
        for page in (ledger, ledger["exit"]):
            lines = sum(line["bytes"] for line in page["lines"])
            self.assertEqual(lines + page["residual_bytes"], page["rss_bytes"])
            if threads == 1:  # The model's heap is the recorded one.
                self.assertEqual([line for line in page["lines"] if line["name"] == "free, kind not known"], [])
        # The peak is at a snapshot or between two, where faults and releases say how RSS moved.
        modelled = ledger["model_peak"]["rss_bytes"]
        self.assertGreaterEqual(modelled, 0.995 * max(row["rss_bytes"] for row in rows if row["process"] == ledger["process"]))
        # A thread that is put aside between a release and its stamp counts as holding the pages meanwhile, while others grow.
        self.assertAlmostEqual(modelled / ledger["rss_peak_bytes"], 1, delta=0.15 if threads == 1 else 0.5)

    def check_command(self, command, threads=1):
        if shutil.which(command[0]) is None:
            self.skipTest(f"{command[0]} is not installed")
        self.check(self.record(command, ["--wait", "--fault-source", "perf"]), threads)

    def test_python3(self):
        self.check_command([shutil.which("python3", path="/usr/bin:/bin"), "-c",
                            "x = [str(i) * (i % 50) for i in range(100000)]; y = {k: [k] for k in x}; del x"])

    def test_perl(self):
        self.check_command(["perl", "-e", "my %h; $h{$_} = 'x' x ($_ % 100) for 1 .. 60000; print scalar(keys %h);"])

    def test_sqlite3(self):
        self.check_command(["sqlite3", ":memory:", "create table t(a, b); with recursive c(x) as (select 1 union all select x + 1 from c where x < 40000)"
                            " insert into t select x, hex(randomblob(40)) from c; create index i on t(b); select count(*) from t;"])

    def test_cc1plus(self):
        with open(self.path("source.cc"), "w", encoding="utf-8") as file:
            file.write("#include <map>\n#include <string>\n#include <vector>\nstd::map<std::string, std::vector<int>> numbers;\n")
        self.check_command(["g++", "-std=c++17", "-O1", "-c", self.path("source.cc"), "-o", self.path("source.o")])

    def test_git(self):
        self.check_command(["sh", "-c", "git init -q r && cp -r /usr/include/linux r && cd r && git add . && git -c user.name=a -c user.email=a@b commit -qm all"
                            " && git repack -adq"])

    def test_node(self):
        self.check_command(["node", "-e", "const a = []; for (let i = 0; i < 100000; ++i) a.push({i, text: 'x'.repeat(i % 100) + i});"
                            "const m = new Map(); for (let i = 0; i < 50000; ++i) m.set('k' + i, Buffer.from('v' + i)); console.log(m.size, a.length);"], threads=2)

    def test_xz_with_two_threads(self):
        with open(self.path("noise"), "wb") as file:
            file.write(random.Random(5).randbytes(4 << 20))
        self.check_command(["xz", "-T2", "-0", "--block-size=1MiB", self.path("noise")], threads=2)

    def test_arenas_that_grow_and_shrink(self):
        trace = self.record([recording.victim("arena_work"), "4", "20000"], ["--fault-source", "perf"])
        self.check(trace, threads=4)
        regions = [row["region"] for row in trace.report("ledger")["regions"]]
        self.assertIn("arena 2", regions)

    def test_redis(self):
        if shutil.which("redis-server") is None or shutil.which("redis-benchmark") is None:
            self.skipTest("redis is not installed")
        socket = self.path("socket")
        path = self.path("trace.db")
        server = subprocess.Popen([recording.HEAPLEDGER, "record", "--quiet", "-o", path, "--fault-source", "perf", "--", "redis-server",
                                   "--port", "0", "--unixsocket", socket, "--save", "", "--dir", self.folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        client = ["redis-cli", "-s", socket]
        try:
            for _ in range(100):
                answer = subprocess.run([*client, "ping"], capture_output=True, text=True, check=False).stdout
                if answer == "PONG\n":
                    break
                time.sleep(0.1)
            self.assertEqual(answer, "PONG\n", "the server does not answer")
            load = ["redis-benchmark", "-s", socket, "-q", "-n", "5000", "-r", "5000", "-d", "300", "-t", "set,lpush"]
            subprocess.run(load, check=True, capture_output=True, timeout=recording.TIMEOUT_S)
            subprocess.run([*client, "flushall"], check=True, capture_output=True)
            subprocess.run(load, check=True, capture_output=True, timeout=recording.TIMEOUT_S)
            subprocess.run([*client, "shutdown", "nosave"], check=False, capture_output=True)
            out, errors = server.communicate(timeout=60)
        finally:
            server.kill()
            server.communicate()
        self.check(recording.Trace(path, subprocess.CompletedProcess(server.args, server.returncode, out, errors)), threads=4)


if __name__ == "__main__":
    recording.main()
