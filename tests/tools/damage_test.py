# SPDX-License-Identifier: Apache-2.0
"""Damaged traces: cut anywhere, bytes changed, values changed, another version, not SQLite at all. The answer is a report or one clear
line, never a signal. HEAPLEDGER_BIN is the folder with the programs. For longer runs by hand, under a sanitizer, too:
HEAPLEDGER_DAMAGE_SECONDS asks for more rounds than the test's own, HEAPLEDGER_DAMAGE_ANALYZER for another analyzer,
HEAPLEDGER_SEED for the rounds of an earlier run. What fails is kept as /tmp/heapledger-damaged-trace.db."""

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
ANALYZER = os.environ.get("HEAPLEDGER_DAMAGE_ANALYZER", os.path.join(BIN, "heapledger-analyzer"))
SECONDS = float(os.environ.get("HEAPLEDGER_DAMAGE_SECONDS", "0"))
SEED = int(os.environ.get("HEAPLEDGER_SEED", time.time() if SECONDS else 2))
REPORTS = ("summary", "ledger", "fragmentation", "leaks", "faults", "syscalls", "threads", "timeline", "layout", "peak", "hotspots",
           "temporary", "lifetimes", "sizes", "sweep", "advise", "diff", "check", "export")
# Values that nobody writes.
STRANGE = (0, 1, -1, 2**31, 2**32, 2**47, 2**63 - 1, -2**63, 0.5, 1e300, None, "", "text", "\u00fc" * 300, b"", b"\x00\xff\x80")
# Two programs, a shell's subshell, threads that end.
PROGRAM = ["sh", "-c", "(ls / >/dev/null); xz -T2 -c /bin/ls | cat >/dev/null"]


class Damage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="heapledger-damage-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        good = os.path.join(cls.folder, "good.db")
        subprocess.run([os.path.join(BIN, "heapledger"), "record", "--quiet", "--wait", "-o", good, "--", *PROGRAM],
                       check=True, capture_output=True, timeout=120)
        with open(good, "rb") as file:
            cls.final = file.read()
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
        options = {"export": ("--format", "folded", "-o", "/dev/null"), "diff": (path,), "check": ("--max", "live_bytes_end=1")}
        done = subprocess.run([ANALYZER, report, path, *options.get(report, ("--json",))], capture_output=True, timeout=120)
        error = done.stderr.decode(errors="replace")
        good = done.returncode in ((0, 1, 3) if report == "check" else (0, 1))
        if good and done.returncode == 1:
            good = error.startswith(f"heapledger: {report}: ") and error.count("\n") == 1
        if not good:
            with open(os.path.join(tempfile.gettempdir(), "heapledger-damaged-trace.db"), "wb") as file:
                file.write(content)
        self.assertTrue(good, f"{report}: status {done.returncode}: {error}")
        return done.returncode

    def test_the_whole_trace_is_read(self):
        for report in REPORTS:
            for content in (self.good, self.final):
                self.assertIn(self.look(content, report), (0, 3), report)

    def test_cut_anywhere(self):
        generator = random.Random(1)
        lengths = [0, 1, 15, 16, 99, 100, 101, 4095, 4096, 4097, len(self.good) - 1]
        lengths += [generator.randrange(len(self.good)) for _ in range(25)]
        for i, length in enumerate(lengths):
            self.look(self.good[:length], REPORTS[i % len(REPORTS)])

    def test_bytes_changed(self):
        def change(generator):
            content = bytearray(generator.choice((self.good, self.final)))
            for _ in range(generator.choice((1, 1, 1, 4, 40))):
                content[generator.randrange(len(content))] = generator.randrange(256)
            return bytes(content)

        self.rounds(change)

    def rounds(self, change):
        """Looks at what `change` makes of the trace, again and again, in a report by turns."""
        generator = random.Random(SEED)
        until = time.monotonic() + SECONDS / 2  # There are two that take their time.
        rounds = 0
        while rounds < 40 or time.monotonic() < until:
            content = change(generator)
            with self.subTest(seed=SEED, round=rounds):
                self.look(content, REPORTS[rounds % len(REPORTS)])
            rounds += 1
        print(f"{rounds} rounds, seed {SEED}", file=sys.stderr)

    def test_values_changed(self):
        # Goal: a file that SQLite finds whole, with rows that make no sense. Method: some cells get values nobody writes, other rows'
        # values, or packed columns with bytes changed; rows go or come twice.
        path = os.path.join(self.folder, "values.db")

        def change(generator):
            with open(path, "wb") as file:
                file.write(generator.choice((self.good, self.final)))
            with sqlite3.connect(path) as db:
                names = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE '%VIRTUAL%'")]
                for _ in range(generator.choice((1, 1, 2, 10))):
                    self.change_table(db, generator, generator.choice(names))
            db.close()
            with open(path, "rb") as file:
                return file.read()

        self.rounds(change)

    def change_table(self, db, generator, table):
        rowids = [rowid for (rowid,) in db.execute(f"SELECT rowid FROM {table}")] if self.has_rowid(db, table) else []
        if not rowids:
            return
        row = generator.choice(rowids)
        kind = generator.randrange(10)
        try:
            if kind == 0:
                db.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
                return
            if kind == 1:
                db.execute(f"DELETE FROM {table} WHERE rowid > ?", (row,))
                return
            column = generator.choice([name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")])
            ((value,),) = db.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,))
            if kind < 4:
                ((value,),) = db.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (generator.choice(rowids),))
            elif isinstance(value, bytes) and value:
                value = bytearray(value)
                for _ in range(generator.choice((1, 1, 8))):
                    value[generator.randrange(len(value))] = generator.randrange(256)
                value = bytes(value[:generator.choice((len(value), len(value), generator.randrange(len(value) + 1)))])
            elif isinstance(value, int) and kind < 8:
                value = generator.choice((value + 1, value - 1, -value, value << 8, value ^ 1 << generator.randrange(62)))
                value = max(-2**63, min(2**63 - 1, value))
            else:
                value = generator.choice(STRANGE)
            db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))
        except sqlite3.DatabaseError:
            pass  # The schema forbids it.

    def has_rowid(self, db, table):
        ((text,),) = db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,))
        return "WITHOUT ROWID" not in text

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
