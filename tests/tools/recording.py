# SPDX-License-Identifier: Apache-2.0
"""What the tests of the front command share: where it lies, and runs with and without it."""
import os
import shutil
import subprocess
import tempfile
import unittest

BIN = os.environ["HEAPLEDGER_BIN"]
HEAPLEDGER = os.path.join(BIN, "heapledger")
PROGRAMS = os.environ["HEAPLEDGER_TEST_PROGRAMS"]
LIMIT_S = 60  # Of one run; generous, so that only a hang fails by it.


class RecordingTest(unittest.TestCase):
    """Each test has a folder of its own, as current folder of what it runs."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="heapledger-test-")
        self.trace = os.path.join(self.folder, "trace.db")

    def tearDown(self):
        shutil.rmtree(self.folder)

    def run_native(self, *command, **options):
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("cwd", self.folder)
        return subprocess.run(command, capture_output=True, timeout=LIMIT_S, **options)

    def record(self, *command, flags=("--quiet", "--force"), **options):
        return self.run_native(
            HEAPLEDGER, "record", "-o", self.trace, *flags, "--", *command, **options)

    def copy_programs(self, folder):
        """Puts a copy of what a recording needs there; the build may be in a private folder."""
        os.makedirs(folder, exist_ok=True)
        for name in ("heapledger", "heapledger-collector", "heapledger-analyzer", "libheapledger.so"):
            shutil.copy(os.path.join(BIN, name), folder)
        return os.path.join(folder, "heapledger")

    def heapledger(self, *arguments, **options):
        return self.run_native(HEAPLEDGER, *arguments, **options)

    def sql(self, query):
        """Rows of a query on the plain tables of the trace, as lists of texts."""
        result = self.run_native("sqlite3", "-batch", "-cmd", ".timeout 20000", self.trace, query, text=True)
        self.assertEqual(result.stderr, "")
        return [line.split("|") for line in result.stdout.splitlines()]

    def assertOneLine(self, stderr, *words):
        """An error is one line on stderr, `heapledger: <command>: <what>: <why>`."""
        text = stderr.decode()
        self.assertEqual(text.count("\n"), 1, text)
        self.assertTrue(text.startswith("heapledger: "), text)
        for word in words:
            self.assertIn(word, text)
