# SPDX-License-Identifier: Apache-2.0
"""The programs that tools/bench/overhead records: each a function (folder, scale) -> command."""

import os
import shutil
import subprocess
import sys

HEADERS = "algorithm chrono deque filesystem fstream functional future iomanip iostream map memory random regex set sstream string thread unordered_map variant vector".split()

# A source file as programs have them: most of the time goes into code that libraries' templates become.
CODE = r"""
#include <algorithm>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
struct Entry { std::string name; double amount; std::vector<std::string> tags; };
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Entry, name, amount, tags)
int main(int count, char** arguments) {
  const std::regex pattern("([a-z]+)=([0-9]+)");
  std::map<std::string, std::vector<Entry>> entries;
  for (int i = 1; i < count; ++i) {
    std::smatch match;
    const std::string argument = arguments[i];
    if (std::regex_match(argument, match, pattern)) entries[match[1]].push_back({match[1], std::stod(match[2]), {"tag"}});
  }
  nlohmann::json all = entries;
  for (auto& [name, list] : all.items()) {
    std::vector<Entry> sorted = list.get<std::vector<Entry>>();
    std::sort(sorted.begin(), sorted.end(), [](const Entry& a, const Entry& b) { return a.amount < b.amount; });
    list = sorted;
  }
  std::cout << all.dump(2) << nlohmann::json::parse("[1, 2]").size();
}
"""

# What Python programs mostly do: objects of classes, strings, dictionaries, regular expressions, JSON.
PYTHON = r"""
import collections, json, re
class Account:
    def __init__(self, number, name):
        self.number, self.name, self.entries = number, name, []
    def post(self, amount, text):
        self.entries.append((amount, text))
        return self
    def balance(self):
        return sum(amount for amount, _ in self.entries)
pattern = re.compile(r"(?P<who>\w+) paid (?P<amount>\d+) for (?P<what>[a-z ]+)")
lines = ["name%d paid %d for %s" % (i % 500, i % 97, ("rent", "food and drink", "a book")[i % 3]) for i in range(ROWS)]
accounts, words = {}, collections.Counter()
for line in lines:
    match = pattern.match(line)
    account = accounts.get(match["who"]) or accounts.setdefault(match["who"], Account(len(accounts), match["who"]))
    account.post(int(match["amount"]), match["what"])
    words.update(match["what"].split())
text = json.dumps([{"name": a.name, "balance": a.balance(), "entries": a.entries} for a in accounts.values()])
back = json.loads(text)
print(len(text), len(back), sorted(words.items())[:2], sum(len(re.sub(r"[aeiou]", "", row["name"])) for row in back))
"""
# Under PYTHONMALLOC=malloc each object is a call of malloc.
PYTHON_MALLOC = """
import json
rows = [{"id": i, "name": "n%d" % i, "tags": ["t%d" % (i % 7), "u"], "value": i * 0.5} for i in range(ROWS)]
text = json.dumps(rows)
back = json.loads(text)
index = {}
for row in back: index.setdefault(row["tags"][0], []).append(row["name"].upper())
print(len(text), sum(map(len, index.values())))
"""
PERL = r"""
my %words; my @lines;
for my $i (1 .. ROWS) { push @lines, join(" ", map { "w" . ($i * $_ % 977) } 1 .. 12); }
for (@lines) { $words{$_}++ for split / /; }
my $text = join("\n", sort { $words{$b} <=> $words{$a} || $a cmp $b } keys %words);
$text =~ s/w(\d+)/<$1>/g;
my %rows; push @{$rows{$_ % 997}}, { id => $_, name => "n$_" } for 1 .. ROWS;
print length($text), " ", scalar(@lines), " ", scalar(keys %rows), "\n";
"""
SQL = """
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, value REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ROWS)
  INSERT INTO t SELECT i, printf('name %d', i * 7919 % 10007), i * 0.5 FROM n;
CREATE INDEX by_name ON t(name);
SELECT count(*), sum(length(hex(name))), sum(value) FROM t;
SELECT length(group_concat(name)) FROM (SELECT upper(name) || id AS name FROM t ORDER BY name);
"""


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    return path


