# SPDX-License-Identifier: Apache-2.0
"""`heapledger record` is not noticed: status, signals, streams, descriptors, children are the
program's own. Each test runs the same program with and without it and compares."""
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest

from recording import HEAPLEDGER, LIMIT_S, PROGRAMS, RecordingTest


class EndsAsTheProgramEnds(RecordingTest):
    def test_exit_statuses(self):
        # Goal: every status comes through. Method: the corners of the 8 bits.
        for status in (0, 1, 2, 77, 126, 127, 128, 255):
            self.assertEqual(self.record("sh", "-c", f"exit {status}").returncode, status)

    def test_signals(self):
        # Goal: killed by a signal is killed by that signal, not status 128+N. Method: subprocess
        # says -N for the former.
        for number in (signal.SIGSEGV, signal.SIGKILL, signal.SIGINT, signal.SIGTERM,
                       signal.SIGABRT, signal.SIGHUP, signal.SIGPIPE, signal.SIGRTMIN + 3):
            command = (sys.executable, "-c", f"import os, signal; signal.signal({int(number)}, "
                       f"signal.SIG_DFL) if {int(number)} != 9 else 0; os.kill(os.getpid(), {int(number)})")
            self.assertEqual(self.record(*command).returncode, -number)

    def test_no_core_of_our_own(self):
        # Goal: one crash leaves one core file, the program's. Method: where cores go to the current
        # folder, none may stand there of heapledger (the program forbids its own).
        result = self.record("sh", "-c", "ulimit -c 0; kill -SEGV $$",
                             preexec_fn=lambda: os.chdir(self.folder))
        self.assertEqual(result.returncode, -signal.SIGSEGV)
        self.assertEqual([n for n in os.listdir(self.folder) if n.startswith("core")], [])


