"""Drives `kvscout top` in a pseudo-terminal and reads the screen as a terminal shows it.

Arguments: the program, and the address of a daemon that has what `tests/top.rs` gave it.
"""

import fcntl
import http.server
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request

import pyte

PROGRAM, DAEMON = sys.argv[1:3]
PATIENCE = 30
COLOUR = rb"\x1b\[(?:[0-9]+;)*(?:3[0-8]|4[0-8])(?:;[0-9]+)*m"
LEAVES, SHOWS_CURSOR = b"\x1b[?1049l", b"\x1b[?25h"


class Relay:
    """The daemon at an address of its own, which can go away and come back."""

    def __init__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with urllib.request.urlopen(f"http://{DAEMON}{self.path}") as answer:
                    body = answer.read()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.handler, self.port = Handler, 0
        self.start()

    def start(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class Top:
    """A running `kvscout top` and the screen that it draws on."""

    def __init__(self, url, columns=100, lines=24, **environment):
        self.master, self.slave = pty.openpty()
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.lock, self.raw = threading.Lock(), b""
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self.slave)
        kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "LC_ALL", "LC_CTYPE")}
        environment = {**kept, "TERM": "xterm", "LANG": "C.UTF-8", **environment}
        self.child = subprocess.Popen(
            [PROGRAM, "top", "--url", url, "--every", "200ms"],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, env=environment,
            preexec_fn=self.own_terminal,
        )
        threading.Thread(target=self.read, daemon=True).start()

    def own_terminal(self):
        os.setsid()
        fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

    def read(self):
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            with self.lock:
                self.raw += data
                self.stream.feed(data)

    def resize(self, columns, lines):
        with self.lock:
            self.screen.resize(lines, columns)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def lines(self):
        with self.lock:
            return [line.rstrip() for line in self.screen.display]

    def type(self, keys):
        os.write(self.master, keys)

    def shows(self, what, holds):
        """Waits until the screen is as it should be."""
        deadline = time.monotonic() + PATIENCE
        while not holds(self.lines()):
            if time.monotonic() > deadline or self.child.poll() is not None:
                picture = "\n".join(self.lines())
                sys.exit(f"never: {what} (status {self.child.poll()})\n{picture}")
            time.sleep(0.02)

    def contains(self, *texts):
        self.shows(texts, lambda lines: all(any(text in line for line in lines) for text in texts))

    def ends(self, how):
        """Waits for the end, after which the terminal is as it was."""
        status = self.child.wait(PATIENCE)
        assert status == 0, (how, status)
        deadline = time.monotonic() + PATIENCE
        while not (self.raw.rstrip().endswith(LEAVES) or SHOWS_CURSOR in self.raw.split(LEAVES)[-1]):
            assert time.monotonic() < deadline, (how, self.raw[-200:])
            time.sleep(0.02)
        with self.lock:
            raw = self.raw
        assert termios.tcgetattr(self.slave) == self.before, f"{how}: the terminal is not as it was"
        assert raw.count(b"\x1b[?1049h") == 1 and LEAVES in raw, how
        assert raw.rindex(SHOWS_CURSOR) > raw.rindex(b"\x1b[?25l"), f"{how}: the cursor is hidden"
        assert b"panicked" not in raw, how
        os.close(self.master)
        os.close(self.slave)


def row(lines, name):
    return next((line for line in lines if line.startswith(name)), "")


def shows_what_the_daemon_knows():
    top = Top(f"http://{DAEMON}")
    top.contains("kvscout 0.", "ready", "exact 1", "hit ratio 25 % of 16 tokens", "p99", "of 8.0 GiB")
    # Whoever is least to be believed comes first.
    top.contains("1-15 of 62", "many-00", "silent")
    top.type(b"n")
    top.contains("WORKER*", "many-00")
    top.type(b"t")
    # The last of all is the one that is exact.
    top.type(b"\x1b[F")
    top.contains("48-62 of 62")
    top.shows("the last row", lambda lines: re.match(r"7 +exact +2 +1 ", row(lines, "7 ")))
    top.type(b"r")
    top.shows("the first row", lambda lines: any(l.startswith("WORKER") for l in lines[:9])
              and re.match(r"7 +exact +2 +1 ", lines[8]) and "TRUST'" in lines[7])
    top.type(b"\x1b[6~\x1b[B")
    top.contains("16-30 of 62")
    top.type(b"\x1b[H")
    top.contains("1-15 of 62")
    top.type(b"b")
    top.shows("least blocks first", lambda lines: "GPU'" in lines[7])
    top.resize(60, 12)
    top.shows("a smaller screen", lambda lines: len(lines) == 12 and lines[11].startswith("1-3 of 62"))
    top.type(b"q")
    top.ends("q")
    assert re.search(COLOUR, top.raw), "there are colours"


def ends_in_every_way():
    ends = {
        "Esc": lambda top: top.type(b"\x1b"),
        "Ctrl-C": lambda top: top.type(b"\x03"),
        "SIGTERM": lambda top: top.child.send_signal(signal.SIGTERM),
        "SIGHUP": lambda top: top.child.send_signal(signal.SIGHUP),
    }
    for how, end in ends.items():
        top = Top(f"http://{DAEMON}", NO_COLOR="1", TERM="screen", LANG="C")
        top.contains("workers  62")
        end(top)
        top.ends(how)
        assert not re.search(COLOUR, top.raw), "colours although NO_COLOR is set"
        assert top.raw.isascii(), "more than ASCII in a locale that has no more"


def outlives_the_daemon():
    relay = Relay()
    top = Top(f"http://127.0.0.1:{relay.port}", columns=120)
    top.contains("workers  62")
    relay.stop()
    top.contains("NO ANSWER for", "asking again every 200ms", "Connection refused", "workers  62", "many-00")
    relay.start()
    top.shows("an answer again", lambda lines: not any("NO ANSWER" in line for line in lines)
              and row(lines, "workers") != "")
    relay.stop()
    top.contains("NO ANSWER for")
    top.type(b"q")
    top.ends("q without a daemon")


def is_no_way_into_the_terminal():
    top = Top(f"http://{DAEMON}")
    top.type(b"n")
    top.contains("WORKER*", "evil\ufffd[2J\ufffd]0;owned\ufffd")
    assert top.screen.title != "owned", top.screen.title
    top.type(b"q")
    top.ends("q")


for scenario in (
    shows_what_the_daemon_knows,
    ends_in_every_way,
    outlives_the_daemon,
    is_no_way_into_the_terminal,
):
    scenario()
    print(scenario.__name__)
