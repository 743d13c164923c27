# SPDX-License-Identifier: Apache-2.0
"""Programs with raised privileges (AT_SECURE): the user's settings mean nothing to them, on the shim as on glibc, and nothing is recorded.

The loader ignores LD_PRELOAD there, so the shim is linked into the victim. Only root can make a setuid program; it is run as nobody.
"""

import os
import re
import shutil

import recording

SETTINGS = [
    {"MALLOC_MMAP_THRESHOLD_": "65536"},
    {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"},
]
OURS = {"HEAPLEDGER_MMAP_THRESHOLD": "65536"}
SHIM = "libheapledger.so"


def write_folder(program, folder):
    """Makes the loader look for the program's libraries in this folder."""
    with open(program, "rb") as file:
        content = file.read()
    placeholder = re.search(rb"/written-by-the-test-+", content).group()
    assert len(folder) <= len(placeholder), folder
    with open(program, "wb") as file:
        file.write(content.replace(placeholder, folder.encode().ljust(len(placeholder), b"\0")))


class Secure(recording.RecordingTest):
    user = "nobody"

    def setUp(self):
        super().setUp()
        os.chmod(self.folder, 0o755)  # Root's programs are in it.
        self.traces = self.path("traces")
        os.mkdir(self.traces)
        os.chmod(self.traces, 0o777)

    def program(self, name, is_setuid):
        path = self.path(name + ("_setuid" if is_setuid else "_plain"))
        shutil.copy(recording.victim(name), path)
        if name == "secure_linked":
            write_folder(path, recording.public_copy())
        os.chmod(path, 0o4755 if is_setuid else 0o755)
        return path

    def outcome(self, name, is_setuid, variables):
        """What it prints, and nothing else."""
        # With privileges it need not be told: it records for no user.
        recording_off = {} if is_setuid else {"HEAPLEDGER_RECORD": "off"}
        run = self.native([self.program(name, is_setuid)], env={**os.environ, **recording_off, **variables})
        self.assertEqual((run.returncode, run.stderr), (0, b""))
        return run.stdout.decode().strip()

    def test_settings_count_without_privileges(self):
        for setting in SETTINGS:
            self.assertRegex(self.outcome("secure", False, setting), "^secure 0, malloc of libc.*, mapped 1$")
        for setting in SETTINGS + [OURS]:
            self.assertEqual(self.outcome("secure_linked", False, setting), f"secure 0, malloc of {SHIM}, mapped 1")

    def test_settings_mean_nothing_with_them(self):
        for setting in SETTINGS:
            self.assertRegex(self.outcome("secure", True, setting), "^secure 1, malloc of libc.*, mapped 0$")
        for setting in SETTINGS + [OURS]:
            self.assertEqual(self.outcome("secure_linked", True, setting), f"secure 1, malloc of {SHIM}, mapped 0")

    def test_the_loader_does_not_preload_the_shim(self):
        shim = os.path.join(recording.public_copy(), SHIM)
        self.assertRegex(self.outcome("secure", False, {"LD_PRELOAD": shim}), f"^secure 0, malloc of {SHIM}, mapped 0$")
        self.assertRegex(self.outcome("secure", True, {"LD_PRELOAD": shim}), "^secure 1, malloc of libc.*, mapped 0$")

    def recorded(self, command, options=()):
        return self.record(command, options, name=os.path.join("traces", "trace.db"))

    def test_record_says_so_in_one_line(self):
        for name in ("secure", "secure_linked"):
            program = self.program(name, True)
            trace = self.recorded([program], ["--quiet", "--force"] if os.path.exists(self.path("traces/trace.db")) else ["--quiet"])
            self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
            self.assertRegex(trace.run.stdout, b"^secure 1, .*, mapped 0\n$")
            lines = trace.run.stderr.decode().splitlines()
            self.assertEqual(len(lines), 1, lines)
            self.assertIn("raised privileges (setuid)", lines[0])

    def test_nothing_of_it_is_recorded(self):
        """Though the shim is in the process, and was told where to record by its parent."""
        program = self.program("secure_linked", True)
        trace = self.recorded(["sh", "-c", program + "; exit 0"])
        self.assertRegex(trace.run.stdout, b"^secure 1, malloc of libheapledger.so, mapped 0\n$")
        rows = trace.sql("SELECT recorded, reason FROM process WHERE exe LIKE '%/secure_linked_setuid'")
        self.assertEqual([row["recorded"] for row in rows], [0])
        self.assertIn("setuid", rows[0]["reason"])
        plain = self.recorded([self.program("secure_linked", False)], ["--force"])
        self.assertEqual([row["recorded"] for row in plain.sql("SELECT recorded FROM process")], [1])


if __name__ == "__main__":
    recording.main()
