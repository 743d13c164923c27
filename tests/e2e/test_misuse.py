# SPDX-License-Identifier: Apache-2.0
"""Programs that misuse malloc end as they do on the system's glibc: its message on stderr, SIGABRT; and the trace says where.

Each probe of the victim `misuse` runs three times: on glibc, on the shim with recording off, and recorded. The shim may notice more
than glibc does: BETTER lists every probe where it ends otherwise, with its words and why. All other probes must end alike, to the byte.
"""

import concurrent.futures
import json
import os
import re
import signal
import subprocess

import recording

MISUSE = recording.victim("misuse")
SHIM = os.path.join(recording.BIN, "libheapledger.so")
ABORTED = -signal.SIGABRT
PROBE_TIMEOUT_S = 60

# probe: (what the shim says, what glibc does instead and why the shim can say it)
BETTER = {
    # Marked in the header as freed, wherever the freed block is.
    "double_free_fast_deeper": ("free(): double free detected in tcache 2", "glibc looks at the top of a fastbin only"),
    "double_free_across_threads_small": ("free(): double free detected in tcache 2", "glibc notices when the thread ends, if at all"),
    "realloc_freed_small": ("realloc(): invalid pointer", "glibc resizes it"),
    "realloc_freed_at_top": ("realloc(): invalid pointer", "glibc crashes"),
    # The page map knows what is a block's mapping.
    "double_free_mapped": ("free(): invalid pointer", "glibc crashes"),
    "realloc_freed_mapped": ("realloc(): invalid pointer", "glibc crashes"),
    # A pointer outside the heap is not read through; glibc takes what lies before it for a header.
    "free_stack_text": ("free(): invalid pointer", "glibc believes the text before the pointer"),
    "free_string": ("free(): invalid pointer", "glibc believes the text before the pointer"),
    "free_null_plus_16": ("free(): invalid pointer", "glibc crashes"),
    "free_wild": ("free(): invalid pointer", "glibc crashes"),
    "free_non_canonical": ("free(): invalid pointer", "glibc crashes"),
    "free_minus_16": ("free(): invalid pointer", "glibc crashes"),
    "realloc_null_plus_16": ("realloc(): invalid pointer", "glibc crashes"),
    # The text says "another arena", whose place glibc computes and reads.
    "overrun_then_free_the_next": ("free(): invalid pointer", "glibc crashes"),
    # Checks that glibc makes with another cause, or only with several threads.
    "fast_entry_size_overwritten_then_free": ("invalid fastbin entry (free)", "glibc asks only in frees of its own"),
    "large_bin_size_links_then_file": ("malloc(): largebin double linked list corrupted (nextsize)", "glibc misses it where the chunk is the largest"),
}

# The same in a thread with an arena of its own, where it is different.
BETTER_IN_THREAD = {
    **BETTER,
    "overrun_then_free_the_next": ("double free or corruption (out)", "glibc crashes"),
    "own_size_odd": ("double free or corruption (out)", "glibc crashes: the chunk's end is beyond the heap"),
}
# With other threads the fastbin's first block may be in use again: neither can ask.
del BETTER_IN_THREAD["fast_entry_size_overwritten_then_free"]

# The probe's own function must be on the stack; these free in a function of another thread.
FUNCTION = {"double_free_across_threads_small": "drop_in_thread"}

# The refused call is the last event, with its stack even without --free-stacks; where it is noticed only while it is carried out, as
# here under a lock, the free is recorded as any other, and the stack is the message's.
REFUSED_BEFORE_THE_CALL = re.compile(r"^(double_free|free|realloc)_(?!small_bin)")


