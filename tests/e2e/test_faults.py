# SPDX-License-Identifier: Apache-2.0
"""Page faults: known touched pages against the fault table and the reports, with perf and with getrusage."""

import recording

PAGES = 3000
# What the loop bookkeeping, stdio and the allocator's own headers may add to a function's own pages.
SLACK = 24


def victim_numbers(output):
    """name -> (pages touched, minor faults by its own getrusage)."""
    return {name: (int(pages), int(minor)) for name, pages, minor in (line.split() for line in output.decode().splitlines())}


class Faults(recording.RecordingTest):
    def pages_by_function(self, trace):
        """Function that called malloc -> faults on its blocks."""
        counts = {}
        for row in trace.sql(
                "SELECT f.faults AS faults, t.text AS text FROM fault_site f JOIN stack_text t ON t.id = f.stack WHERE f.process = 1"):
            for function in ("allocate_brk", "allocate_mapped", "allocate_calloc", "grow_by_realloc"):
                if function in row["text"]:
                    counts[function] = counts.get(function, 0) + row["faults"]
        return counts

    def test_pages_fall_on_the_stacks_that_allocated_them(self):
        trace = self.record([recording.victim("touch_pages"), str(PAGES)], ["--fault-source", "perf"])
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        self.assert_clean(trace)
        numbers = victim_numbers(trace.run.stdout)
        summary = trace.report("summary")["faults"]
        self.assertIn(summary["source"], ("perf", "perf-user"))
        self.assertEqual(summary["lost"], 0)
        counts = self.pages_by_function(trace)
        # The victim's getrusage difference is the truth for each part; whole pages touched are its lower bound.
        brk_pages = numbers["brk"][0] + PAGES  # Also the block that the realloc part fills first.
        self.assertAlmostEqual(counts["allocate_brk"], brk_pages, delta=brk_pages // 14 + SLACK)  # + the edges between blocks
        self.assertAlmostEqual(counts["allocate_mapped"], numbers["mapped"][0], delta=SLACK)
        self.assertAlmostEqual(counts["allocate_calloc"], numbers["calloc"][0], delta=SLACK)
        self.assertAlmostEqual(counts["grow_by_realloc"], numbers["realloc"][0], delta=SLACK)
        # Totals: each fault of the table is in one line of fault_site, and the kernel's counter stands beside.
        rows = trace.one("SELECT count(*) FROM fault WHERE process = 1")
        self.assertEqual(trace.one("SELECT sum(faults) FROM fault_site WHERE process = 1"), rows)
        self.assertEqual(summary["minor"] + summary["major"], rows)
        self.assertAlmostEqual(rows, numbers["total"][1], delta=400)

    def test_touching_function_is_the_program_s_or_the_allocator(self):
        """The victim's own writes are its function's; where the heap grows, malloc writes the header of the rest first."""
        trace = self.record([recording.victim("touch_pages"), str(PAGES)], ["--fault-source", "perf"])
        touched = {}
        for site in trace.report("faults")["sites"]:
            touched.setdefault(site["touched_by"].split(",")[0], 0)
            touched[site["touched_by"].split(",")[0]] += site["faults"]
        self.assertGreaterEqual(touched.get("touch", 0), PAGES, touched)
        self.assertFalse([name for name in touched if "heapledger" in name], touched)
        self.assertTrue({"[allocator]", "[recorder]"} & set(touched), touched)

    def test_every_page_written_is_a_fault_row(self):
        """Page by page: the whole pages of the mapped block are each hit exactly once."""
        trace = self.record([recording.victim("touch_pages"), str(PAGES)], ["--fault-source", "perf"])
        block = trace.sql("SELECT id, address, size FROM event WHERE kind = 'malloc' AND size = %d" % ((PAGES + 1) * 4096))
        self.assertEqual(len(block), 1)
        hits = trace.sql(
            "SELECT address / 4096 AS page, count(*) AS n FROM fault WHERE process = 1 AND block_id = %d GROUP BY page" % block[0]["id"])
        first = (block[0]["address"] + 4095) // 4096
        pages = {row["page"]: row["n"] for row in hits}
        for page in range(first, (block[0]["address"] + block[0]["size"]) // 4096):
            self.assertEqual(pages.get(page), 1, hex(page * 4096))

    def test_getrusage_gives_totals_and_touched_blocks(self):
        trace = self.record([recording.victim("touch_pages"), str(PAGES)], ["--fault-source", "getrusage"])
        self.assertEqual(trace.run.returncode, 0, trace.run.stderr)
        summary = trace.report("summary")["faults"]
        self.assertEqual(summary["source"], "getrusage")
        total = victim_numbers(trace.run.stdout)["total"][1]
        start = trace.one("SELECT rusage_start_minor FROM process WHERE id = 1")
        self.assertAlmostEqual(summary["rusage_minor"] + start, total, delta=16)
        # The pages are still resident at exit, so the exit snapshot shows them on their stacks.
        sites = trace.report("faults")["sites"]
        text = {f: 0 for f in ("allocate_mapped", "allocate_calloc", "grow_by_realloc")}
        for site in sites:
            for function in text:
                if any(function in str(frame) for frame in site["stack"]):
                    text[function] += site["faults"]
        for function, pages in (("allocate_mapped", PAGES), ("allocate_calloc", PAGES)):
            self.assertAlmostEqual(text[function], pages, delta=SLACK, msg=function)


class FaultsAsNobody(Faults):
    user = "nobody"


if __name__ == "__main__":
    recording.main()
