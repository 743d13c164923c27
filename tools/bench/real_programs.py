# SPDX-License-Identifier: Apache-2.0
"""Real programs and what their malloc asks of the kernel: for tools that hold our models against them."""

import os
import random
import re
import subprocess
import time

HEAP_MAX = 64 << 20  # Of an arena that is not the main one; twice as much is mapped, and what lies around the heap unmapped.
CALLS = ["brk", "mmap", "munmap", "mremap", "madvise", "mprotect"]
PAGE = 4096
# A frame of libc with one of these names: static functions of malloc.c appear as __default_morecore.
MALLOC_FRAMES = {"malloc", "calloc", "realloc", "reallocarray", "free", "cfree", "memalign", "posix_memalign", "aligned_alloc", "valloc",
                 "pvalloc", "malloc_trim", "mallopt", "mallinfo", "malloc_info", "__default_morecore", "__libc_malloc", "__libc_calloc",
                 "__libc_realloc", "__libc_free", "__libc_memalign", "__libc_valloc", "__libc_pvalloc", "__libc_mallopt"}
HEADERS = ["algorithm", "functional", "iostream", "map", "regex", "string", "unordered_map", "vector"]

PYTHON = """
import json
rows = [{"id": i, "name": "n%d" % i, "tags": ["t%d" % (i % 7), "u"], "value": i * 0.5} for i in range(ROWS)]
text = json.dumps(rows)
back = json.loads(text)
index = {}
for row in back: index.setdefault(row["tags"][0], []).append(row["name"].upper())
print(len(text), sum(map(len, index.values())))
"""
PERL = """
my %words; my @lines;
for my $i (1 .. ROWS) { push @lines, join(" ", map { "w" . ($i * $_ % 977) } 1 .. 12); }
for (@lines) { $words{$_}++ for split / /; }
my $text = join("\\n", sort { $words{$b} <=> $words{$a} || $a cmp $b } keys %words);
$text =~ s/w(\\d+)/<$1>/g;
print length($text), " ", scalar(@lines), "\\n";
"""
SQL = """
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, value REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ROWS)
  INSERT INTO t SELECT i, printf('name %d', i * 7919 % 10007), i * 0.5 FROM n;
CREATE INDEX by_name ON t(name);
SELECT count(*), sum(value) FROM t;
SELECT name, count(*) FROM t GROUP BY name ORDER BY 2 DESC, 1 LIMIT 3;
UPDATE t SET value = value + 1 WHERE id % 3 = 0;
DELETE FROM t WHERE id % 5 = 0;
VACUUM;
SELECT group_concat(name) FROM (SELECT name FROM t ORDER BY name LIMIT 5);
"""
PYTHON_THREADS = """
import threading, zlib
def work(number):
    rows = []
    for i in range(ROWS):
        text = (f"{number} {i} " * (1 + i % 400)).encode()
        rows.append(zlib.compress(text))
        if len(rows) > 50: del rows[i % 50]
    out[number] = sum(map(len, rows))
out = [0] * 4
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(out)
"""
NODE = """
const rows = [];
for (let i = 0; i < ROWS; i++) rows.push({id: i, name: 'n' + i, tags: ['t' + i % 7, 'u']});
const text = JSON.stringify(rows);
const buffers = [];
for (let i = 0; i < 200; i++) buffers.push(Buffer.alloc(1000 + i * 997, i));
console.log(text.length, JSON.parse(text).length, require('zlib').gzipSync(Buffer.concat(buffers)).length);
"""


class Failure(Exception):
    pass


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    return path


def words(count, seed):
    source = random.Random(seed)
    return " ".join(f"word{source.randrange(5000)}" for _ in range(count))


def compiler_proper():
    return subprocess.run(["g++", "-print-prog-name=cc1plus"], capture_output=True, text=True, check=True).stdout.strip()


