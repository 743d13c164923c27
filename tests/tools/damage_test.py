# SPDX-License-Identifier: Apache-2.0
"""Damaged traces: cut anywhere, bytes changed, another version, not SQLite at all. The answer is a report or one clear line,
never a signal. HEAPLEDGER_BIN is the folder with the programs; HEAPLEDGER_DAMAGE_SECONDS asks for more rounds than the test's own."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest

BIN = os.environ["HEAPLEDGER_BIN"]
ANALYZER = os.path.join(BIN, "heapledger-analyzer")
SECONDS = float(os.environ.get("HEAPLEDGER_DAMAGE_SECONDS", "0"))
REPORTS = ("summary", "fragmentation", "leaks", "faults", "syscalls", "threads", "timeline", "layout", "peak")


class Damage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="heapledger-damage-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        good = os.path.join(cls.folder, "good.db")
        subprocess.run([os.path.join(BIN, "heapledger"), "record", "--quiet", "-o", good, "--", "/bin/ls", "/"],
                       check=True, capture_output=True, timeout=120)
        # As it was before the final pass: that reads most.
        with sqlite3.connect(good) as db:
            db.execute("DELETE FROM meta WHERE key = 'finalized'")
        db.close()
        with open(good, "rb") as file:
            cls.good = file.read()

    def look(self, content, report):
        """Writes the trace, asks for a report; the answer's status."""
        path = os.path.join(self.folder, "bad.db")
        for leftover in (path + "-journal", path + "-wal", path + "-shm"):
            if os.path.exists(leftover):
                os.remove(leftover)
        with open(path, "wb") as file:
            file.write(content)
        done = subprocess.run([ANALYZER, report, path, "--json"], capture_output=True, timeout=120)
        error = done.stderr.decode(errors="replace")
        if done.returncode not in (0, 1):
            shutil.copy(path, os.path.join(tempfile.gettempdir(), "heapledger-damaged-trace.db"))
        self.assertIn(done.returncode, (0, 1), f"{report}: {error}")
        if done.returncode == 1:
            self.assertTrue(error.startswith(f"heapledger: {report}: "), error)
            self.assertEqual(error.count("\n"), 1, error)
        return done.returncode

    def test_the_whole_trace_is_read(self):
        for report in REPORTS:
            self.assertEqual(self.look(self.good, report), 0)

    def test_cut_anywhere(self):
        generator = random.Random(1)
        lengths = [0, 1, 15, 16, 99, 100, 101, 4095, 4096, 4097, len(self.good) - 1]
        lengths += [generator.randrange(len(self.good)) for _ in range(25)]
        for i, length in enumerate(lengths):
            self.look(self.good[:length], REPORTS[i % len(REPORTS)])

    def test_bytes_changed(self):
        seed = int(time.time()) if SECONDS else 2
        generator = random.Random(seed)
        until = time.monotonic() + SECONDS
        rounds = 0
        while rounds < 60 or time.monotonic() < until:
            content = bytearray(self.good)
            for _ in range(generator.choice((1, 1, 1, 4, 40))):
                content[generator.randrange(len(content))] = generator.randrange(256)
            with self.subTest(seed=seed, round=rounds):
                self.look(bytes(content), REPORTS[rounds % len(REPORTS)])
            rounds += 1

    def test_no_trace_at_all(self):
        for content in (b"", b"hello", b"SQLite format 3\0" + b"\0" * 84, os.urandom(8192)):
            self.assertEqual(self.look(content, "summary"), 1)

    def test_another_version_and_another_application(self):
        for change, word in (("user_version = 999", "version"), ("application_id = 7", "trace")):
            path = os.path.join(self.folder, "other.db")
            with open(path, "wb") as file:
                file.write(self.good)
            with sqlite3.connect(path) as db:
                db.execute(f"PRAGMA {change}")
            db.close()
            done = subprocess.run([ANALYZER, "summary", path], capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 1)
            self.assertIn(word, done.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]], verbosity=2)