def run(command, **environment):
    done = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False, env={**os.environ, **environment})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Misuse(recording.RecordingTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.probes = run([MISUSE, "list"])[1].split()
        assert len(cls.probes) > 80 and set(BETTER) <= set(cls.probes), cls.probes
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            cls.native = dict(zip(cls.probes, pool.map(lambda probe: run([MISUSE, probe]), cls.probes)))
            cls.plain = dict(zip(cls.probes, pool.map(cls.on_shim, cls.probes)))

    @staticmethod
    def on_shim(probe, *where):
        return run([MISUSE, probe, *where], LD_PRELOAD=SHIM, HEAPLEDGER_RECORD="off")

    def expected(self, probe):
        if probe in BETTER:
            return ABORTED, "", BETTER[probe][0] + "\n"
        return self.native[probe]

    def test_the_shim_ends_them_as_glibc_does(self):
        for probe in self.probes:
            with self.subTest(probe):
                self.assertEqual(self.plain[probe], self.expected(probe), f"glibc: {self.native[probe]}")

    def test_in_an_arena_of_a_thread(self):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            native = pool.map(lambda probe: run([MISUSE, probe, "thread"]), self.probes)
            ours = pool.map(lambda probe: self.on_shim(probe, "thread"), self.probes)
            for probe, expected, outcome in zip(self.probes, native, ours):
                better = BETTER_IN_THREAD.get(probe)
                with self.subTest(probe):
                    self.assertEqual(outcome, (ABORTED, "", better[0] + "\n") if better else expected, f"glibc: {expected}")
                    self.assertNotEqual(better and better[0], expected[2].strip(), "glibc says the same: not an exception any more")

    def test_what_is_better_is_not_noticed_or_noticed_otherwise_by_glibc(self):
        for probe in BETTER:
            with self.subTest(probe):
                self.assertNotEqual(self.native[probe], self.expected(probe), "glibc says the same: not an exception any more")

    def test_every_probe_but_those_glibc_misses_is_noticed(self):
        # Guards the comparison above: a victim that does no harm would pass it.
        unnoticed = [probe for probe in self.probes if self.plain[probe][0] == 0]
        self.assertEqual(unnoticed, [])
        messages = {self.plain[probe][2] for probe in self.probes}
        self.assertGreater(len(messages), 25, messages)

    def check_recorded(self, probe):
        """Returns what is wrong, or None."""
        trace = self.record([MISUSE, probe], ["--quiet"], name=probe + ".db")
        code, stdout, stderr = self.expected(probe)
        if (trace.run.returncode, trace.run.stdout.decode(), trace.run.stderr.decode()) != (code, stdout, stderr):
            return f"recorded, it ended as {trace.run}"
        message = stderr.strip()
        rows = trace.sql(
            "SELECT (SELECT signal FROM process WHERE id = 1) AS signal, (SELECT sum(events_lost) FROM process) AS lost, text,"
            " (SELECT text FROM stack_text WHERE stack_text.id = mark.stack) AS stack,"
            " (SELECT json_array(kind, ended_id, (SELECT text FROM stack_text WHERE stack_text.id = event.stack)) FROM event ORDER BY time_ns DESC LIMIT 1) AS last"
            " FROM mark WHERE kind = 'note' AND thread IS NOT NULL")
        if len(rows) != 1 or (rows[0]["signal"], rows[0]["lost"], rows[0]["text"]) != (int(signal.SIGABRT), 0, message):
            return f"rows: {rows}"
        function = FUNCTION.get(probe, probe)
        if function not in rows[0]["stack"]:
            return f"the message's stack: {rows[0]['stack']}"
        kind, ended, stack = json.loads(rows[0]["last"])
        if REFUSED_BEFORE_THE_CALL.match(probe):
            wanted = "realloc" if probe.startswith("realloc") else "free"
            if kind != wanted or ended:
                return f"the last event: {rows[0]['last']}"
            if function not in stack:
                return f"the call's stack: {stack}"
        done = subprocess.run([recording.HEAPLEDGER, "summary", trace.path], capture_output=True, text=True, check=False, timeout=PROBE_TIMEOUT_S)
        said = " ".join(done.stdout.split())  # A long command wraps the line.
        if done.returncode != 0 or message not in done.stdout or "signal 6" not in said:
            return f"summary: {done}"
        return None

    def test_recordings_hold_the_offending_call(self):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for probe, wrong in zip(self.probes, pool.map(self.check_recorded, self.probes)):
                with self.subTest(probe):
                    self.assertIsNone(wrong)


if __name__ == "__main__":
    recording.main()