def cpp_source(folder, smoke):
    return write(os.path.join(folder, "source.cc"), "".join(f"#include <{name}>\n" for name in (HEADERS[:2] if smoke else HEADERS)) +
                 "int main() { std::vector<int> v(10); std::sort(v.begin(), v.end()); return v[0]; }\n")


def cc1plus(folder, smoke):
    preprocessed = os.path.join(folder, "source.ii")
    subprocess.run(["g++", "-E", "-o", preprocessed, cpp_source(folder, smoke)], check=True)
    return [compiler_proper(), "-quiet", "-fpreprocessed", "-O2", preprocessed, "-o", os.devnull]


def gxx(folder, smoke):
    return ["/usr/bin/g++", "-c", "-o", os.path.join(folder, "source.o"), cpp_source(folder, True)]


def python3(folder, smoke):
    return ["/usr/bin/python3", write(os.path.join(folder, "load.py"), PYTHON.replace("ROWS", "1000" if smoke else "30000"))]


def perl(folder, smoke):
    return ["/usr/bin/perl", write(os.path.join(folder, "load.pl"), PERL.replace("ROWS", "500" if smoke else "20000"))]


def sqlite3(folder, smoke):
    return ["/usr/bin/sqlite3", "-bail", "-init", write(os.path.join(folder, "load.sql"), SQL.replace("ROWS", "500" if smoke else "100000")),
            ":memory:", ".exit"]


