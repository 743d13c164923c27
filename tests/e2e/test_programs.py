# SPDX-License-Identifier: Apache-2.0
"""Real programs: the same output and exit status as without us, nothing lost, every process of the tree in the trace."""

import os
import shutil
import socket
import subprocess
import time

import recording

HEADERS = """algorithm array atomic bitset chrono complex deque exception filesystem fstream functional future
iomanip iostream istream iterator limits list locale map memory mutex numeric optional ostream queue random
ratio regex set sstream stack stdexcept streambuf string thread tuple type_traits unordered_map unordered_set
utility valarray variant vector""".split()

PYTHON = r"""
import subprocess, threading, json, sys
results = []
def work(n):
    data = [str(i) * (i % 50) for i in range(20000)]
    results.append(len(json.dumps(data)) + n)
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(sorted(results))
for i in range(3):
    print(subprocess.run(["sh", "-c", "echo child %d; exit %d" % (i, i)], capture_output=True, text=True))
"""

PERL = r"""
my %h; my @a;
for my $i (1 .. 100000) { $h{"key$i"} = "x" x ($i % 100); push @a, [$i, "v$i"]; }
print scalar(keys %h), " ", scalar(@a), " ", length(join(",", sort keys %h)), "\n";
"""

NODE = r"""
const zlib = require('zlib');
let o = {}; for (let i = 0; i < 100000; i++) o['k' + i] = [i, 'v'.repeat(i % 40)];
const text = JSON.stringify(o);
zlib.gzip(Buffer.from(text), (error, packed) => {
  console.log(text.length, Object.keys(JSON.parse(zlib.gunzipSync(packed))).length);
  console.log(require('child_process').execSync('echo from a child').toString());
});
"""


class Programs(recording.RecordingTest):
    def check_same(self, command, **options):
        """Runs with and without recording; compares output and status. Returns the trace."""
        if shutil.which(command[0]) is None:
            self.skipTest(f"{command[0]} is not installed")
        native = self.native(command, **options)
        trace = self.record(command, ["--quiet"], **options)
        self.assertEqual(trace.run.stderr, native.stderr)
        self.assertEqual(trace.run.stdout, native.stdout)
        self.assertEqual(trace.run.returncode, native.returncode)
        self.assert_clean(trace)
        self.assertGreater(trace.one("SELECT sum(events) FROM process"), 0)
        self.assertEqual(trace.one("SELECT sum(events) FROM process"), trace.one("SELECT count(*) FROM event"))
        return trace

    def commands(self, trace):
        return [row["exe"].rsplit("/", 1)[-1] for row in trace.sql("SELECT exe FROM process WHERE recorded = 1 AND exe IS NOT NULL")]

    def test_gxx_and_its_children(self):
        source = self.path("all.cc")
        with open(source, "w", encoding="ascii") as file:
            file.writelines(f"#include <{name}>\n" for name in HEADERS)
            file.write("int main() { std::map<std::string, std::vector<int>> m; std::regex r(\"a*\"); return int(m.size()); }\n")
        trace = self.check_same(["g++", "-O2", "-o", "all", "all.cc"])
        names = self.commands(trace)
        for child in ("cc1plus", "as", "collect2", "ld"):
            self.assertTrue(any(name.startswith(child) or f"-{child}" in name for name in names), (child, names))
        self.assertEqual(subprocess.run([self.path("all")], check=False).returncode, 0)

    def test_python_threads_and_subprocesses(self):
        environment = dict(os.environ, PYTHONMALLOC="malloc", PYTHONHASHSEED="0")
        trace = self.check_same(["python3", "-c", PYTHON], env=environment)
        self.assertGreaterEqual(trace.one("SELECT count(*) FROM process WHERE exe LIKE '%sh'"), 3)

    def test_sqlite_index(self):
        script = (
            "CREATE TABLE t(a INTEGER, b TEXT); WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 300000) "
            "INSERT INTO t SELECT x * 7919 % 300007, 'row ' || x FROM c; CREATE INDEX i ON t(b, a); SELECT count(*), max(b) FROM t;")
        self.check_same(["sqlite3", ":memory:", script])

    def test_git_log(self):
        repository = self.path("repository")
        script = ("git init -q -b main . && git config user.email a@b && git config user.name n && "
                  "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do seq 1 $((i * 50)) > file; seq $i 3000 > other; "
                  "git add . && GIT_AUTHOR_DATE='2024-01-01 00:00' GIT_COMMITTER_DATE='2024-01-01 00:00' git commit -q -m \"change $i\"; done")
        os.mkdir(repository)
        subprocess.run(["sh", "-c", script], cwd=repository, check=True, capture_output=True)
        subprocess.run(["chmod", "-R", "a+rwX", repository], check=True)
        self.check_same(["git", "-c", "safe.directory=*", "log", "-p"], cwd=repository, env=dict(os.environ, GIT_PAGER="cat"))

    def test_perl(self):
        self.check_same(["perl", "-e", PERL])

    def test_node(self):
        self.check_same(["node", "-e", NODE])

    def test_tar_and_threaded_xz(self):
        script = "cd /usr/include && tar --sort=name --mtime=@0 -cf - linux | xz -T2 --block-size=1MiB | sha256sum"
        trace = self.check_same(["sh", "-c", script])
        for name in ("tar", "xz", "sha256sum"):
            self.assertIn(name, self.commands(trace))

    def test_shell_with_pipes_shows_all_processes(self):
        trace = self.check_same(["sh", "-c", "ls / | sort -r | wc -l; env true; seq 1 1000 | tail -1"])
        names = self.commands(trace)
        for name in ("ls", "sort", "wc", "true", "seq", "tail"):
            self.assertIn(name, names)
        statuses = trace.sql("SELECT exe, exit_status, ended_by FROM process WHERE exe LIKE '%/seq'")
        self.assertEqual(statuses[0]["ended_by"], "exit")

    def test_redis_under_load(self):
        if shutil.which("redis-server") is None:
            self.skipTest("redis-server is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        trace_path = self.path("trace.db")
        server = subprocess.Popen(
            self.as_user([recording.HEAPLEDGER, "record", "--quiet", "-o", trace_path, "--",
                          "redis-server", "--port", port, "--save", "", "--daemonize", "no", "--dir", self.folder]),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            for _ in range(100):
                ping = subprocess.run(["redis-cli", "-p", port, "ping"], capture_output=True, text=True, check=False)
                if ping.stdout.strip() == "PONG":
                    break
                time.sleep(0.1)
            self.assertEqual(ping.stdout.strip(), "PONG", "the server does not answer")  # redis-benchmark would try for ever.
            bench = subprocess.run(["redis-benchmark", "-p", port, "-n", "20000", "-c", "20", "-t", "set,get,lpush,lrange_100", "-q"],
                                   capture_output=True, text=True, timeout=recording.TIMEOUT_S, check=False)
            self.assertEqual(bench.returncode, 0, bench.stderr)
            subprocess.run(["redis-cli", "-p", port, "shutdown", "nosave"], check=False, capture_output=True)
            _, errors = server.communicate(timeout=60)
        finally:
            server.kill()
            server.communicate()
        self.assertEqual(server.returncode, 0, errors)
        self.assertEqual(errors, b"")
        self.assert_clean(recording.Trace(trace_path, None))


class ProgramsAsNobody(Programs):
    user = "nobody"


if __name__ == "__main__":
    recording.main()
