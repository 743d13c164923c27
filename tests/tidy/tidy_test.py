# SPDX-License-Identifier: Apache-2.0
"""Rules of the tree that a compiler does not check. Usage: tidy_test.py ROOT (or through CTest)."""

import os
import re
import subprocess
import sys
import unittest

ROOT = os.environ.get("HEAPLEDGER_ROOT", os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

# Who may include whom, by folder; the longest matching prefix rules. Arrows run one way (README, "Architecture").
ARROWS = {
    "schema/": {"schema/"},
    "interposer/base/": {"interposer/base/"},
    "interposer/heap/": {"interposer/base/", "interposer/heap/"},
    "interposer/simulated/": {"interposer/base/", "interposer/heap/", "interposer/simulated/"},
    "interposer/trace/": {"schema/", "interposer/base/", "interposer/trace/"},
    # os.h: the names of causes and policies, which are the allocator's own.
    "interposer/collector/": {"schema/", "interposer/collector/", "interposer/heap/os.h", "interposer/base/pagemap_scan.h"},
    "interposer/": {"schema/", "interposer/base/", "interposer/heap/", "interposer/trace/", "interposer/"},
    "analyzer/": {"schema/", "analyzer/"},
    "analyzer/whatif/": {"schema/", "analyzer/", "interposer/base/bits.h", "interposer/heap/", "interposer/simulated/"},
    "tools/": {"schema/", "tools/", "interposer/collector/control_protocol.h", "interposer/collector/tracepoints.h", "interposer/heapledger.h"},
    "tools/bench/": {"schema/", "tools/"},
}
# The wire half of schema/: all that code inside the program may see of it.
WIRE = {"schema/event.h", "schema/shared_region.h"}
SHIM = ("interposer/base/", "interposer/heap/", "interposer/trace/")
# Not in code that runs inside the program (style: it has no C++ runtime there, and may not allocate).
BANNED_IN_SHIM = [
    r"\bstd::string\b", r"\bstd::vector\b", r"\bstd::function\b", r"\bstd::mutex\b", r"\bstd::thread\b", r"<iostream>",
    r"\bf?printf\(", r"\bsnprintf\(", r"\bthrow\b", r"\btry\b", r"\bvirtual\b", r"\bstd::unique_ptr\b", r"\bstd::map\b",
]
DL_CALLS = re.compile(r"\bdl(open|sym)\(")


def files(*suffixes):
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [f for f in listed.stdout.split("\n") if f.endswith(suffixes) and os.path.exists(os.path.join(ROOT, f))]


def text(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def code(path):
    """The file without comments and string literals."""
    source = re.sub(r'"(?:\\.|[^"\\])*"', '""', text(path))
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.S)


def in_shim(path):
    return path.startswith(SHIM) or re.fullmatch(r"interposer/[^/]+\.(cc|h)", path) is not None


class Tidy(unittest.TestCase):
    def test_includes_follow_the_arrows(self):
        for path in files(".cc", ".h", ".c"):
            folders = [f for f in ARROWS if path.startswith(f)]
            if not folders:
                continue
            allowed = ARROWS[max(folders, key=len)]
            for included in re.findall(r'^#include "([^"]+)"', text(path), flags=re.M):
                if included.startswith("schema/") and in_shim(path):
                    self.assertIn(included, WIRE, f"{path}: the shim sees only the wire half of schema/")
                if "/" in included and included.split("/")[0] in ("schema", "interposer", "analyzer", "tools", "tests"):
                    self.assertTrue(any(included.startswith(a) for a in allowed), f"{path} includes {included}")

    def test_the_shim_uses_no_runtime(self):
        for path in filter(in_shim, files(".cc", ".h")):
            source = code(path)
            for pattern in BANNED_IN_SHIM:
                self.assertIsNone(re.search(pattern, source), f"{path}: {pattern}")
            if path not in ("interposer/lifecycle.cc", "interposer/loader.cc"):
                self.assertIsNone(DL_CALLS.search(source), f"{path}: dlopen and dlsym belong to lifecycle.cc and loader.cc")

    def test_every_source_is_built(self):
        for path in files(".cc", ".c"):
            folder, name = os.path.split(path)
            while folder:
                lists = os.path.join(ROOT, folder, "CMakeLists.txt")
                if os.path.exists(lists):
                    break
                folder = os.path.dirname(folder)
            stem = re.sub(r"^(?:test_)?(.*?)(?:_fuzzer)?$", r"\1", os.path.splitext(name)[0])
            listed = text(os.path.join(folder, "CMakeLists.txt"))
            self.assertRegex(listed, rf"\b{re.escape(stem)}\b", f"{path} is in no CMakeLists.txt")

    def test_every_source_names_its_licence(self):
        for path in files(".cc", ".h", ".c", ".py", ".sql"):
            first = text(path).split("\n", 2)
            self.assertIn("SPDX-License-Identifier: Apache-2.0", "\n".join(first[:2]), path)

    def test_sources_are_formatted(self):
        sources = files(".cc", ".h", ".c")
        done = subprocess.run(["clang-format-14", "--dry-run", "-Werror", *sources], cwd=ROOT, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr[:2000])

    def test_no_unfinished_business(self):
        for path in files(".cc", ".h", ".c", ".sql", ".md"):
            if path.startswith("tests/tidy/"):
                continue
            self.assertNotRegex(text(path), r"\b(TODO|FIXME|XXX|HACK)\b", path)


if __name__ == "__main__":
    unittest.main(verbosity=2)
