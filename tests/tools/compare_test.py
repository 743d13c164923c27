# SPDX-License-Identifier: Apache-2.0
"""`heapledger compare`: a program under each combination of settings, and given traces."""
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
import unittest

from recording import BIN, HEAPLEDGER, LIMIT_S, RecordingTest

CHURN = os.path.join(BIN, "demos", "churn")


class Compare(RecordingTest):
    def compared(self, *arguments):
        result = self.heapledger("compare", "--json", "--quiet", *arguments)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        return json.loads(result.stdout)

    def rows(self, *arguments):
        return self.compared(*arguments)["rows"]

    def test_documented_default_written_down(self):
        # Goal: the difference that the demo plants is seen: 128K written down costs many times the
        # faults and munmaps of 32M without trim. Method: a twentieth of the demo.
        compared = self.compared("--mmap-threshold", "128K,32M", "--trim-threshold", "512M", "--", CHURN, "0.05")
        rows = compared["rows"]
        self.assertEqual([row["settings"]["mmap_threshold"] for row in rows], [131072, 33554432])
        self.assertEqual([row["settings"]["trim_threshold"] for row in rows], [536870912] * 2)
        self.assertGreater(rows[0]["faults"], 5 * rows[1]["faults"])
        self.assertGreater(rows[0]["munmap"], 300)
        self.assertEqual(rows[1]["munmap"], 0)
        # And the stack that makes it is the first one named.
        self.assertEqual(compared["sites_of"]["less"], rows[1]["label"])
        site = compared["sites"][0]
        self.assertEqual(site["stack"][0]["function"], "read_message")
        self.assertGreater(site["faults_more"], 5 * site["faults_less"])
        self.assertGreater(site["mapped_blocks_more"], 300)
        self.assertGreater(site["difference_ns"], 0.9 * compared["sites_total"]["difference_ns"])

    def test_every_combination(self):
        # Goal: the cartesian product, the first list slowest; "default" leaves a setting alone.
        rows = self.rows("--mmap-threshold", "default,brk-only,mmap-only", "--top-pad", "default,1M",
                         "--", CHURN, "0.01")
        self.assertEqual(len(rows), 6)
        self.assertEqual([row["settings"]["top_pad"] for row in rows], [131072, 1048576] * 3)
        self.assertEqual(rows[2]["mmap"], 0)
        self.assertGreater(rows[4]["mmap"], 32)

    def test_runs_are_one_row(self):
        # Goal: --runs records each setting so often and shows medians. Method: the kept traces are
        # six, the rows two.
        keep = os.path.join(self.folder, "kept")
        rows = self.rows("--mmap-threshold", "128K,32M", "--runs", "3", "--keep", keep, "--", CHURN, "0.01")
        self.assertEqual(len(rows), 2)
        self.assertEqual(len([name for name in os.listdir(keep) if name.endswith(".db")]), 6)

    def test_given_traces(self):
        # Goal: the first form takes recordings made before.
        traces = []
        for threshold in ("128K", "32M"):
            traces.append(os.path.join(self.folder, threshold + ".db"))
            self.heapledger("record", "--quiet", "--mmap-threshold", threshold, "-o", traces[-1],
                            CHURN, "0.01")
        rows = json.loads(self.heapledger("compare", "--json", *traces).stdout)["rows"]
        self.assertEqual([row["settings"]["mmap_threshold"] for row in rows], [131072, 33554432])

    def test_traces_that_are_not_the_whole_truth_say_so(self):
        # Goal: lost calls and faults without addresses are on the page, with the trace's name. Method: one trace as it
        # should be, one without faults, one of which it is written that it lost some.
        names = {}
        for name, options in (("whole", []), ("no_faults", ["--no-faults"]), ("lossy", [])):
            names[name] = os.path.join(self.folder, name + ".db")
            self.heapledger("record", "--quiet", *options, "-o", names[name], CHURN, "0.01")
        with contextlib.closing(sqlite3.connect(names["lossy"])) as database:
            database.execute("UPDATE process SET events_lost = 7")
            database.commit()
        notes = json.loads(self.heapledger("compare", "--json", *names.values()).stdout)["notes"]
        self.assertIn(f"{names['no_faults']}: recorded without page faults' addresses", " ".join(notes))
        self.assertIn(f"{names['lossy']}: 7 calls were lost", " ".join(notes))
        source = json.loads(self.heapledger("summary", "--json", names["whole"]).stdout)["faults"]["source"]
        if source.startswith("perf"):  # Where it is refused, no trace is whole.
            self.assertNotIn(names["whole"], " ".join(notes))

    def test_output_and_input_of_the_program(self):
        # Goal: stdout is the comparison alone; each run reads the whole input file.
        path = os.path.join(self.folder, "input")
        with open(path, "w", encoding="ascii") as file:
            file.write("a line\n" * 100)
        script = "test $(tee /dev/stderr | wc -l) = 100"
        with open(path, encoding="ascii") as file:
            result = self.heapledger("compare", "--json", "--quiet", "--mmap-threshold", "128K,32M",
                                     "--", "sh", "-c", script, stdin=file)
        self.assertEqual(result.returncode, 0)
        self.assertEqual(len(json.loads(result.stdout)["rows"]), 2)
        self.assertEqual(result.stderr, b"a line\n" * 100)  # Of the first run only; none failed.

    def test_failing_program_is_named(self):
        result = self.heapledger("compare", "--quiet", "--mmap-threshold", "128K", "--", "false")
        self.assertEqual(result.returncode, 0)
        self.assertOneLine(result.stderr, "false: ended with status 1")

    def test_missing_program(self):
        result = self.heapledger("compare", "--quiet", "--", "nosuchprogram")
        self.assertEqual(result.returncode, 127)
        self.assertIn(b"nosuchprogram: No such file or directory", result.stderr)

    def test_interrupt_cleans_up(self):
        # Goal: Ctrl-C ends the program, then us by the same signal, and the temporary traces go.
        # Method: SIGINT to the whole group, as a terminal sends it.
        process = subprocess.Popen([HEAPLEDGER, "compare", "--quiet", "--", "sh", "-c", "echo up >&2; sleep 60"],
                                   env=dict(os.environ, TMPDIR=self.folder), start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.assertEqual(process.stderr.readline(), b"up\n")
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        self.assertEqual(process.wait(LIMIT_S), -signal.SIGINT)
        process.stderr.close()
        self.assertEqual(os.listdir(self.folder), [])


if __name__ == "__main__":
    unittest.main()