def repository(folder, smoke):
    path = os.path.join(folder, "repository")
    environment = dict(os.environ, GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull, GIT_AUTHOR_DATE="2020-01-01T00:00:00Z",
                       GIT_COMMITTER_DATE="2020-01-01T00:00:00Z", GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@b", GIT_COMMITTER_NAME="a",
                       GIT_COMMITTER_EMAIL="a@b")
    git = ["git", "-C", path]
    subprocess.run(["git", "init", "-q", path], check=True, env=environment)
    for revision in range(3 if smoke else 20):
        for file in range(20):
            write(os.path.join(path, f"file{file}.txt"), "\n".join(words(8, revision // (1 + file % 5) * 1000 + line) for line in range(200)))
        subprocess.run(git + ["add", "-A"], check=True, env=environment)
        subprocess.run(git + ["commit", "-q", "-m", f"revision {revision}"], check=True, env=environment)
    subprocess.run(git + ["gc", "-q"], check=True, env=environment)
    return path


def git(folder, smoke):
    return ["/usr/bin/git", "--no-pager", "-C", repository(folder, smoke), "log", "--stat", "-p", "-M"]


def tree(folder, smoke):
    path = os.path.join(folder, "tree")
    for number in range(20 if smoke else 300):
        os.makedirs(os.path.join(path, f"folder{number % 17}"), exist_ok=True)
        write(os.path.join(path, f"folder{number % 17}", f"file{number}.txt"), words(200 + number, number))
    return path


def tar(folder, smoke):
    return ["/usr/bin/tar", "--sort=name", "-cf", os.devnull, "--exclude=*7.txt", "-C", tree(folder, smoke), "-v", "."]


def xz(folder, smoke):
    return ["/usr/bin/xz", "-kc", "-T1", "-3" if smoke else "-6", write(os.path.join(folder, "text"), words(5000 if smoke else 400000, 1))]


def xz_threads(folder, smoke):
    return ["/usr/bin/xz", "-kc", "-T4", "-3", "--block-size=256KiB", write(os.path.join(folder, "text"), words(50000 if smoke else 400000, 1))]


def python3_threads(folder, smoke):
    return ["/usr/bin/python3", write(os.path.join(folder, "load.py"), PYTHON_THREADS.replace("ROWS", "100" if smoke else "600"))]


def node(folder, smoke):
    return ["/usr/bin/node", "--single-threaded", write(os.path.join(folder, "load.js"), NODE.replace("ROWS", "1000" if smoke else "20000"))]


def redis(folder, smoke):
    # Debian's is linked with jemalloc: glibc's malloc is preferred by its name in LD_PRELOAD (see Program.preload).
    commands = "".join(f"SET key:{i} {'v' * (i % 700)}\n" for i in range(200 if smoke else 20000))
    write(os.path.join(folder, "commands"), commands + "DEL " + " ".join(f"key:{i}" for i in range(0, 200 if smoke else 20000, 3)) + "\n")
    script = write(os.path.join(folder, "load.sh"), f"""
redis-cli -s {folder}/socket < {folder}/commands > {folder}/replies
redis-cli -s {folder}/socket debug populate {100 if smoke else 20000} other 200
redis-cli -s {folder}/socket shutdown nosave
""")
    return ["/usr/bin/redis-server", "--port", "0", "--unixsocket", f"{folder}/socket", "--save", "", "--enable-debug-command", "yes"], script


class Program:
    """`varies`: why its calls are not the same in each run; without a reason they must be."""

    def __init__(self, command, needs, varies=None, threads=False, preload=None):
        self.command, self.needs, self.varies, self.threads, self.preload = command, needs, varies, threads, preload
        self.exact = varies is None
        self.prefix = []  # What to run it under.


PROGRAMS = {
    "cc1plus": Program(cc1plus, "g++", varies="its collector callocs a table per 16 MiB of addresses that its own mappings lie in"),
    "g++": Program(gxx, "g++"),
    "python3": Program(python3, "/usr/bin/python3", varies="it callocs a table per 16 GiB of addresses that its arenas lie in"),
    "sqlite3": Program(sqlite3, "sqlite3"),
    "git": Program(git, "git"),
    "perl": Program(perl, "perl"),
    "tar": Program(tar, "tar"),
    "xz": Program(xz, "xz"),
    "node": Program(node, "node", varies="threads, timers", threads=True),
    "redis": Program(redis, "redis-server", varies="threads, sockets, timers", threads=True, preload="/lib/x86_64-linux-gnu/libc.so.6"),
}


# With four threads each: which thread asks first is theirs to settle, so runs differ.
THREADED = {
    "xz-T4": Program(xz_threads, "xz", varies="four threads", threads=True),
    "python3-threads": Program(python3_threads, "/usr/bin/python3", varies="four threads", threads=True),
}


def victims(folder, binaries):
    """Small programs of our own, built in `folder` and among the demos: name -> Program."""
    def command(path, full, small):
        return lambda _, smoke: [path, *(small if smoke else full)]
    return {
        "churn": Program(command(os.path.join(binaries, "demos", "churn"), ["0.05"], ["0.02"]), "sh"),
        "refault": Program(command(os.path.join(binaries, "demos", "refault"), ["0.05"], ["0.02"]), "sh"),
        "refill": Program(command(os.path.join(folder, "refill"), ["400"], ["300"]), "sh"),
        "big_blocks": Program(command(os.path.join(folder, "big_blocks"), ["1000"], ["500"]), "sh"),
        "four_threads": Program(command(os.path.join(folder, "four_threads"), ["1500"], ["600"]), "sh", varies="four threads", threads=True),
    }


# ---- One call: (name, bytes, bytes before), as the models print them.

class Breaks:
    """Turns the kernel's break addresses into steps."""

    def __init__(self):
        self.now = 0

    def step(self, asked, result):
        before, self.now = self.now, result
        return 0 if asked == 0 or before == 0 else asked - before


def held_peak(calls):
    """Most bytes held at once; None where heaps with reserved parts would need addresses."""
    held = peak = 0
    for name, size, before in calls:
        if name == "mprotect":
            return None
        rounded = -(-size // PAGE) * PAGE
        held += {"brk": size, "mmap": rounded, "munmap": -rounded, "mremap": rounded - before}.get(name, 0)
        peak = max(peak, held)
    return peak


STRACE_CALL = re.compile(r"^(?:(\d+) +)?(\w+)\((.*)\) += (0x[0-9a-f]+|-?\d+)")
STRACE_FRAME = re.compile(r"^ > (\S+?)\(([^()+]*)\+?")


class Heaps:
    """Tells the calls that set up an arena's heap from malloc's others, by their addresses."""

    def __init__(self):
        self.mapped = []  # [start, end, is it usable yet]
        self.count = 0

    def is_set_up(self, name, args, number, result):
        if name == "mmap":
            if number[1] not in (HEAP_MAX, 2 * HEAP_MAX) or args[2] != "PROT_NONE":
                return False
            self.mapped.append([result, result + number[1], False])
            self.count += 1
            return True
        for heap in self.mapped:
            if not heap[0] <= number[0] < heap[1]:
                continue
            if name == "munmap" and number[1] < HEAP_MAX:  # Else the heap is deleted.
                if number[0] == heap[0]:
                    heap[0] += number[1]
                else:
                    heap[1] = number[0]
                return True
            if name == "mprotect" and not heap[2]:
                heap[2] = True
                return True
        return False


def strace_calls(path, threads):
    """(calls that malloc made in the first process, from `strace -k`, arenas' heaps that were set up)"""
    breaks, heaps = Breaks(), Heaps()
    calls, candidate, by_malloc = [], None, False

    def finish():
        if candidate is not None and by_malloc and not (threads and heaps.is_set_up(*candidate[1:])):
            calls.append(candidate[0])

    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(" > "):
                frame = STRACE_FRAME.match(line)
                if frame and "libc.so" in frame[1] and frame[2] in MALLOC_FRAMES:
                    by_malloc = True
                continue
            match = STRACE_CALL.match(line)
            if not match:
                continue
            finish()
            by_malloc = False
            _, name, text, result = match.groups()
            args = [argument.strip() for argument in text.split(",")]
            number = [int(a, 0) if re.fullmatch(r"-?\d+|0x[0-9a-f]+", a) else 0 for a in args]
            call = (name, number[1] if len(number) > 1 else 0, 0)
            if name == "brk":
                call = (name, breaks.step(number[0], int(result, 0)), 0)
            elif name == "mremap":
                call = (name, number[2], number[1])
            candidate = (call, name, args, number, int(result, 0))
        finish()
    return calls, heaps.count


def all_calls(path):
    """How many memory system calls a listing of `strace -k` has, whoever made them."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return sum(1 for line in file if STRACE_CALL.match(line))


def counts(calls):
    return [sum(call[0] == name for call in calls) for name in CALLS]


# ---- The two runs of a program.

def run(program, command, environment, folder):
    script = None
    if program.preload:
        command, script = command
    with open(os.path.join(folder, "stdout"), "wb") as out:
        process = subprocess.Popen(program.prefix + command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE)
        if script:
            deadline = time.monotonic() + 60
            while not os.path.exists(os.path.join(folder, "socket")) and time.monotonic() < deadline:
                time.sleep(0.05)
            subprocess.run(["/bin/sh", script], stdout=subprocess.DEVNULL, check=True)
        error = process.communicate(timeout=600)[1]
    if process.returncode != 0:
        raise Failure(f"{' '.join(command[:2])} ended with {process.returncode}: {error.decode(errors='replace')[-300:]}")


def environments(binaries, folder):
    """(to record a program in, for a run without us that finds the same lengths of everything): LD_PRELOAD and the like are blanks there."""
    environment = {"PATH": os.environ["PATH"], "HOME": folder, "LC_ALL": "C", "PYTHONHASHSEED": "0", "PERL_HASH_SEED": "0",
                   "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    found = recorded_environment(binaries, environment, folder)
    return environment, {key: value if environment.get(key) == value else " " * len(value) for key, value in found.items()}


def recorded_environment(binaries, environment, folder):
    """What a recorded program finds in its environment."""
    trace = os.path.join(folder, "environment.db")
    record = [os.path.join(binaries, "heapledger"), "record", "--quiet", "--force", "-o", trace, "--", "/usr/bin/env", "-0"]
    output = subprocess.run(record, env=environment, stdout=subprocess.PIPE, check=True).stdout
    return dict(entry.split("=", 1) for entry in output.decode().split("\0") if entry)
