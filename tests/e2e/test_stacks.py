# SPDX-License-Identifier: Apache-2.0
"""The stacks of blocks and frees against what the victims know of them, where stacks lead a hard life.

Each victim keeps the names of its functions as it goes (programs/shadow.h), and runs a section at a time. A stack that is not marked
incomplete must have exactly those names, in order; one that is, the innermost of them.
"""

import collections
import concurrent.futures
import subprocess

import recording

# Sections that damage or block glibc's own heap now and then: what the victim must print there.
WITHOUT_GLIBC = {
    "jumps_out_of_malloc": "jumped: 200\n",
    "handlers_inside_malloc": "handled: 1\n",
    "handlers_inside_malloc_on_another_stack": "handled: 1\n",
}

# Where walks may end early: behind machine code that nothing describes and that keeps no frame pointer.
UNDESCRIBED = {"code_without_frame_pointer", "code_that_changes"}
# Deeper than the 128 frames that are kept, and than 1,024.
DEEP = {"exceptions_through_deep_stacks", "long_jumps", "deep_recursion", "coroutines_on_blocks"}
DEEPEST = {"deep_recursion"}


def plain_name(function):
    """The function's own name: no namespace, no arguments, no clone's suffix."""
    name = function.replace("(anonymous namespace)::", "").split("(")[0].split("<")[0].split("[")[0].split(".")[0]
    return name.rsplit("::", 1)[-1].strip()


def load_log(path):
    """(kind, size) -> names, innermost first."""
    calls = {}
    with open(path, encoding="ascii") as log:
        for line in log:
            kind, size, *words = line.split()
            names = []
            for word in words:
                name, times = word.split("*")
                names.extend([name] * int(times))
            assert (kind, int(size)) not in calls, line
            calls[kind, int(size)] = names
    return calls


class Stacks:
    """The stack table of a trace, as lists of names of the victim's functions."""

    INCOMPLETE = 1

    def __init__(self, trace, files):
        self.nodes = {row["id"]: (row["parent"], row["frame"]) for row in trace.sql("SELECT id, parent, frame FROM stack")}
        rows = trace.sql(
            "SELECT frame.id AS id, module.path AS path, symbol.function AS function FROM frame LEFT JOIN module ON module.id = frame.module "
            "LEFT JOIN symbol ON symbol.frame = frame.id AND symbol.inline_depth = 0")
        self.names = {row["id"]: plain_name(row["function"] or "?") for row in rows
                      if row["path"] and row["path"].rsplit("/", 1)[-1] in files}
        self.known = {}

    def of(self, stack):
        """(names innermost first, incomplete)."""
        if stack not in self.known:
            names, incomplete, node = [], False, stack
            while node:
                node, frame = self.nodes[node]
                if frame == self.INCOMPLETE:
                    incomplete = True
                elif frame in self.names:
                    names.append(self.names[frame])
            while names and names[-1] == "_start":
                names.pop()
            self.known[stack] = names, incomplete
        return self.known[stack]


class HardStacks:
    """Test cases over the sections of one victim, as a mix-in."""

    victim = ""
    files = ()
    DEPTH = 128

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.program = recording.victim(cls.victim)
        cls.sections = subprocess.run([cls.program, "list"], capture_output=True, text=True, check=True).stdout.split()
        assert len(cls.sections) >= 5, cls.sections

    def expected(self, section):
        if section in WITHOUT_GLIBC:
            return 0, WITHOUT_GLIBC[section]
        done = self.native([self.program, section, self.path(section + ".native.log")])
        return done.returncode, done.stdout.decode()

    def check(self, section, options, depth):
        log = self.path(section + ".log")
        trace = self.record([self.program, section, log], ["--quiet", *options], name=section + ".db")
        self.assertEqual((trace.run.returncode, trace.run.stdout.decode()), self.expected(section), trace.run.stderr)
        self.assertEqual(trace.run.stderr, b"")
        self.assertEqual(trace.one("SELECT sum(events_lost) FROM process"), 0)
        calls = load_log(log)
        self.assertGreater(len(calls), 20)
        stacks = Stacks(trace, {self.victim, *self.files})
        events = trace.sql("SELECT kind, id, ended_id, size, stack FROM event WHERE kind IN ('malloc', 'free') ORDER BY time_ns")
        found = collections.defaultdict(list)
        sizes = {}
        for event in events:
            if event["kind"] == "malloc":
                sizes[event["id"]] = event["size"]
                found["m", event["size"]].append(event["stack"])
            elif event["ended_id"] in sizes:
                found["f", sizes[event["ended_id"]]].append(event["stack"])
        incomplete = 0
        for call, names in calls.items():
            self.assertEqual(len(found[call]), 1, f"{section}: {call} of {names[:3]} is in the trace {len(found[call])} times")
            if call[0] == "f" and "--free-stacks" not in options:
                continue
            incomplete += self.check_stack(section, call, names, *stacks.of(found[call][0]), depth)
        return incomplete

    def check_stack(self, section, call, expected, names, incomplete, depth):
        """1 where the stack ends early, and may; 0 where it is whole. Fails where it is wrong."""
        if section in WITHOUT_GLIBC:  # A signal may come on the way into a library, in code that has no name.
            names = [name for name in names if name != "?"]
        shown = f"{section}: {call}: stack {names}\nbut the victim was in {expected}"
        if not incomplete:
            self.assertEqual(names, expected, shown)
            return 0
        self.assertEqual(names, expected[:len(names)], shown)
        if section not in UNDESCRIBED:
            self.assertGreater(len(expected), depth - 40, f"{shown}: marked incomplete, but not deep")
        return 1

    def compare(self, sections, options, depth):
        """Runs them; returns how many stacks ended early, by section."""
        def run(section):
            try:
                return self.check(section, options, depth)
            except (AssertionError, subprocess.TimeoutExpired) as failure:
                return failure

        early = {}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for section, outcome in zip(sections, pool.map(run, sections)):
                with self.subTest(section):
                    if isinstance(outcome, Exception):
                        raise outcome
                    early[section] = outcome
        return early

    def test_stacks_are_what_the_victim_knows(self):
        early = self.compare(self.sections, ["--stack-depth", "1024", "--free-stacks"], 1024)
        for section in set(early) - UNDESCRIBED - DEEPEST:
            self.assertEqual(early[section], 0, section)

    def test_stacks_deeper_than_what_is_kept(self):
        sections = [section for section in self.sections if section in DEEP]
        early = self.compare(sections, [], self.DEPTH)
        for section in set(early) & DEEPEST:
            self.assertGreater(early[section], 0, section)


class Switches(HardStacks, recording.RecordingTest):
    victim = "stack_switches"


class Jumps(HardStacks, recording.RecordingTest):
    victim = "stack_jumps"


class Shapes(HardStacks, recording.RecordingTest):
    victim = "stack_shapes"
    files = ("libshape_first.so", "libshape_second.so")


if __name__ == "__main__":
    recording.main()
