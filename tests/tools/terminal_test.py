# SPDX-License-Identifier: Apache-2.0
"""On a terminal a recorded program behaves as one run alone: Ctrl-C, Ctrl-Z, fg, background reads,
a hang-up. Each test drives an interactive bash on a pseudo-terminal and reads what it says."""
import os
import pty
import re
import select
import signal
import sys
import time
import unittest

from recording import HEAPLEDGER, LIMIT_S, RecordingTest

PROMPT = "prompt> "


class Shell:
    """bash on a pseudo-terminal of its own."""

    def __init__(self, folder):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            environment = dict(os.environ, PS1=PROMPT, TERM="dumb", HISTFILE="/dev/null")
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self.heard = ""
        self.expect(re.escape(PROMPT))

    def expect(self, pattern):
        """Reads until the pattern has come; returns all up to and with it, and forgets that."""
        end = time.monotonic() + LIMIT_S
        while True:
            match = re.search(pattern, self.heard)
            if match:
                result = self.heard[:match.end()]
                self.heard = self.heard[match.end():]
                return result
            if time.monotonic() > end:
                raise AssertionError(f"no {pattern!r} in {self.heard!r}")
            if select.select([self.terminal], [], [], 0.2)[0]:
                try:
                    self.heard += os.read(self.terminal, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"the shell has gone; no {pattern!r} in {self.heard!r}")

    def rest(self):
        """What has come and was not expected, for a message."""
        while select.select([self.terminal], [], [], 0.5)[0]:
            try:
                self.heard += os.read(self.terminal, 65536).decode(errors="replace")
            except OSError:
                break
        return self.heard

    def type(self, text):
        os.write(self.terminal, text.encode())

    def run(self, command):
        """Types a command and reads its echo."""
        self.type(command + "\n")
        self.expect(r"\r\n")

    def hang_up(self):
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


