# SPDX-License-Identifier: Apache-2.0
"""Libraries that are loaded in unusual ways: RTLD_DEEPBIND, which would bind them to libc's own malloc, and dlmopen, which brings a
second libc. The program does what it does unrecorded; what is recorded, and what is not, is said."""

import recording

ROUNDS = 300
LIBRARY = recording.victim("libloaded_library.so")


class Loading(recording.RecordingTest):
    def check(self, way):
        command = [recording.victim("loading"), way, LIBRARY]
        native = self.native(command)
        self.assertEqual((native.returncode, native.stderr), (0, b""))
        trace = self.record(command, ["--quiet"])
        self.assertEqual((trace.run.returncode, trace.run.stdout, trace.run.stderr), (native.returncode, native.stdout, native.stderr))
        self.assert_clean(trace)
        return trace

    def count(self, trace, kind, size):
        return trace.one(f"SELECT count(*) FROM event WHERE kind = '{kind}' AND size = {size}")

    def notes(self, trace):
        return [row["text"] for row in trace.sql("SELECT text FROM mark WHERE kind = 'note'")]

    def test_deep_binding(self):
        # Goal: blocks may go from the library to the program and back, and all of them are there. Method: counts by size.
        trace = self.check("deepbind")
        self.assertEqual(self.count(trace, "malloc", 4321), ROUNDS)
        self.assertEqual(self.count(trace, "malloc", 1234), ROUNDS)
        self.assertEqual(self.count(trace, "realloc", 20000), ROUNDS)
        ended = trace.with_events("SELECT count(*) AS n FROM e AS f JOIN e AS m ON m.id = f.ended_id WHERE f.kind = 'free' AND m.size IN (4321, 20000)")
        self.assertEqual(ended, [{"n": 2 * ROUNDS}])
        stacks = trace.sql("SELECT DISTINCT text FROM event JOIN stack_text ON stack_text.id = event.stack WHERE size = 4321 AND kind = 'malloc'")
        self.assertTrue(stacks and all("library_make" in row["text"] and "main" in row["text"] for row in stacks), stacks)
        self.assertEqual(len([text for text in self.notes(trace) if "RTLD_DEEPBIND" in text]), 1)

    def test_a_namespace_of_its_own(self):
        # Goal: the second libc serves its library as without us; that its calls are missing is said, the program's own are all there.
        trace = self.check("namespace")
        self.assertEqual(self.count(trace, "malloc", 1234), ROUNDS)
        self.assertEqual(self.count(trace, "malloc", 4321), 0)
        self.assertEqual([text for text in self.notes(trace) if "dlmopen" in text],
                         ["dlmopen: what this library and its libc allocate is not recorded"])


if __name__ == "__main__":
    recording.main()
