# SPDX-License-Identifier: Apache-2.0
"""Who holds the heap: what the report says of one kept block, and what the kernel's RSS then does."""

import recording

MIB = 1 << 20
PAGE = 4096


class Pinners(recording.RecordingTest):
    def keep(self, size, *more, name):
        trace = self.record([recording.victim("keep_one"), str(size), *more], name=name)
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        return trace

    def finding(self, trace):
        findings = trace.report("summary")["findings"]
        self.assertTrue(findings)
        return findings[0]

    def rows(self, trace):
        return trace.report("fragmentation", "--at", "fragmented")["pinners"]

    def test_kept_block_is_named_with_what_it_holds(self):
        trace = self.keep(2000, name="kept.db")
        finding = self.finding(trace)
        self.assertEqual(finding["kind"], "pinned")
        self.assertIn("keep_one", finding["sentence"])
        self.assertIn("gives it back", finding["sentence"])
        self.assertAlmostEqual(finding["bytes"], 200_000_000, delta=2 * MIB)

    def test_freeing_it_releases_what_the_report_said(self):
        # The same program, which then frees the block; the report is about the moment before.
        if self.keep(2000, name="probe.db").meta("fault_source") not in ("perf", "perf-user"):
            self.skipTest("which pages are resident is known by perf only")
        trace = self.keep(2000, "free", name="freed.db")
        fell = int(trace.run.stdout)
        row = self.rows(trace)[0]
        self.assertIn("keep_one", row["site"])
        self.assertEqual(row["bytes_released_if_freed"], row["held_bytes"])
        self.assertLessEqual(abs(row["held_resident_bytes"] - fell), PAGE, row)

    def test_block_for_the_cache_releases_nothing(self):
        trace = self.keep(100, "free", name="small.db")
        self.assertLess(int(trace.run.stdout), PAGE)
        finding = self.finding(self.keep(100, name="small_kept.db"))
        self.assertIn("keep_one", finding["sentence"])
        self.assertIn("to the thread's cache and gives back nothing until it leaves it", finding["sentence"])
        # After it was freed: nobody's any more, and it holds as much.
        finding = self.finding(trace)
        self.assertIn("freed chunk in threads' caches, allocated at", finding["sentence"])
        self.assertIn("keep_one", finding["sentence"])
        self.assertAlmostEqual(finding["bytes"], 200_000_000, delta=2 * MIB)


if __name__ == "__main__":
    recording.main()