class Terminal(RecordingTest):
    # Says what reaches it, by write(): print() may not interrupt itself. Ends by SIGINT as programs do.
    PROGRAM = ("import os, signal, sys, time\n"
               "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
               "signal.signal(signal.SIGCONT, lambda *_: os.write(1, b'CONTINUED\\n'))\n"
               "os.write(1, b'READY %d\\n' % os.getpid())\n"
               "while True: time.sleep(0.1)\n")

    def setUp(self):
        super().setUp()
        with open(os.path.join(self.folder, "program.py"), "w", encoding="ascii") as file:
            file.write(self.PROGRAM)
        self.program = f"{sys.executable} program.py"
        self.recorded = f"{HEAPLEDGER} record --force -o trace.db {self.program}"
        self.shell = Shell(self.folder)
        self.addCleanup(self.end_shell)

    def end_shell(self):
        try:
            os.kill(self.shell.pid, signal.SIGKILL)
            self.shell.hang_up()
        except (OSError, ChildProcessError):
            pass

    def state_of(self, pid):
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0]

    def await_state(self, pid, states):
        state = ""
        for _ in range(LIMIT_S * 20):
            try:
                state = self.state_of(pid)
            except FileNotFoundError:
                self.fail(f"{pid} has ended, was {state}; the shell: {self.shell.rest()!r}")
            if state in states:
                return
            time.sleep(0.05)
        self.fail(f"{pid} is {state}, not {states}")

    def start(self):
        self.shell.run(self.recorded)
        return int(re.search(r"READY (\d+)", self.shell.expect(r"READY \d+\r")).group(1))

    def test_ctrl_c(self):
        # Goal: Ctrl-C ends the program by SIGINT and the shell sees that; the trace is complete.
        self.start()
        self.shell.type("\x03")
        self.shell.expect(re.escape(PROMPT))
        self.shell.run("echo status=$?")
        self.shell.expect("status=130")
        self.assertEqual(self.sql("SELECT ended_by, signal FROM process WHERE id=1"),
                         [["signal", str(int(signal.SIGINT))]])

    def test_ctrl_c_that_the_program_survives(self):
        # Goal: a program that handles SIGINT goes on, and gets it once.
        script = self.PROGRAM.replace("signal.signal(signal.SIGINT, signal.SIG_DFL)",
                                      "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'INTERRUPTED\\n'))")
        script = script.replace("while True: time.sleep(0.1)", "for _ in range(20): time.sleep(0.1)")
        with open(os.path.join(self.folder, "program.py"), "w", encoding="ascii") as file:
            file.write(script)
        self.start()
        self.shell.type("\x03")
        text = self.shell.expect(re.escape(PROMPT))
        self.assertEqual(text.count("INTERRUPTED"), 1, text)
        self.shell.run("echo status=$?")
        self.shell.expect("status=0")

    def test_ctrl_z_and_fg(self):
        # Goal: Ctrl-Z stops both, the shell says so, fg continues both, once; twice over.
        pid = self.start()
        for _ in range(2):
            self.shell.type("\x1a")
            self.shell.expect("Stopped")
            self.shell.expect(re.escape(PROMPT))
            self.await_state(pid, "T")
            self.shell.run("fg")
            text = self.shell.expect("CONTINUED")
            self.await_state(pid, "SR")
        self.shell.type("\x03")
        text = self.shell.expect(re.escape(PROMPT))
        self.assertNotIn("CONTINUED", text)
        self.shell.run("echo status=$?")
        self.shell.expect("status=130")

    def test_bg_and_kill(self):
        # Goal: bg lets it run on in the background, `kill %1` ends it by SIGTERM.
        pid = self.start()
        self.shell.type("\x1a")
        self.shell.expect("Stopped")
        self.shell.run("bg")
        self.await_state(pid, "SR")
        self.shell.run("kill %1; wait %1; echo status=$?")
        self.shell.expect("status=143")

    def test_background_read(self):
        # Goal: a background program that reads from the terminal is stopped, as without us, and gets
        # its line after fg.
        self.shell.run(f"{HEAPLEDGER} record --quiet --force -o trace.db sh -c "
                       "'read line; echo got-$line' &")
        self.shell.expect(re.escape(PROMPT))
        for _ in range(LIMIT_S * 5):
            self.shell.run("jobs")
            if "Stopped" in self.shell.expect(re.escape(PROMPT)):
                break
            time.sleep(0.2)
        self.shell.run("fg")
        self.shell.type("word\n")
        self.shell.expect("got-word")

    def test_hang_up(self):
        # Goal: a closed terminal ends the program by SIGHUP; the trace is complete.
        pid = self.start()
        self.shell.hang_up()
        for _ in range(LIMIT_S * 20):
            if not os.path.exists(f"/proc/{pid}"):
                break
            time.sleep(0.05)
        self.assertFalse(os.path.exists(f"/proc/{pid}"))
        for _ in range(LIMIT_S * 10):
            rows = self.sql("SELECT value FROM meta WHERE key='state'")
            if rows == [["complete"]]:
                break
            time.sleep(0.1)
        self.assertEqual(rows, [["complete"]])
        self.assertEqual(self.sql("SELECT ended_by, signal FROM process WHERE id=1"),
                         [["signal", str(int(signal.SIGHUP))]])

    # Stops its own collector, so that this still has to pack when the program has ended.
    STOPPER = ("import os, signal\n"
               "trace = os.path.realpath('trace.db')\n"
               "def writes_trace(pid):\n"
               "  try:\n"
               "    name = open(f'/proc/{pid}/comm').read()\n"
               "    return name.startswith('heapledger-col') and any(\n"
               "        os.readlink(f'/proc/{pid}/fd/{fd}') == trace for fd in os.listdir(f'/proc/{pid}/fd'))\n"
               "  except OSError: return False\n"
               "collector = next(int(pid) for pid in os.listdir('/proc') if pid.isdigit() and writes_trace(pid))\n"
               "os.kill(collector, signal.SIGSTOP)\n"
               "os.write(1, b'READY %d COLLECTOR %d\\n' % (os.getpid(), collector))\n"
               "os._exit(5)\n")

    def start_stopper(self):
        """Returns the collector's pid, once the program has ended."""
        with open(os.path.join(self.folder, "program.py"), "w", encoding="ascii") as file:
            file.write(self.STOPPER)
        self.shell.run(self.recorded)
        match = re.search(r"READY (\d+) COLLECTOR (\d+)\r", self.shell.expect(r"COLLECTOR \d+\r"))
        collector = int(match.group(2))
        self.addCleanup(self.continue_process, collector)
        for _ in range(LIMIT_S * 20):
            if not os.path.exists(f"/proc/{match.group(1)}"):
                break
            time.sleep(0.05)
        return collector

    def continue_process(self, pid):
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    def test_ctrl_c_while_the_trace_is_packed(self):
        # Goal: the first asks, in one line, the second keeps what is packed; the trace opens and says
        # so, and the status is the program's.
        collector = self.start_stopper()
        self.shell.type("\x03")
        asked = self.shell.expect("press Ctrl-C again to keep only what is packed\r\n")
        self.assertEqual(asked.count("heapledger: record: "), 1, asked)
        self.shell.type("\x03")
        time.sleep(0.2)
        self.continue_process(collector)
        self.shell.expect("trace.db is cut short: interrupted")
        self.shell.expect(re.escape(PROMPT))
        self.shell.run("echo status=$?")
        self.shell.expect("status=5")
        self.assertEqual(self.sql("SELECT value FROM meta WHERE key='state'"), [["stopped"]])
        self.assertEqual(self.sql("SELECT exit_status FROM process WHERE id=1"), [["5"]])
        summary = self.heapledger("summary", "trace.db")
        self.assertEqual(summary.returncode, 0, summary.stderr)
        self.assertIn(b"the recording was cut short: interrupted", summary.stdout)

    def test_one_ctrl_c_while_the_trace_is_packed(self):
        # Goal: a Ctrl-C in a hurry costs nothing: the trace is packed to its end.
        collector = self.start_stopper()
        self.shell.type("\x03")
        self.shell.expect("press Ctrl-C again")
        self.continue_process(collector)
        self.shell.expect(re.escape(PROMPT))
        self.shell.run("echo status=$?")
        self.shell.expect("status=5")
        self.assertEqual(self.sql("SELECT value FROM meta WHERE key='state'"), [["complete"]])

    def test_terminal_stays_the_programs(self):
        # Goal: the program is in the terminal's foreground and sees it as its own.
        script = "import os; print('FORE', os.tcgetpgrp(0) == os.getpgrp(), os.isatty(1), os.isatty(2))"
        self.shell.run(f"{HEAPLEDGER} record --quiet --force -o trace.db {sys.executable} -c \"{script}\"")
        self.shell.expect("FORE True True True")


if __name__ == "__main__":
    unittest.main()
