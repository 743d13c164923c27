# SPDX-License-Identifier: Apache-2.0
"""The victim's own account of its calls against the event table, call by call."""

import collections

import recording

ALLOCATES = {"malloc", "calloc", "posix_memalign", "aligned_alloc", "new", "new[]"}


def load_log(path):
    """Calls by thread, in each thread's order."""
    calls = collections.defaultdict(list)
    with open(path, encoding="ascii") as log:
        for line in log:
            tid, kind, address, size, alignment, old = line.split()
            calls[int(tid)].append((kind, int(address), int(size), int(alignment), int(old)))
    return calls


def matches(event, call):
    """Whether a row of `event` is this call of the victim's."""
    kind, address, size, alignment, _ = call
    if event["kind"] != kind:
        return False
    if kind in ("free", "delete", "delete[]"):
        return event["address"] == address
    if (event["address"] or 0) != address or (event["size"] or 0) != size:
        return False
    return alignment == 0 or event["alignment"] == alignment


class Counts(recording.RecordingTest):
    ROUNDS = 3000

    def check(self, options=()):
        log = self.path("calls.log")
        trace = self.record([recording.victim("counts"), log, str(self.ROUNDS)], options)
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        self.assert_clean(trace)
        victim_calls = load_log(log)

        tids = {row["id"]: row["tid"] for row in trace.sql("SELECT id, tid FROM thread")}
        events = collections.defaultdict(list)
        for row in trace.sql("SELECT thread, kind, id, address, size, alignment, ended_id FROM event ORDER BY time_ns"):
            events[tids[row["thread"]]].append(row)

        owner = {}  # id -> event, for the victim's own blocks.
        libc = collections.Counter()
        for tid, calls in victim_calls.items():
            position = 0
            for event in events[tid]:
                if position < len(calls) and matches(event, calls[position]):
                    position += 1
                    if event["id"]:
                        owner[event["id"]] = event
                else:
                    libc[event["kind"]] += 1
            self.assertEqual(position, len(calls), f"thread {tid}: call {position} is not in the trace: {calls[position:position + 1]}")
        # What the victim's threads did not log is libc's: thread structures and exit-time frees, a handful.
        self.assertLessEqual(sum(libc.values()), 64, libc)

        ended = {row["ended_id"] for rows in events.values() for row in rows if row["ended_id"]}
        kept = [event for block, event in owner.items() if block not in ended]
        _, kept_bytes, kept_blocks = trace.run.stdout.split()
        self.assertEqual(len(kept), int(kept_blocks))
        self.assertEqual(sum(event["size"] for event in kept), int(kept_bytes))
        return trace

    def test_every_call_of_every_thread_is_in_the_trace(self):
        trace = self.check()
        summary = trace.report("summary")
        by_kind = {row["kind"]: row["n"] for row in trace.sql("SELECT kind, count(*) AS n FROM event GROUP BY kind")}
        for kind in ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "free"):
            self.assertEqual(summary["calls"][kind], by_kind.get(kind, 0), kind)
        self.assertEqual(summary["calls"]["new"], by_kind["new"] + by_kind["new[]"])
        self.assertEqual(summary["calls"]["delete"], by_kind["delete"] + by_kind["delete[]"])
        live = trace.with_events(
            "SELECT sum(size) AS bytes FROM e WHERE id != 0 AND id NOT IN (SELECT ended_id FROM e WHERE ended_id IS NOT NULL)")
        self.assertEqual(summary["live_bytes_end"], live[0]["bytes"])

    def test_the_same_with_stacks_of_frees_and_mapped_blocks(self):
        self.check(["--free-stacks", "--mmap-threshold", "64K"])


class CountsAsNobody(Counts):
    user = "nobody"


class PlainUser(recording.RecordingTest):
    """Guards the class above: it did run as another user."""

    user = "nobody"

    def test_the_program_runs_as_nobody(self):
        trace = self.record(["id", "-un"])
        self.assertEqual(trace.run.stdout.decode().strip(), "nobody")


if __name__ == "__main__":
    recording.main()
