# SPDX-License-Identifier: Apache-2.0
"""What malloc returns at its edges, and malloc where little works: the same on glibc, on the shim alone, and recorded.

The victims print what they saw, without addresses, a section at a time.
"""

import concurrent.futures
import os
import subprocess

import recording

SHIM = os.path.join(recording.BIN, "libheapledger.so")
SECTION_TIMEOUT_S = 120

# Sections that damage or block glibc's own heap now and then, by an interrupted malloc or blocks of another libc: what the shim must
# print there.
WITHOUT_GLIBC = {
    "handlers_that_allocate": "main: 1\nhandler: 1\nwork: 1\n",
    "handlers_on_another_stack": "main: 1\nhandler: 1\n",
    "blocks_of_another_libc": "loaded: 1\nusable: 1\nusable: 1\nusable: 1\nusable: 1\nresized: 7\nwork: 1\nwork: 1\n",
    "handlers_in_threads": "threads: 4\nhandlers: 1\nwork: 1\n",
    "jumps_out_of_handlers": "jumps: 300\nwork: 1\n",
}


def run(command, **environment):
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECTION_TIMEOUT_S, check=False, env={**os.environ, **environment})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Sections:
    """Test cases over the sections of one victim, as a mix-in."""

    victim = ""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.program = recording.victim(cls.victim)
        cls.sections = run([cls.program, "list"])[1].split()
        assert len(cls.sections) >= 10, cls.sections
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            cls.expected = dict(zip(cls.sections, pool.map(cls.expect, cls.sections)))

    @classmethod
    def expect(cls, section):
        if section in WITHOUT_GLIBC:
            return 0, WITHOUT_GLIBC[section], ""
        return run([cls.program, section])

    def compare(self, run_section):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for section, outcome in zip(self.sections, pool.map(run_section, self.sections)):
                with self.subTest(section):
                    self.assertEqual(self.expected[section][0], 0, self.expected[section])
                    self.assertGreater(len(self.expected[section][1]), 0)
                    self.assertEqual(outcome, self.expected[section])

    def test_unrecorded(self):
        self.compare(lambda section: run([self.program, section], LD_PRELOAD=SHIM, HEAPLEDGER_RECORD="off"))

    def test_recorded(self):
        def record(section):
            trace = self.record([self.program, section], ["--quiet", "--wait"], name=section + ".db", stdin=subprocess.DEVNULL)
            lost = trace.one("SELECT sum(events_lost) FROM process")
            return trace.run.returncode, trace.run.stdout.decode(), trace.run.stderr.decode() + (f"{lost} calls lost" if lost else "")

        self.compare(record)


class Calls(Sections, recording.RecordingTest):
    victim = "semantics"


class Environment(Sections, recording.RecordingTest):
    victim = "environment"


if __name__ == "__main__":
    recording.main()
