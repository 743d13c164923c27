#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: for the calls of real programs, too, the model takes glibc's decisions, to the byte. Method: record each program, then
# let glibc_driver and the model make its calls. Usage: recorded_programs.sh BIN-FOLDER
set -euo pipefail
bin=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0

# check NAME PROGRAM ARGS...: one process with one thread.
check() {
  local name=$1
  shift
  if ! command -v "$1" >/dev/null; then
    echo "$name: not installed, left out"
    return
  fi
  "$bin/heapledger" record --quiet --no-stacks --no-faults -o "$folder/$name.db" -- "$@" >/dev/null
  (cd "$folder" && "$bin/heap_differential" --trace "$name.db" --process 1) || failures=$((failures + 1))
}

printf '#include <%s>\n' map string vector >"$folder/source.cc"
echo 'std::map<std::string, std::vector<int>> m; int main() { m["a"].push_back(1); }' >>"$folder/source.cc"
if command -v g++ >/dev/null; then
  g++ -E -o "$folder/source.ii" "$folder/source.cc"
  check cc1plus "$(g++ -print-prog-name=cc1plus)" -quiet -fpreprocessed -O1 "$folder/source.ii" -o "$folder/source.s"
fi

check python3 /usr/bin/python3 -c '
import json
rows = [{"id": i, "name": "n%d" % i, "value": [i * 0.5] * (i % 9)} for i in range(3000)]
print(len(json.loads(json.dumps(rows))))'

check perl /usr/bin/perl -e '
my %words; $words{"w" . ($_ * $_ % 977)} .= " $_" x ($_ % 50) for 1 .. 5000;
print join(",", map { length } sort values %words);'

check sqlite3 /usr/bin/sqlite3 :memory: "
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
  INSERT INTO t SELECT i, printf('name %d', i * 7919 % 10007) FROM n;
CREATE INDEX by_name ON t(name); SELECT count(*), group_concat(name) FROM t; DELETE FROM t WHERE id % 3 = 0; VACUUM;"

export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_PAGER=cat
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
if command -v git >/dev/null; then
  git init -q "$folder/repository"
  for revision in 1 2 3 4 5; do
    for file in 1 2 3 4 5 6 7 8; do seq "$revision" $((revision * file * 50)) >"$folder/repository/$file.txt"; done
    git -C "$folder/repository" add -A
    git -C "$folder/repository" commit -q -m "revision $revision"
  done
fi
check git /usr/bin/git -C "$folder/repository" log -p --stat

exit $((failures != 0))