class PassesEverythingThrough(RecordingTest):
    def assertSame(self, *command, **options):
        native = self.run_native(*command, **options)
        recorded = self.record(*command, **options)
        self.assertEqual(recorded.stdout, native.stdout)
        self.assertEqual(recorded.stderr, native.stderr)
        self.assertEqual(recorded.returncode, native.returncode)
        return recorded

    def test_streams(self):
        # Goal: stdin, stdout and stderr are the program's own. Method: a filter with all three.
        options = {"stdin": None, "input": b"some\nwords\n" * 5000}
        self.assertSame("sh", "-c", "tr a-z A-Z; echo to stderr >&2; exit 4", **options)

    def test_descriptors(self):
        # Goal: the program has the descriptors it would have, and no other. Method: it lists them,
        # with inherited ones, by kind (numbers of pipes and pids differ between any two runs).
        script = ("import os\n"
                  "for n in sorted(map(int, os.listdir('/proc/self/fd'))):\n"
                  "  try: print(n, os.readlink(f'/proc/self/fd/{n}').split('[')[0])\n"
                  "  except OSError: pass\n")
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        self.assertSame(sys.executable, "-c", script, pass_fds=(reader, writer))

    def test_closed_streams(self):
        # Goal: closed standard streams stay closed for the program, and nothing of ours lands on
        # their numbers. Method: the shell lists what it has of the three, on descriptor 9.
        listing = "for n in 0 1 2; do [ -e /proc/$$/fd/$n ] && echo $n >&9; done; exit 3"
        record = f"{HEAPLEDGER} record --force -o {self.trace} --"
        for closed in ("<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"):
            found = []
            for prefix in ("", record):
                path = os.path.join(self.folder, "streams")
                result = self.run_native("sh", "-c", f"{prefix} sh -c '{listing}' 9>{path} {closed}")
                self.assertEqual(result.returncode, 3)
                with open(path, encoding="ascii") as file:
                    found.append(file.read())
            self.assertEqual(found[1], found[0], closed)

    def test_signal_mask_and_dispositions(self):
        # Goal: the program inherits what we inherited. Method: blocked and ignored signals, SIGCHLD
        # among them, as the kernel lists them.
        def prepare():
            signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR2, signal.SIGTERM})
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGTSTP):
                signal.signal(number, signal.SIG_IGN)
        command = ("grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status")
        native = self.run_native(*command, preexec_fn=prepare)
        recorded = self.record(*command, preexec_fn=prepare)
        self.assertEqual(recorded.stdout, native.stdout)
        self.assertEqual(recorded.returncode, 0)

    def test_group_session_and_limits(self):
        # Goal: process group, session, limits, folder, umask, niceness are inherited.
        script = ("import os, resource\n"
                  "print(os.getpgrp() == int(os.environ['GROUP']), os.getsid(0), os.getcwd(), os.nice(0))\n"
                  "print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE))\n")
        environment = dict(os.environ, GROUP=str(os.getpgrp()))
        self.assertSame(sys.executable, "-c", script, env=environment)

    def test_program_that_takes_the_address_of_malloc(self):
        # Goal: where an executable is not position-independent, malloc's address is in its PLT; that
        # is no malloc of its own. Method: such a program is recorded, without a word on stderr.
        result = self.assertSame(os.path.join(PROGRAMS, "malloc_pointer"))
        self.assertEqual(result.stderr, b"")
        self.assertGreaterEqual(int(self.sql("SELECT events FROM process")[0][0]), 2000)

    def test_environment(self):
        # Goal: nothing is removed from the environment, and only what is documented is added.
        def variables(output):
            return dict(line.split("=", 1) for line in output.decode().split("\0") if line)
        environment = dict(os.environ, LD_PRELOAD="", HEAPLEDGER_RECORD="off", SOME="thing")
        native = variables(self.run_native("env", "-0", env=environment).stdout)
        recorded = variables(self.record("env", "-0", env=environment, flags=(
            "--quiet", "--top-pad", "1M")).stdout)
        added = {name for name in recorded if recorded[name] != native.get(name)}
        self.assertEqual(added, {"LD_PRELOAD", "HEAPLEDGER_SESSION", "HEAPLEDGER_TOP_PAD"})
        self.assertEqual(set(native) - set(recorded), {"HEAPLEDGER_RECORD"})
        self.assertEqual(recorded["HEAPLEDGER_TOP_PAD"], "1048576")

    def test_preload_is_kept(self):
        # Goal: a library that the user preloads is still loaded. Method: read its name in the maps.
        library = subprocess.run(["sh", "-c", "ldconfig -p | sed -n 's/.*libz.so.1 .*=> //p' | head -1"],
                                 capture_output=True, text=True, check=True).stdout.strip()
        self.assertTrue(library)
        result = self.record("cat", "/proc/self/maps", env=dict(os.environ, LD_PRELOAD=library))
        self.assertIn(b"libz.so.1", result.stdout)
        self.assertIn(b"libheapledger.so", result.stdout)

    def test_paths_that_the_loader_would_split(self):
        # Goal: an installation in a folder with a space, a colon and a dollar sign works. Method:
        # copy the programs there; the loader splits LD_PRELOAD at the first two.
        folder = os.path.join(self.folder, "a b:c$d")
        result = self.run_native(self.copy_programs(folder), "record", "--quiet", "-o", self.trace,
                                 "cat", "/proc/self/maps")
        self.assertEqual(result.stderr, b"")
        self.assertIn(b"libheapledger.so", result.stdout)


class LeavesProcessesAlone(RecordingTest):
    def test_wait_for_any_child_sees_own_children_only(self):
        # Goal: waitpid(-1) in the program never returns a process of ours. Method: fork two, wait
        # until there are no more.
        script = ("import os\n"
                  "mine = set()\n"
                  "for _ in range(2):\n"
                  "  pid = os.fork()\n"
                  "  if pid == 0: os._exit(0)\n"
                  "  mine.add(pid)\n"
                  "seen = set()\n"
                  "while True:\n"
                  "  try: seen.add(os.waitpid(-1, 0)[0])\n"
                  "  except ChildProcessError: break\n"
                  "assert seen == mine, (seen, mine)\n")
        self.assertEqual(self.record(sys.executable, "-c", script).stderr, b"")

    def test_pipe_ends_with_the_program(self):
        # Goal: neither `record` nor the collector holds the program's pipe, also while something
        # that closed its own streams is still recorded. Method: a sleeper is left behind; stdout and
        # stderr must both reach their end long before it ends.
        started = time.monotonic()
        result = self.record("sh", "-c", "sleep 20 </dev/null >/dev/null 2>&1 & echo $!")
        elapsed = time.monotonic() - started
        sleeper = int(result.stdout)
        self.assertEqual(os.readlink(f"/proc/{sleeper}/exe").split("/")[-1], "sleep")
        os.kill(sleeper, signal.SIGKILL)
        self.assertLess(elapsed, 15)
        self.assertEqual(result.returncode, 0)

    def test_names_what_still_runs(self):
        # Goal: `record` returns with the program and names who is still recorded.
        result = self.record("sh", "-c", "sleep 20 </dev/null >/dev/null 2>&1 & echo $!",
                             flags=("--force",))
        sleeper = result.stdout.decode().strip()
        os.kill(int(sleeper), signal.SIGKILL)
        self.assertIn(f"still running and recorded: {sleeper} (sleep)", result.stderr.decode())

    def test_wait_waits_for_all(self):
        # Goal: --wait returns when the last recorded process has ended. Method: a sleeper left
        # behind writes a file at its end.
        mark = os.path.join(self.folder, "mark")
        script = f"(sleep 1; echo end >{mark}) </dev/null >/dev/null 2>&1 &"
        result = self.record("sh", "-c", script, flags=("--quiet", "--wait"))
        self.assertEqual(result.returncode, 0)
        self.assertTrue(os.path.exists(mark))
        self.assertEqual(self.sql("SELECT value FROM meta WHERE key='state'"), [["complete"]])


