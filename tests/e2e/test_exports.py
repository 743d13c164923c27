# SPDX-License-Identifier: Apache-2.0
"""Traces for other tools: each value of each format adds up to the total of the report that has it. pprof is read by a decoder of its
own, by the field numbers of profile.proto."""

import collections
import subprocess

import recording

VALUES = ("allocations", "bytes", "peak-blocks", "peak", "leak-blocks", "leaks", "faults", "syscalls")


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    """Field number -> its values: integers, or bytes."""
    found = collections.defaultdict(list)
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        value, at = varint(data, at)
        if tag & 7 == 2:
            value, at = data[at:at + value], at + value
        elif tag & 7 != 0:
            raise ValueError(f"wire type {tag & 7}")
        found[tag >> 3].append(value)
    if at != len(data):
        raise ValueError("cut off")
    return found


def packed(data):
    values = []
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        values.append(value - (1 << 64) if value >> 63 else value)
    return values


class Profile:
    """A pprof profile: names of its values, and samples as (functions innermost first, values)."""

    def __init__(self, data):
        message = fields(data)
        strings = [text.decode() for text in message[6]]
        assert strings[0] == ""
        self.types = {}
        for kind in map(fields, message[1]):
            self.types[strings[kind[1][0]]] = strings[kind[2][0]]
        functions = {function[1][0]: strings[function[2][0]] for function in map(fields, message[5])}
        locations = {}
        for location in map(fields, message[4]):
            locations[location[1][0]] = [functions[fields(line)[1][0]] for line in location[4]]
        self.samples = []
        for sample in map(fields, message[2]):
            names = [name for place in packed(sample[1][0]) for name in locations[place]]
            self.samples.append((names, packed(sample[2][0])))


class Exports(recording.RecordingTest):
    def export(self, trace, *options):
        done = subprocess.run([recording.HEAPLEDGER, "export", trace.path, *options, "-o", "-"], capture_output=True, check=True,
                              timeout=recording.TIMEOUT_S)
        return done.stdout

    def totals(self, trace):
        hotspots = trace.report("hotspots")["sites_total"]
        summary = trace.report("summary")
        peak = trace.report("peak")["sites_total"]
        return {
            "allocations": hotspots["calls"], "bytes": hotspots["bytes"],
            "peak-blocks": peak["blocks"], "peak": peak["bytes"],
            "leak-blocks": summary["live_blocks_end"], "leaks": summary["live_bytes_end"],
            "faults": summary["faults"]["minor"] + summary["faults"]["major"],
            "syscalls": trace.report("syscalls")["rows_total"]["ns"],
        }

    def check(self, trace, function):
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        totals = self.totals(trace)
        self.assertGreater(min(totals[value] for value in ("allocations", "leaks", "faults", "syscalls")), 0)
        profile = Profile(self.export(trace, "--format", "pprof"))
        self.assertEqual(profile.types["peak_space"], "bytes")
        self.assertEqual(len(profile.types), len(VALUES))
        for i, value in enumerate(VALUES):
            with self.subTest(value=value):
                self.assertEqual(sum(values[i] for _, values in profile.samples), totals[value])
                lines = self.export(trace, "--format", "folded", "--value", value).decode().splitlines()
                by_stack = collections.Counter()
                for line in lines:
                    stack, number = line.rsplit(" ", 1)
                    by_stack[stack] += int(number)
                self.assertEqual(sum(by_stack.values()), totals[value])
                from_pprof = collections.Counter()
                for names, values in profile.samples:
                    from_pprof[";".join(reversed(names))] += values[i]
                own = {stack: number for stack, number in from_pprof.items() if number and function in stack}
                self.assertEqual(own, {stack: number for stack, number in by_stack.items() if function in stack})
                if value in ("allocations", "leaks"):
                    self.assertTrue(own)

    def test_values_add_up_to_the_reports(self):
        for source in ("perf", "getrusage"):
            with self.subTest(source=source):
                self.check(self.record([recording.victim("planted"), "leak"], ["--fault-source", source], name=f"{source}.db"), "open_session")


if __name__ == "__main__":
    recording.main()
