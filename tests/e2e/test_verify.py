# SPDX-License-Identifier: Apache-2.0
"""`record --verify-stacks`: each stack against libunwind's, over programs of all kinds and the victims whose stacks lead a hard life."""

import os
import shutil
import subprocess

import recording

PYTHON = "import json, threading; t = threading.Thread(target=lambda: json.dumps({str(i): [i] * (i % 7) for i in range(2000)})); t.start(); t.join()"
PERL = 'my %h; for my $i (1 .. 3000) { $h{"key$i"} = "x" x ($i % 100); } print scalar(keys %h), "\\n";'
SQL = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 3000) SELECT count(*), max('row ' || x) FROM c"


class Verify(recording.RecordingTest):
    def check(self, command, share=0.99, options=(), name="trace.db", **run_options):
        """Records under --verify-stacks; nothing may differ. Returns what the summary says of it."""
        trace = self.record(command, ["--quiet", "--no-faults", "--verify-stacks", *options], name=name, **run_options)
        self.assertEqual(trace.run.stderr, b"")
        check = trace.report("summary")["stack_check"]
        notes = [row["text"] for row in trace.sql("SELECT text FROM mark WHERE kind = 'note' AND text LIKE '%libunwind%'")]
        self.assertEqual((check["mismatched"], notes), (0, []), command)
        self.assertGreater(check["compared"], 100, command)
        self.assertGreaterEqual(check["share"], share, (command, check))
        columns = trace.sql("SELECT sum(stacks_compared) AS compared, sum(stacks_mismatched) AS mismatched,"
                            " sum(stacks_incomparable) AS incomparable FROM process")[0]
        self.assertEqual(columns, {name: check[name] for name in columns})
        return check

    def program(self, *command):
        if shutil.which(command[0]) is None:
            self.skipTest(f"{command[0]} is not installed")
        self.check(list(command), options=["--free-stacks", "--stack-depth", "1000"])

    def test_python(self):
        self.program("/usr/bin/python3", "-S", "-c", PYTHON)

    def test_perl(self):
        self.program("perl", "-e", PERL)

    def test_sqlite(self):
        self.program("sqlite3", ":memory:", SQL)

    def test_xz(self):
        self.program("xz", "-T2", "--block-size=64KiB", "-k", "-c", os.path.join(recording.BIN, "heapledger"))

    def test_compiler(self):
        with open(self.path("source.cc"), "w", encoding="ascii") as file:
            file.write("struct Pair { int a, b; }; template <int N> int f(Pair p) { return p.a + f<N - 1>(p); }"
                       " template <> int f<0>(Pair p) { return p.b; } int main() { return f<200>({1, 2}); }\n")
        if shutil.which("g++") is None:
            self.skipTest("g++ is not installed")
        self.check(["g++", "-O1", "-S", "-o", "source.s", "source.cc"], options=["--stack-depth", "1000"])

    # Goal: what is not asked for is not there.
    def test_without_the_option_nothing_is_said(self):
        trace = self.record(["/bin/true"], ["--quiet"])
        self.assertIsNone(trace.report("summary")["stack_check"])
        self.assertIsNone(trace.one("SELECT stacks_compared FROM process WHERE id = 1"))

    # Goal: the walks that earlier designs got wrong. Method: victims with huge frames, frames that replace each other, stacks beyond the
    # kept depth (which must not be built upon), libraries at one address, coroutines, longjmp, handlers.
    def check_victim(self, victim):
        program = recording.victim(victim)
        for section in subprocess.run([program, "list"], capture_output=True, text=True, check=True).stdout.split():
            with self.subTest(section):
                trace = self.record([program, section, self.path(section + ".log")],
                                    ["--quiet", "--no-faults", "--verify-stacks", "--free-stacks"], name=section + ".db")
                check = trace.report("summary")["stack_check"]
                notes = [row["text"] for row in trace.sql("SELECT text FROM mark WHERE kind = 'note' AND text LIKE '%libunwind%'")]
                self.assertEqual((check["mismatched"], notes), (0, []))
                self.assertGreater(check["compared"], 0)

    def test_in_a_sandbox(self):
        # Goal: nobody is killed for what libunwind asks of the kernel. Method: processes that allow themselves what malloc and fork need.
        command = [recording.victim("process_trees"), "in_a_sandbox"]
        native = self.native([*command, self.path("native.truth")])
        trace = self.record([*command, self.path("truth")], ["--quiet", "--wait", "--no-faults", "--verify-stacks", "--free-stacks"])
        self.assertEqual((trace.run.returncode, trace.run.stdout, trace.run.stderr), (0, native.stdout, b""))
        check = trace.report("summary")["stack_check"]
        self.assertEqual(check["mismatched"], 0)
        self.assertGreater(check["compared"], 10)  # Before the filter.

    def test_shapes(self):
        self.check_victim("stack_shapes")

    def test_switches(self):
        self.check_victim("stack_switches")

    def test_jumps(self):
        self.check_victim("stack_jumps")


if __name__ == "__main__":
    recording.main()
