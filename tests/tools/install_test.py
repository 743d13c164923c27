# SPDX-License-Identifier: Apache-2.0
"""An installed copy works, from any folder and under any prefix."""
import os
import subprocess
import unittest

from recording import BIN, RecordingTest


class Install(RecordingTest):
    def test_installed_copy_moved_elsewhere(self):
        # Goal: `cmake --install`, then the tree moved as a whole, then used from another folder: it
        # records and reports with its own parts. Method: the build tree is hidden from it by a
        # collector override that is unset, and by looking at what the program maps.
        prefix = os.path.join(self.folder, "prefix")
        build = os.path.dirname(BIN)
        installed = self.run_native("cmake", "--install", build, "--prefix", prefix, text=True)
        self.assertEqual(installed.returncode, 0, installed.stderr)
        moved = os.path.join(self.folder, "moved here")
        os.rename(prefix, moved)
        heapledger = os.path.join(moved, "bin", "heapledger")
        result = self.run_native(heapledger, "record", "--quiet", "-o", self.trace, "cat", "/proc/self/maps")
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        mapped = [line for line in result.stdout.decode().splitlines() if "libheapledger" in line]
        self.assertTrue(mapped)
        self.assertTrue(all(moved in line for line in mapped), mapped)
        summary = self.run_native(heapledger, "summary", self.trace)
        self.assertEqual((summary.returncode, summary.stderr), (0, b""))
        self.assertTrue(summary.stdout)
        for path in ("share/man/man1/heapledger.1", "share/man/man1/heapledger-record.1",
                     "share/bash-completion/completions/heapledger"):
            self.assertTrue(os.path.exists(os.path.join(moved, path)), path)
        version = subprocess.run([heapledger, "--version"], capture_output=True, check=True).stdout
        self.assertRegex(version, rb"^heapledger \d")


if __name__ == "__main__":
    unittest.main()
