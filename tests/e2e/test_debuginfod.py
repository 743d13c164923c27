# SPDX-License-Identifier: Apache-2.0
"""Names from a debuginfod server where the program has none: they come into the trace; a server that never answers costs what the limit
allows; one that answers with another build's file is not believed."""

import http.server
import os
import shutil
import socket
import subprocess
import threading
import time
import unittest

import recording

LIMIT_S = 2


class Server(http.server.ThreadingHTTPServer):
    """Serves /buildid/ID/debuginfo out of a dictionary, and keeps what was asked for."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.asked = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.server.files.get(self.path)
        if path is None:
            self.send_error(404)
            return
        with open(path, "rb") as file:
            content = file.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Debuginfod(recording.RecordingTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for tool in ("debuginfod-find", "objcopy", "strip", "readelf"):
            if shutil.which(tool) is None:
                raise unittest.SkipTest(f"{tool} is not installed")

    def setUp(self):
        super().setUp()
        self.program = self.path("stripped")
        self.debug_file = self.path("stripped.debug-elsewhere")
        shutil.copy(recording.victim("keep_one"), self.program)
        subprocess.run(["objcopy", "--only-keep-debug", self.program, self.debug_file], check=True)
        subprocess.run(["strip", self.program], check=True)
        notes = subprocess.run(["readelf", "-n", self.program], check=True, capture_output=True, text=True).stdout
        (self.build_id,) = [line.split()[-1] for line in notes.splitlines() if "Build ID:" in line]

    def record_with(self, url, **environment):
        """Records with this server; returns the trace and how long that took."""
        environment = {**os.environ, "DEBUGINFOD_URLS": url, "DEBUGINFOD_CACHE_PATH": self.path("cache"), **environment}
        began = time.monotonic()
        trace = self.record([self.program], ["--quiet", "--no-faults"], name=f"{began}.db", env=environment)
        return trace, time.monotonic() - began

    def names(self, trace):
        """(function, file, line) of the frames in the program."""
        return {(row["function"], os.path.basename(row["file"] or ""), row["line"] or 0) for row in trace.sql(
            "SELECT function, file, line FROM symbol JOIN frame ON frame.id = symbol.frame JOIN module ON module.id = frame.module"
            " WHERE module.path LIKE '%/stripped'")}

    def is_known(self, trace):
        return any("keep_one" in function and file == "keep_one.cc" and line > 0 for function, file, line in self.names(trace))

    def test_names_from_a_server(self):
        # Goal: functions, files and lines, resolved while recording and kept in the trace. Method: a stripped victim whose debug
        # information only the server has; without it, and with another build's file in its place, there are no names.
        native = self.native([self.program])
        self.assertFalse(self.is_known(self.record_with("")[0]))
        path = f"/buildid/{self.build_id}/debuginfo"
        with Server({path: recording.victim("planted")}) as server:
            self.assertFalse(self.is_known(self.record_with(server.url)[0]))
            self.assertIn(path, server.asked)
            server.shutdown()
        shutil.rmtree(self.path("cache"))
        with Server({path: self.debug_file}) as server:
            trace, _ = self.record_with(server.url)
            server.shutdown()
        self.assertEqual((trace.run.returncode, trace.run.stdout, trace.run.stderr), (native.returncode, native.stdout, b""))
        self.assertIn(path, server.asked)
        self.assertEqual(server.asked.count(path), 1)
        self.assertTrue(self.is_known(trace), self.names(trace))
        # Kept: the server is gone, the file too.
        shutil.rmtree(self.path("cache"))
        os.unlink(self.program)
        self.assertIn(b"keep_one", self.native([recording.HEAPLEDGER, "hotspots", trace.path]).stdout)

    def test_a_server_that_never_answers(self):
        # Goal: it costs the limit once, not for each file, and nothing else is lost. Method: a port that takes connections and is silent.
        native = self.native([self.program])
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(100)
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            trace, seconds = self.record_with(url, HEAPLEDGER_DEBUGINFOD_SECONDS=str(LIMIT_S))
            silent.settimeout(0)
            silent.accept()[0].close()  # It was asked.
        self.assertEqual((trace.run.returncode, trace.run.stdout, trace.run.stderr), (native.returncode, native.stdout, b""))
        self.assertGreaterEqual(seconds, LIMIT_S)
        # debuginfod's own limit is 90 s, for each of the program's files.
        self.assertLess(seconds, 45)
        self.assertFalse(self.is_known(trace))
        self.assertGreater(trace.one("SELECT count(*) FROM symbol"), 0)  # Of the libraries.


if __name__ == "__main__":
    recording.main()
