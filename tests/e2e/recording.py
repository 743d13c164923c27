# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests share: run a program under `heapledger record`, and ask the trace.

HEAPLEDGER_BIN is the folder with the programs under test, HEAPLEDGER_VICTIMS that with the victim programs (both set by CTest).
Every recording lives in a temporary folder of its own.
"""

import atexit
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

BIN = os.environ["HEAPLEDGER_BIN"]
VICTIMS = os.environ["HEAPLEDGER_VICTIMS"]
HEAPLEDGER = os.path.join(BIN, "heapledger")
TIMEOUT_S = 240


def victim(name):
    return os.path.join(VICTIMS, name)


class Trace:
    """A finished recording and how its program ended."""

    def __init__(self, path, run):
        self.path = path
        self.run = run  # subprocess.CompletedProcess of `heapledger record`

    def sql(self, query):
        """Rows of a query, as dictionaries."""
        done = subprocess.run([HEAPLEDGER, "sql", self.path, query, "--json"], capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode != 0:
            raise AssertionError(f"sql failed: {done.stderr}\n{query}")
        return json.loads(done.stdout)

    def one(self, query):
        """The single value of a query."""
        rows = self.sql(query)
        assert len(rows) == 1 and len(rows[0]) == 1, rows
        return next(iter(rows[0].values()))

    def report(self, name, *options):
        """A report as parsed JSON."""
        done = subprocess.run([HEAPLEDGER, name, self.path, "--json", *options], capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode != 0:
            raise AssertionError(f"{name} failed: {done.stderr}")
        return json.loads(done.stdout)

    def with_events(self, query):
        """sql() with `e`, all rows of event, read once: a self-join on the virtual table would read it again and again."""
        return self.sql(f"WITH e AS MATERIALIZED (SELECT * FROM event) {query}")

    def meta(self, key):
        rows = self.sql(f"SELECT value FROM meta WHERE key = '{key}'")
        return rows[0]["value"] if rows else None


def public_copy():
    """The programs under test in a folder that every user may enter: the build folder may be private. Made once."""
    global _public
    if _public is None:
        _public = tempfile.mkdtemp(prefix="heapledger-e2e-public-")
        atexit.register(shutil.rmtree, _public, ignore_errors=True)
        os.chmod(_public, 0o755)
        for name in ("heapledger", "heapledger-analyzer", "heapledger-collector", "libheapledger.so"):
            shutil.copy(os.path.join(BIN, name), _public)
        for name in os.listdir(VICTIMS):
            shutil.copy(victim(name), _public)
    return _public


_public = None


class RecordingTest(unittest.TestCase):
    """A test case with a temporary folder and `record`."""

    # The user to record as: None for the one who runs the tests.
    user = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if cls.user is not None and os.geteuid() != 0:
            raise unittest.SkipTest(f"only root can become {cls.user}")

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="heapledger-e2e-")
        os.chmod(self.folder, 0o777)
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def as_user(self, command):
        if self.user is None:
            return command
        account = pwd.getpwnam(self.user)
        command = [word.replace(VICTIMS, public_copy()).replace(BIN, public_copy()) for word in command]
        return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--inh-caps=-all", *command]

    def native(self, command, **options):
        options.setdefault("timeout", TIMEOUT_S)
        return subprocess.run(self.as_user(command), capture_output=True, cwd=options.pop("cwd", self.folder), **options)

    def record(self, command, options=(), name="trace.db", **run_options):
        """Records `command`; returns the Trace. The exit status is the caller's to check."""
        trace = self.path(name)
        run_options.setdefault("timeout", TIMEOUT_S)
        run = subprocess.run(
            self.as_user([HEAPLEDGER, "record", "-o", trace, *options, "--", *command]),
            capture_output=True, cwd=run_options.pop("cwd", self.folder), **run_options)
        return Trace(trace, run)

    def assert_clean(self, trace, processes_lost=0):
        """Nothing was lost, and every id was ended at most once, in every process."""
        rows = trace.sql("SELECT coalesce(sum(events_lost), 0) AS lost FROM process")
        self.assertEqual(rows[0]["lost"], processes_lost)
        for column in ("ended_id", "id"):
            twice = trace.sql(
                f"SELECT process, {column}, count(*) AS n FROM event WHERE {column} != 0 GROUP BY process, {column} HAVING n > 1 LIMIT 5")
            self.assertEqual(twice, [])


def killed_by(returncode):
    """The signal of a subprocess' return code, or None."""
    return signal.Signals(-returncode) if returncode < 0 else None


def main():
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]], verbosity=2)
