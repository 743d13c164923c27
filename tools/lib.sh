# SPDX-License-Identifier: Apache-2.0
# Shared by tools/quickstart and tools/test: installs what is missing, builds. Sourced, with the
# repository as current folder. Runs without a terminal and asks nothing.

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# Names of part 1, or of parts 1 and 2, of tools/packages.txt.
packages_of() {
  case $1 in
    build) sed '/^# Part 2/,$d' tools/packages.txt ;;
    test) sed '/^# Part 3/,$d' tools/packages.txt ;;
  esac | sed 's/#.*//' | tr -s ' \t' '\n' | sed '/^$/d'
}

missing_of() {
  local package
  for package in $(packages_of "$1"); do
    # "ii" also for the virtual cases a -dev package of another name covers is dpkg's business: a
    # name that is not installed is asked of apt.
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || echo "$package"
  done
}

# A package that brings a service (redis-server) must not start it on the user's machine.
# policy-rc.d is Debian's way to say so; it is taken away again.
with_services_off() {
  local policy=/usr/sbin/policy-rc.d status=0
  if [ -e "$policy" ]; then
    "$@"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
  $as_root chmod 755 "$policy"
  "$@" || status=$?
  $as_root rm -f "$policy"
  return $status
}

apt_install() {
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@"
}

# install_missing build|test
install_missing() {
  local missing as_root log
  missing=$(missing_of "$1" | tr '\n' ' ')
  missing=${missing% }
  [ -n "$missing" ] || return 0
  command -v apt-get >/dev/null ||
    fail "these packages are missing, under their Debian names: $missing"
  as_root=
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
      as_root=sudo
    else
      fail "missing packages; as root: apt-get install $missing"
    fi
  fi
  echo "Installing: $missing"
  log=$(mktemp)
  # The package lists may be absent (a fresh image) or old: fetched only where the first try fails.
  if ! with_services_off apt_install $missing >"$log" 2>&1; then
    $as_root apt-get update -q >"$log" 2>&1 || { tail -n 5 "$log" >&2; fail "apt-get update failed"; }
    with_services_off apt_install $missing >"$log" 2>&1 ||
      { tail -n 5 "$log" >&2; fail "not installed; try: apt-get install $missing"; }
  fi
  rm -f "$log"
}

# build PRESET [TARGET...]: configures and builds; its output is shown only where it fails.
build() {
  local preset=$1 log
  shift
  log=build/$preset.log
  mkdir -p build
  echo "Building (build/$preset)"
  if ! { cmake --preset "$preset" && cmake --build "build/$preset" -j "$(nproc)" ${1:+--target "$@"}; } >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    fail "the build failed; all of its output: $log"
  fi
}
