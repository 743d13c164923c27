# SPDX-License-Identifier: Apache-2.0
"""What tools/bench/overhead runs programs under: each recorder prepares, gives a command prefix and an environment, and afterwards says
what it stored and lost."""

import ctypes
import glob
import os
import re
import shutil
import sqlite3
import subprocess
import time


class Stored:
    """What one run left: None where the recorder does not say."""

    def __init__(self, events=None, lost=None, size=None, calls=None, stacks=None, stall_ms=None, faults=None, faults_lost=None):
        self.events, self.lost = events, lost
        self.size, self.calls, self.stacks = size, calls, stacks  # Bytes: of everything; of calls; of their stacks.
        self.stall_ms, self.faults, self.faults_lost = stall_ms, faults, faults_lost


class Native:
    """glibc as it is."""

    label = "native glibc"

    def __init__(self, binaries, folder):
        self.binaries, self.folder = binaries, folder

    def missing(self):
        return None

    def prefix(self):
        return []

    def preload(self):
        return []

    def variables(self):
        return {}

    def before(self):
        pass

    def finish(self):
        """Until the recording is complete: part of the command's time."""

    def stored(self):
        return Stored()


class Off(Native):
    """heapledger's allocator, recording nothing."""

    label = "heapledger, off"

    def preload(self):
        return [os.path.join(self.binaries, "libheapledger.so")]

    def variables(self):
        return {"HEAPLEDGER_RECORD": "off"}


class Heapledger(Native):
    label = "heapledger"
    options = []

    def trace(self):
        return os.path.join(self.folder, "trace.db")

    def prefix(self):
        return [os.path.join(self.binaries, "heapledger"), "record", "--quiet", "--force", *self.options, "-o", self.trace(), "--"]

    def stored(self):
        connection = sqlite3.connect(f"file:{self.trace()}?mode=ro", uri=True)
        events, lost, stall_ns, faults, faults_lost = connection.execute(
            "SELECT sum(events), sum(events_lost), sum(stall_ns), sum(perf_minor + perf_major), sum(perf_lost) FROM process").fetchone()
        try:
            calls, stacks = (connection.execute(f"SELECT sum(pgsize) FROM dbstat WHERE name IN ({tables})").fetchone()[0] for tables in
                             ("'event_batch'", "'stack', 'frame'"))
        except sqlite3.OperationalError:  # This SQLite was built without dbstat.
            calls, stacks = connection.execute("SELECT sum(length(data)) FROM event_batch").fetchone()[0], None
        connection.close()
        return Stored(events, lost, os.path.getsize(self.trace()), calls, stacks, stall_ns / 1e6, faults, faults_lost)


class FreeStacks(Heapledger):
    label = "heapledger, free stacks"
    options = ["--free-stacks"]


class NoStacks(Heapledger):
    label = "heapledger, no stacks"
    options = ["--no-stacks"]


class NoFaults(Heapledger):
    label = "heapledger, no faults"
    options = ["--no-faults"]


class Heaptrack(Native):
    """Its recording is interpreted by a second process while the program runs."""

    label = "heaptrack"
    options = []

    def missing(self):
        return None if shutil.which("heaptrack") else "heaptrack"

    def prefix(self):
        return ["heaptrack", *self.options, "-o", os.path.join(self.folder, "heaptrack")]

    def stored(self):
        files = glob.glob(os.path.join(self.folder, "heaptrack.*"))
        size = sum(os.path.getsize(name) for name in files)
        for name in files:
            os.unlink(name)
        return Stored(size=size)


class HeaptrackRaw(Heaptrack):
    label = "heaptrack --raw"
    options = ["--raw"]


class Lttng(Native):
    """LTTng-UST's wrapper of libc: no stacks; it waits rather than discard, as heapledger does."""

    label = "LTTng-UST, no stacks"
    library = "liblttng-ust-libc-wrapper.so.1"
    daemon = None  # Ours; None where one was there.
    session_open = False

    def missing(self):
        if not shutil.which("lttng") or not shutil.which("lttng-sessiond"):
            return "lttng-tools"
        loaded = subprocess.run(["true"], env=dict(os.environ, LD_PRELOAD=self.library), capture_output=True, check=False)
        return self.library if loaded.stderr else None

    def preload(self):
        return [self.library]

    def variables(self):
        return {"LTTNG_UST_ALLOW_BLOCKING": "1", "LTTNG_UST_REGISTER_TIMEOUT": "-1"}

    @staticmethod
    def lttng(*arguments):
        return subprocess.run(["lttng", *arguments], capture_output=True, text=True, check=True).stdout

    @classmethod
    def start_daemon(cls):
        if cls.daemon is not None or subprocess.run(["lttng", "list"], capture_output=True, check=False).returncode == 0:
            return
        with open(os.devnull, "wb") as null:
            cls.daemon = subprocess.Popen(["lttng-sessiond", "--no-kernel"], stdout=null, stderr=null)
        deadline = time.monotonic() + 10
        while subprocess.run(["lttng", "list"], capture_output=True, check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise RuntimeError("lttng-sessiond does not answer")
            time.sleep(0.05)

    @classmethod
    def stop_daemon(cls):
        """At the end, also after a failure: nothing of ours stays behind."""
        if cls.session_open:
            subprocess.run(["lttng", "destroy", cls.session()], capture_output=True, check=False)
        if cls.daemon is not None:
            cls.daemon.terminate()
            cls.daemon.wait()
            cls.daemon = None

    @staticmethod
    def session():
        return f"heapledger-bench-{os.getpid()}"

    def out(self):
        return os.path.join(self.folder, "lttng")

    def before(self):
        self.start_daemon()
        at = ["--userspace", "--session", self.session()]
        self.lttng("create", self.session(), f"--output={self.out()}")
        Lttng.session_open = True
        self.lttng("enable-channel", *at, "--subbuf-size=1M", "--num-subbuf=8", "--blocking-timeout=inf", "calls")
        self.lttng("enable-event", *at, "--channel", "calls", "lttng_ust_libc:*")
        self.lttng("add-context", *at, "--channel", "calls", "-t", "vtid", "-t", "ip")
        self.lttng("start", self.session())

    def finish(self):
        self.lttng("stop", self.session())

    def stored(self):
        lost = sum(int(number) for number in re.findall(r"Discarded events: *(\d+)", self.lttng("list", self.session())))
        self.lttng("destroy", self.session())
        Lttng.session_open = False
        size = sum(os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(self.out()) for name in names)
        shutil.rmtree(self.out())
        return Stored(lost=lost, size=size)


class Unwind(Native):
    """No recorder: libunwind's capture of each allocation's stack, thrown away (overhead_unwind.cc)."""

    label = "libunwind alone"

    def missing(self):
        try:
            ctypes.CDLL("libunwind.so.8")
        except OSError:
            return "libunwind8"
        return None

    def preload(self):
        return [os.path.join(self.binaries, "bench", "liboverhead_unwind.so")]


VARIANTS = {"native": Native, "off": Off, "on": Heapledger, "free-stacks": FreeStacks, "no-stacks": NoStacks, "no-faults": NoFaults,
            "heaptrack": Heaptrack, "heaptrack-raw": HeaptrackRaw, "lttng": Lttng,
            "libunwind": Unwind}