class PassesSignalsOn(RecordingTest):
    COUNTER = ("import os, signal, sys, time\n"
               "count = 0\n"
               "def handle(number, frame):\n"
               "  global count; count += 1\n"
               "signal.signal(signal.SIGUSR1, handle)\n"
               "signal.signal(signal.SIGTERM, lambda *_: sys.exit(40 + count))\n"
               "print('ready', flush=True)\n")

    def start(self, script):
        process = subprocess.Popen(
            [HEAPLEDGER, "record", "--quiet", "-o", self.trace, sys.executable, "-c", script],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.readline(), b"ready\n")
        return process

    def test_sent_to_record_alone(self):
        # Goal: a signal to `record` reaches the program, once. Method: it counts, SIGTERM ends it.
        process = self.start(self.COUNTER + "while True: time.sleep(1)\n")
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(LIMIT_S), 41)

    def test_sent_by_the_program_to_its_group(self):
        # Goal: kill(0, ...) in the program, or in a child of it, reaches it once: `record` is in the
        # same group, and must not send it on.
        script = (self.COUNTER +
                  "os.kill(0, signal.SIGUSR1)\n"
                  "if os.fork() == 0:\n"
                  "  os.kill(0, signal.SIGUSR1); time.sleep(0.5); os._exit(0)\n"
                  "try: os.wait()\n"
                  "except InterruptedError: pass\n"
                  "time.sleep(0.5); sys.exit(40 + count)\n")
        self.assertEqual(self.start(script).wait(LIMIT_S), 42)

    def test_killed_record_takes_the_program_along(self):
        # Goal: SIGKILL to the pid that the user holds ends the work, as without us.
        process = self.start(self.COUNTER + "print(os.getpid(), flush=True)\ntime.sleep(60)\n")
        pid = int(process.stdout.readline())
        process.kill()
        process.wait(LIMIT_S)
        for _ in range(100):
            if not os.path.exists(f"/proc/{pid}"):
                break
            time.sleep(0.05)
        self.assertFalse(os.path.exists(f"/proc/{pid}"))


