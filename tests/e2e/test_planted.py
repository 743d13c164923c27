# SPDX-License-Identifier: Apache-2.0
"""Programs with one planted fault each: the first three lines of the summary name the function, the price and the cause."""

import re
import subprocess

import recording

# Fault: the kind of the first finding, the function, words of the cause.
FAULTS = {
    "leak": ("growth", "open_session", "like a leak"),
    "pin": ("pinned", "add_index_entry", "free below the break, held by 1 block"),
    "churn": ("churn", "render_tile", "mapped and unmapped one by one"),
    "refault": ("refault", "draw_layer", "given back to the system"),
    "waste": ("waste", "make_tag", "header and rounding"),
    "spread": ("spread", "send_message", "other threads freed"),
}
PRICE = re.compile(r"\d[\d.,]* ([KMG]iB|ns|us|ms|s)\b")


class Planted(recording.RecordingTest):
    def summary(self, fault):
        trace = self.record([recording.victim("planted"), fault], name=f"{fault}.db")
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        text = subprocess.run([recording.HEAPLEDGER, "summary", trace.path], capture_output=True, text=True, check=True)
        return trace.report("summary")["findings"], text.stdout.split("\n")

    def test_first_lines_name_the_fault(self):
        for fault, (kind, function, cause) in FAULTS.items():
            with self.subTest(fault=fault):
                findings, lines = self.summary(fault)
                self.assertTrue(findings, lines[:5])
                self.assertEqual(findings[0]["kind"], kind, findings)
                first = " ".join(line.strip() for line in lines[:3])
                self.assertIn(function, first)
                self.assertIn(cause.lower(), first.lower())
                self.assertRegex(first, PRICE)

    def test_what_the_recording_lost_is_a_finding(self):
        trace = self.record([recording.victim("flood"), "400000"], ["--max-size", "1M"])
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        lost = trace.one("SELECT sum(events_lost) FROM process")
        self.assertGreater(lost, 0)
        findings = {finding["kind"]: finding for finding in trace.report("summary")["findings"]}
        self.assertIn(f"{lost:,} calls lost", findings["limits"]["sentence"])

    def test_nothing_is_found_where_nothing_is_wrong(self):
        findings, lines = self.summary("well")
        self.assertEqual(findings, [], lines[:5])


if __name__ == "__main__":
    recording.main()