def rows(text, full, scale):
    return text.replace("ROWS", str(max(100, int(full * scale))))


def compiler_proper(folder, name, text):
    source = write(os.path.join(folder, f"{name}.cc"), text)
    compiler = subprocess.run(["g++", "-print-prog-name=cc1plus"], capture_output=True, text=True, check=True).stdout.strip()
    preprocessed = os.path.join(folder, f"{name}.ii")
    subprocess.run(["g++", "-E", "-o", preprocessed, source], check=True)
    return [compiler, "-quiet", "-fpreprocessed", "-O2", preprocessed, "-o", os.devnull]


def cc1plus(folder, scale):
    """The compiler proper on a file that includes much of the standard library."""
    wanted = HEADERS[:max(2, min(len(HEADERS), round(len(HEADERS) * scale)))]
    return compiler_proper(folder, "headers", "".join(f"#include <{name}>\n" for name in wanted) + "int main() {}\n")


def cc1plus_code(folder, _):
    """The same for seconds: a run so long that its beginning hardly counts."""
    return compiler_proper(folder, "code", CODE)


def python_interpreter():
    """The interpreter itself: `python3` in PATH may be a shell script that looks for one."""
    return os.path.realpath("/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable)


# Files: heaptrack cannot read back an argument with line breaks.
def python3(folder, scale):
    return [python_interpreter(), write(os.path.join(folder, "program.py"), rows(PYTHON, 200000, scale))]


def python3_malloc(folder, scale):
    return [python_interpreter(), write(os.path.join(folder, "load.py"), rows(PYTHON_MALLOC, 60000, scale))]


def sqlite3(folder, scale):
    script = write(os.path.join(folder, "load.sql"), rows(SQL, 200000, scale))
    return [shutil.which("sqlite3"), "-bail", "-init", script, ":memory:", ".exit"]


def perl(folder, scale):
    return [shutil.which("perl"), write(os.path.join(folder, "load.pl"), rows(PERL, 60000, scale))]


def redis(folder, _):
    return [shutil.which("redis-server"), "--port", "0", "--unixsocket", os.path.join(folder, "socket"), "--save", ""]


def redis_load(folder, scale, pipeline):
    """What talks to the server: the same commands in the same order, from 50 clients, as redis-benchmark does it unasked; `pipeline`
    commands go at once."""
    count = str(max(500, int(100000 * scale)))
    return ["redis-benchmark", "-s", os.path.join(folder, "socket"), "-n", count, "-P", str(pipeline), "-r", "10000", "-d", "200",
            "-t", "set,get,lpush,lpop,hset", "-q"]


# name -> (command that must be installed, function, what is printed beside the name)
PROGRAMS = {
    "cc1plus": ("g++", cc1plus, "g++ -O2 on headers of the standard library"),
    "cc1plus-code": ("g++", cc1plus_code, "g++ -O2 on code with nlohmann/json and regular expressions"),
    "python3": ("python3", python3, "a script of classes, regular expressions and JSON, Python's own allocator on"),
    "python3-malloc": ("python3", python3_malloc, "JSON out and in with PYTHONMALLOC=malloc: each object a call"),
    "sqlite3": ("sqlite3", sqlite3, "fills, indexes and reads a table in memory"),
    "perl": ("perl", perl, "splits, counts and sorts words, builds hashes"),
    "redis": ("redis-benchmark", redis, "redis-server as redis-benchmark sees it; time is the benchmark's"),
    "redis-pipelined": ("redis-benchmark", redis, "the same with four commands at a time (-P 4)"),
}
SERVERS = {"redis": 1, "redis-pipelined": 4}  # How many commands go at once.