class SaysWhatIsWrong(RecordingTest):
    def test_missing_program(self):
        result = self.record("nosuchprogram")
        self.assertEqual(result.returncode, 127)
        self.assertEqual(result.stderr,
                         b"heapledger: record: nosuchprogram: No such file or directory\n")
        self.assertFalse(os.path.exists(self.trace))

    def test_not_executable(self):
        for path in ("/etc/passwd", "/etc"):
            result = self.record(path)
            self.assertEqual(result.returncode, 126)
            self.assertOneLine(result.stderr, path, "Permission denied")

    def test_missing_interpreter(self):
        # Goal: exec itself fails, after all our checks: one line, the shell's status, no trace left.
        script = os.path.join(self.folder, "script")
        with open(script, "w", encoding="ascii") as file:
            file.write("#!/no/such/interpreter\n")
        os.chmod(script, 0o755)
        result = self.record(script)
        self.assertEqual(result.returncode, 127)
        self.assertOneLine(result.stderr, script, "No such file or directory")
        self.assertFalse(os.path.exists(self.trace))

    def test_script_without_interpreter_line(self):
        # Goal: as execvp, a file without #! is the shell's.
        script = os.path.join(self.folder, "script")
        with open(script, "w", encoding="ascii") as file:
            file.write("exit 9\n")
        os.chmod(script, 0o755)
        self.assertEqual(self.record(script).returncode, 9)

    def test_static_program(self):
        # Goal: it runs, one line says why it is not recorded, and so does its row.
        result = self.record(os.path.join(PROGRAMS, "answer_static"), "6")
        self.assertEqual(result.returncode, 6)
        self.assertEqual(result.stdout, b"answer 6\n")
        self.assertOneLine(result.stderr, "statically linked")
        self.assertEqual(self.sql("SELECT recorded, reason, exit_status FROM process"),
                         [["0", "statically linked", "6"]])

    @unittest.skipUnless(os.geteuid() == 0, "needs root to make a setuid program")
    def test_setuid_program(self):
        # Goal and method as for the static one: a setuid copy, run by another user.
        os.chmod(self.folder, 0o777)
        program = os.path.join(self.folder, "answer")
        shutil.copy(os.path.join(PROGRAMS, "answer"), program)
        os.chmod(program, 0o4755)
        heapledger = self.copy_programs(os.path.join(self.folder, "bin"))
        result = self.run_native(heapledger, "record", "--quiet", "-o", self.trace, program, "5",
                                 user=65534, group=65534, extra_groups=[])
        self.assertEqual(result.returncode, 5)
        self.assertOneLine(result.stderr, "setuid")
        self.assertEqual(self.sql("SELECT recorded, reason, exit_status FROM process"),
                         [["0", "runs with raised privileges (setuid)", "5"]])

    def test_output_exists(self):
        # Goal: an existing file is kept unless --force is given, and nothing has run.
        with open(self.trace, "w", encoding="ascii") as file:
            file.write("precious")
        mark = os.path.join(self.folder, "mark")
        result = self.record("touch", mark, flags=("--quiet",))
        self.assertEqual(result.returncode, 1)
        self.assertOneLine(result.stderr, "trace.db")
        self.assertFalse(os.path.exists(mark))
        with open(self.trace, encoding="ascii") as file:
            self.assertEqual(file.read(), "precious")
        self.assertEqual(self.record("touch", mark).returncode, 0)
        self.assertTrue(os.path.exists(mark))

    def test_output_folder_missing(self):
        mark = os.path.join(self.folder, "mark")
        result = self.heapledger("record", "-o", "no/such/folder/x.db", "touch", mark)
        self.assertEqual(result.returncode, 1)
        self.assertOneLine(result.stderr, "no/such/folder/x.db")
        self.assertFalse(os.path.exists(mark))

    def test_usage(self):
        # Goal: wrong usage is one line and status 2.
        for arguments in ((), ("nosuchcommand",), ("--nosuchoption",), ("record",),
                          ("record", "--nosuchoption", "true"), ("record", "--stack-depth"),
                          ("record", "--stack-depth", "many", "true"),
                          ("record", "--tcache-count", "65536", "true"),
                          ("record", "--mmap-threshold", "12X", "true"),
                          ("record", "--fault-source", "guess", "true"),
                          ("record", "--syscalls", "all", "true"),
                          ("compare", "--mmap-threshold", "lots", "--", "true")):
            result = self.heapledger(*arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertOneLine(result.stderr)
            self.assertEqual(result.stdout, b"")

    def test_help(self):
        for arguments in (("--help",), ("record", "--help"), ("compare", "--help"), ("doctor", "--help")):
            result = self.heapledger(*arguments)
            self.assertEqual((result.returncode, result.stderr), (0, b""))
            self.assertIn(b"Usage: heapledger", result.stdout)
        self.assertRegex(self.heapledger("--version").stdout, rb"^heapledger \d+\.\d+\.\d+\n$")

    def test_default_name(self):
        # Goal: heapledger.PROGRAM.PID.db in the current folder, PID the program's.
        result = self.heapledger("record", "--quiet", "sh", "-c", "echo $$")
        name = f"heapledger.sh.{result.stdout.decode().strip()}.db"
        self.assertIn(name, os.listdir(self.folder))

    def test_result_on_stderr(self):
        # Goal: how the program ended, what was written and lost, and the next command; no progress
        # line where stderr is no terminal.
        result = self.record("sh", "-c", "exit 3", flags=())
        lines = result.stderr.decode().splitlines()
        self.assertEqual(len(lines), 3, lines)
        self.assertRegex(lines[0], r"^heapledger: sh ended with status 3 after \d+\.\d\d s$")
        self.assertRegex(lines[1], r"trace\.db: [\d,]+ events? of 1 process, .*; nothing lost$")
        self.assertEqual(lines[2], "heapledger: next: heapledger summary trace.db")


if __name__ == "__main__":
    unittest.main()
