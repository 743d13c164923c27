# SPDX-License-Identifier: Apache-2.0
"""`heapledger doctor` says what is so: works where recording works, and not where it does not."""
import json
import os
import unittest

from recording import RecordingTest


class Doctor(RecordingTest):
    def checks(self, **options):
        result = self.heapledger("doctor", "--json", **options)
        report = json.loads(result.stdout)
        self.assertEqual(result.returncode, 0 if report["recording"] else 1)
        return report["recording"], {check["name"]: check for check in report["checks"]}

    def test_recording_works(self):
        # Goal: on a machine that runs these tests, recording works, and doctor leaves nothing behind.
        works, checks = self.checks()
        self.assertTrue(works)
        self.assertEqual(checks["recording"]["state"], "ok")
        self.assertEqual(checks["preload"]["state"], "ok")
        self.assertEqual(os.listdir(self.folder), [])

    def test_broken_collector(self):
        # Goal: a collector that cannot start is noticed, with a command that shows why.
        works, checks = self.checks(env=dict(os.environ, HEAPLEDGER_COLLECTOR="/bin/false"))
        self.assertFalse(works)
        self.assertEqual(checks["recording"]["state"], "no")
        self.assertIn("heapledger record", checks["recording"]["command"])

    def test_tracepoints(self):
        # Goal: doctor says of system calls what a recording then does, and names a command where root could change it.
        _, checks = self.checks()
        check = checks["tracepoints"]
        if check["state"] != "ok":
            self.assertIn("wrappers", check["detail"])
            self.assertTrue(check["command"].startswith("sudo ") or os.geteuid() == 0, check)
        trace = os.path.join(self.folder, "trace.db")
        run = self.heapledger("record", "-o", trace, "--syscalls", "kernel", "/bin/true")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(b"--syscalls kernel" in run.stderr, check["state"] != "ok", run.stderr)

    def test_text(self):
        # Goal: one line a check, the verdict last.
        result = self.heapledger("doctor")
        lines = result.stdout.decode().splitlines()
        self.assertEqual(lines[-1], "Recording works here.")
        self.assertTrue(any(line.startswith("page faults ") for line in lines))


if __name__ == "__main__":
    unittest.main()
