# SPDX-License-Identifier: Apache-2.0
"""malloc's knobs and views: mallopt, the environment's variables and tunables, and the statistics functions act as glibc's do.

The victim `knobs` prints what can be seen of the settings from outside; it runs under each setting on the system's glibc and on the
shim, and must print the same. heapledger's own options win over all of them.
"""

import concurrent.futures
import os
import re
import subprocess

import recording

KNOBS = recording.victim("knobs")
SHIM = os.path.join(recording.BIN, "libheapledger.so")
ON_SHIM = {"LD_PRELOAD": SHIM, "HEAPLEDGER_RECORD": "off"}
KNOBS_TIMEOUT_S = 60

M_MXFAST, M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_CHECK_ACTION, M_PERTURB, M_ARENA_TEST, M_ARENA_MAX = 1, -1, -2, -3, -4, -5, -6, -7, -8

MALLOPTS = [
    [(M_MXFAST, value)] for value in (0, 7, 8, 40, 64, 159, 160, 161, -1, 1000)
] + [
    [(M_TRIM_THRESHOLD, value)] for value in (0, 65536, 131072, 1 << 20, 1 << 30, -1)
] + [
    [(M_TOP_PAD, value)] for value in (0, 1, 4096, 131072, 1 << 20, -1)
] + [
    [(M_MMAP_THRESHOLD, value)] for value in (0, 4096, 65536, 131072, 1 << 20, 32 << 20, (32 << 20) + 1, 1 << 30, -1)
] + [
    [(M_MMAP_MAX, value)] for value in (0, 1, 2, 4, 65536, -1)
] + [
    [(M_PERTURB, value)] for value in (0, 0x5a, 256, -1)
] + [
    [(M_CHECK_ACTION, 3)], [(M_ARENA_TEST, 0)], [(M_ARENA_TEST, 2)], [(M_ARENA_MAX, -1)], [(M_ARENA_MAX, 2)],
    [(0, 0)], [(2, 5)], [(3, 5)], [(4, 5)], [(5, 5)], [(-9, 5)], [(-100, 1)], [(1000, 1)],
    [(M_TRIM_THRESHOLD, 1 << 20), (M_TOP_PAD, 0), (M_MMAP_THRESHOLD, 1 << 20), (M_MMAP_MAX, 2), (M_MXFAST, 0), (M_PERTURB, 7)],
]

# Everything that may be said of a number, at one variable.
NUMBERS = [
    "65536", "0", "1", "0x10000", "0X20000", "0200000", "010", " 65536", "\t\n65536", "+65536", "-1", "-65536", "- 1", "", " ", "junk", "65536K", "65536 ",
    "65536:", "65536,4096", "0x", "0xg", "08", "1e6", "18446744073709551615", "18446744073709551616", "99999999999999999999999", "-99999999999999999999999",
    "4294967296", "9223372036854775807", "9223372036854775808",
]
VARIABLES = [{"MALLOC_MMAP_THRESHOLD_": number} for number in NUMBERS] + [
    {"MALLOC_TOP_PAD_": value} for value in ("0", "4096", "131072", "1000000", "-1", "junk", "")
] + [
    {"MALLOC_TRIM_THRESHOLD_": value} for value in ("0", "65536", "131072", "1000000", "-1")
] + [
    {"MALLOC_MMAP_MAX_": value} for value in ("0", "1", "5", "-1", "2147483647", "2147483648", "4294967296", "junk")
] + [
    {"MALLOC_PERTURB_": value} for value in ("90", "256", "-1")
] + [
    {"MALLOC_CHECK_": "3"}, {"MALLOC_MMAP_THRESHOLD": "65536"}, {"MALLOC_TCACHE_COUNT_": "0"}, {"MALLOC_ARENA_MAX": "0"},
    {"MALLOC_TOP_PAD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "1000000", "MALLOC_MMAP_MAX_": "4"},
]


def tunables(text, **more):
    return {"GLIBC_TUNABLES": text, **more}


THRESHOLD = "glibc.malloc.mmap_threshold"
TUNABLES = [
    tunables(f"{THRESHOLD}={number}") for number in NUMBERS
] + [
    tunables(text) for text in (
        "", ":", "=", "::::", THRESHOLD, THRESHOLD + "=", THRESHOLD + ":", f"{THRESHOLD}=:", f":{THRESHOLD}=65536", f"{THRESHOLD}=65536:", f"::{THRESHOLD}=65536::",
        f"{THRESHOLD}=65536:{THRESHOLD}=1000000", f"{THRESHOLD}=1000000:{THRESHOLD}=65536", f"{THRESHOLD}=junk:{THRESHOLD}=65536", f"{THRESHOLD}=65536:{THRESHOLD}=junk",
        f" {THRESHOLD}=65536", f"{THRESHOLD} =65536", f"{THRESHOLD}==65536", f"{THRESHOLD}=65536=4096", "mmap_threshold=65536", "glibc.malloc.mmap_thresholds=65536",
        "glibc.malloc.mmap_threshol=65536", "glibc.mallocx.mmap_threshold=65536", "GLIBC.MALLOC.MMAP_THRESHOLD=65536", f"glibc.rtld.nns=4:{THRESHOLD}=65536",
        f"unknown=1:{THRESHOLD}=65536", f"unknown:{THRESHOLD}=65536", f"glibc.malloc.check=3:{THRESHOLD}=65536", f"{THRESHOLD}=65536:glibc.malloc.top_pad=0",
        "glibc.malloc.top_pad=0", "glibc.malloc.top_pad=131072", "glibc.malloc.trim_threshold=131072", "glibc.malloc.trim_threshold=-1", "glibc.malloc.mmap_max=0",
        "glibc.malloc.mmap_max=65536", "glibc.malloc.mmap_max=-1", "glibc.malloc.mmap_max=2147483648", "glibc.malloc.perturb=90", "glibc.malloc.perturb=256",
        "glibc.malloc.tcache_count=0", "glibc.malloc.tcache_count=1", "glibc.malloc.tcache_count=20", "glibc.malloc.tcache_count=127",
        "glibc.malloc.tcache_count=65535", "glibc.malloc.tcache_count=65536", "glibc.malloc.tcache_count=-1", "glibc.malloc.tcache_max=0", "glibc.malloc.tcache_max=24",
        "glibc.malloc.tcache_max=100", "glibc.malloc.tcache_max=500", "glibc.malloc.tcache_max=1032", "glibc.malloc.tcache_max=1033",
        "glibc.malloc.tcache_unsorted_limit=1", "glibc.malloc.mxfast=0", "glibc.malloc.mxfast=7", "glibc.malloc.mxfast=64", "glibc.malloc.mxfast=160", "glibc.malloc.mxfast=161",
        "glibc.malloc.arena_max=1", "glibc.malloc.arena_test=1", "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.perturb=1",
    )
] + [
    tunables(f"{THRESHOLD}=65536", MALLOC_MMAP_THRESHOLD_="1000000"), tunables(f"{THRESHOLD}=junk", MALLOC_MMAP_THRESHOLD_="65536"),
    tunables(THRESHOLD, MALLOC_MMAP_THRESHOLD_="65536"), tunables("glibc.malloc.mmap_max=-1", MALLOC_MMAP_MAX_="0"),
    tunables("glibc.malloc.mmap_max=3", MALLOC_MMAP_THRESHOLD_="65536"), tunables("glibc.malloc.perturb=256", MALLOC_PERTURB_="7"),
]

ARENAS = [{}, {"MALLOC_ARENA_MAX": "1"}, {"MALLOC_ARENA_MAX": "3"}, {"MALLOC_ARENA_MAX": "0"}, {"MALLOC_ARENA_TEST": "1"}, {"MALLOC_ARENA_TEST": "30"},
          tunables("glibc.malloc.arena_max=2", MALLOC_ARENA_MAX="5"), {"MALLOC_ARENA_MAX": "4", "MALLOC_ARENA_TEST": "2"}]

# Ours over glibc's, and what glibc does under the winner alone.
OURS = [
    ({"HEAPLEDGER_MMAP_THRESHOLD": "1M"}, {"MALLOC_MMAP_THRESHOLD_": "65536"}, {"MALLOC_MMAP_THRESHOLD_": "1048576"}),
    ({"HEAPLEDGER_MMAP_THRESHOLD": "64K"}, tunables(f"{THRESHOLD}=1000000"), {"MALLOC_MMAP_THRESHOLD_": "65536"}),
    ({"HEAPLEDGER_MMAP_THRESHOLD": "brk-only"}, {"MALLOC_MMAP_MAX_": "9"}, {"MALLOC_MMAP_MAX_": "0"}),
    ({"HEAPLEDGER_MMAP_THRESHOLD": "mmap-only"}, {"MALLOC_MMAP_THRESHOLD_": "65536"}, {"MALLOC_MMAP_THRESHOLD_": "0"}),
    ({"HEAPLEDGER_TRIM_THRESHOLD": "1M"}, {"MALLOC_TRIM_THRESHOLD_": "0"}, {"MALLOC_TRIM_THRESHOLD_": "1048576"}),
    ({"HEAPLEDGER_TOP_PAD": "1M"}, {"MALLOC_TOP_PAD_": "0"}, {"MALLOC_TOP_PAD_": "1048576"}),
    ({"HEAPLEDGER_MMAP_MAX": "2"}, tunables("glibc.malloc.mmap_max=7"), {"MALLOC_MMAP_MAX_": "2"}),
    ({"HEAPLEDGER_TCACHE_COUNT": "3"}, tunables("glibc.malloc.tcache_count=9"), tunables("glibc.malloc.tcache_count=3")),
]


def run(arguments, environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "HEAPLEDGER_"))}
    done = subprocess.run(
        [KNOBS, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=KNOBS_TIMEOUT_S, check=False, env={**clean, **environment})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Settings(recording.RecordingTest):
    def compare(self, cases):
        """Each case: what it is, the victim's arguments, the environment on glibc, the environment on the shim."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            native = pool.map(lambda case: run(case[1], case[2]), cases)
            ours = pool.map(lambda case: run(case[1], {**case[3], **ON_SHIM}), cases)
            seen = set()
            for case, expected, outcome in zip(cases, native, ours):
                with self.subTest(case[0]):
                    self.assertEqual(expected[0], 0, expected)
                    self.assertEqual(outcome, expected)
                    seen.add(expected)
        return len(seen)

    def test_mallopt(self):
        cases = []
        for calls in MALLOPTS:
            arguments = ["observe", *(str(word) for call in calls for word in call)]
            cases.append((calls, arguments, {}, {}))
        # Guards the comparison: the settings can be told apart.
        self.assertGreater(self.compare(cases), 20)

    def test_variables(self):
        distinct = self.compare([(environment, ["observe"], environment, environment) for environment in VARIABLES])
        self.assertGreater(distinct, 12)

    def test_tunables(self):
        distinct = self.compare([(environment, ["observe"], environment, environment) for environment in TUNABLES])
        self.assertGreater(distinct, 12)

    def test_mallopt_comes_after_the_environment(self):
        environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
        arguments = ["observe", str(M_MMAP_THRESHOLD), "1000000"]
        self.compare([(environment, arguments, environment, environment)])

    def test_our_own_options_win(self):
        self.compare([(option, ["observe"], winner, {**loser, **option}) for option, loser, winner in OURS])

    def test_options_of_record_win(self):
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "4096"}
        options = ["--quiet", "--mmap-threshold", "1M", "--top-pad", "256K"]
        trace = self.record([KNOBS, "observe"], options, env=environment, stdin=subprocess.DEVNULL)
        expected = run(["observe"], {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TOP_PAD_": "262144"})
        self.assertEqual((trace.run.returncode, trace.run.stdout.decode()), expected[:2])
        settings = trace.report("summary")["settings"]
        self.assertEqual((settings["mmap_threshold"], settings["top_pad"]), (1 << 20, 1 << 18))

    def test_number_of_arenas(self):
        distinct = self.compare([(environment, ["arenas", "40"], environment, environment) for environment in ARENAS])
        self.assertGreater(distinct, 3)


class Views(recording.RecordingTest):
    """Line by line what glibc prints; sizes of chunks are masked, since the header makes them differ, counts and held bytes are not."""

    @staticmethod
    def masked(text):
        text = re.sub(r'(<(?:size|unsorted) )from="\d+" to="\d+" total="\d+"', r"\1", text)
        text = re.sub(r'(<total type="(?:fast|rest)" count="\d+" )size="\d+"', r"\1", text)
        return re.sub(r"(in use bytes     =) *\d+", r"\1", text)

    def compare(self, what, masked=None):
        masked = masked or self.masked
        native = run(["views", what], {})
        ours = run(["views", what], ON_SHIM)
        self.assertEqual(native[0], 0, native)
        self.assertGreater(len(native[1] + native[2]), 6)
        self.assertEqual(tuple(map(masked, ours[1:])), tuple(map(masked, native[1:])))
        self.assertEqual(ours[0], 0)
        return ours

    def test_malloc_info(self):
        _, text, _ = self.compare("info")
        # glibc's own habits, which its readers know: flags in the sizes of chunks in bins, ranges in those of fastbins.
        for first, last, total, count in re.findall(r'<size from="(\d+)" to="(\d+)" total="(\d+)" count="(\d+)"', text):
            first, last, total, count = int(first), int(last), int(total), int(count)
            fast = last - first == 15
            self.assertEqual(last % 16, 0 if fast else 1)
            self.assertEqual(total, last * count)

    def test_malloc_info_of_several_arenas(self):
        # Heaps grow by pages, so what they hold depends on the header; how many there are does not.
        def masked(text):
            text = re.sub(r'(<(?:system|aspace) type="(?:current|max|total|mprotect)") size="\d+"', r"\1", self.masked(text))
            return re.sub(r"(system bytes     =) *\d+", r"\1", text)

        _, text, _ = self.compare("threads", masked)
        self.assertEqual(text.count("<heap nr="), 3)
        self.assertEqual(text.count('<aspace type="subheaps" size="1"/>'), 2)
        arenas, total = text.split("</heap>\n")[:-1], text.split("</heap>\n")[-1]
        for kind in ("system type=\"current", "aspace type=\"total", "aspace type=\"mprotect"):
            sizes = [int(re.search(kind + r'" size="(\d+)"', arena).group(1)) for arena in arenas]
            self.assertIn(f'{kind}" size="{sum(sizes)}"', total)

    def test_malloc_info_with_options(self):
        self.compare("options")

    def test_malloc_stats(self):
        self.compare("stats")

    def test_malloc_stats_without_stderr(self):
        self.compare("closed")

    def test_malloc_stats_into_a_buffer(self):
        # glibc waits for itself for ever: what it prints without a buffer.
        code, _, text = run(["views", "buffered"], ON_SHIM)
        self.assertEqual((code, text), (0, run(["views", "stats"], ON_SHIM)[2]))

    def test_mallinfo(self):
        self.compare("mallinfo")

    def test_recorded(self):
        for what in ("info", "stats", "mallinfo"):
            trace = self.record([KNOBS, "views", what], ["--quiet"], name=what + ".db", stdin=subprocess.DEVNULL)
            expected = run(["views", what], ON_SHIM)
            self.assertEqual((trace.run.returncode, trace.run.stdout.decode(), trace.run.stderr.decode()), expected)


if __name__ == "__main__":
    recording.main()
