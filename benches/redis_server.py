"""What a Redis server alone computes for the parts of an ingest: names bound in several ways, and the script that stores a segment.

redis_server.py: starts a redis-server of its own, sends the same 256,000 names (4,000 batches of 64) in each way over one connection, eight batches
at a time, and prints the server's own processor time for each name, and the memory. Needs redis-server and nothing else. `KVSCOUT_REDIS_SERVER` names
another program.
"""

import os
import pathlib
import random
import socket
import struct
import subprocess
import tempfile
import time

LUA = pathlib.Path(__file__).parent.parent / "src/index/redis/lua"
BATCHES, BLOCKS, TOGETHER = 4000, 64, 8
VALUES = random.Random(1)
NAMES = [[VALUES.randbytes(8) for _ in range(BLOCKS)] for _ in range(BATCHES)]
TAGS = [VALUES.randbytes(12) for _ in range(BATCHES)]
KEYS = [tag[:8] + VALUES.randbytes(8 * (BLOCKS - 1)) for tag in TAGS]


def script(*files):
    return b"\n".join((LUA / f"{file}.lua").read_bytes() for file in files)


BIND = script("bind_free", "bind_quick", "common", "bind")
STORE = script("bind_free", "stretched", "store_quick", "common", "store")
JOIN = script("stretched", "join")
JOIN_PROVEN = script("join_proven")
# One name after the other from within a script, each in a small hash.
SMALL = b"for at = 1, #ARGV, 3 do redis.call('HSETNX', ARGV[at], ARGV[at + 1], ARGV[at + 2]) end return 1"


def packed(arguments):
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%s\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


class Server:
    def __init__(self, directory):
        path = f"{directory}/socket"
        program = os.environ.get("KVSCOUT_REDIS_SERVER", "redis-server")
        options = ["--port", "0", "--unixsocket", path, "--save", "", "--dir", directory]
        self.process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(200):
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.05)
        self.replies = self.socket.makefile("rb")

    def read(self):
        line = self.replies.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.read() for _ in range(int(rest))]
        return rest

    def call(self, *arguments):
        self.socket.sendall(packed(arguments))
        return self.read()

    def number(self, section, field):
        lines = self.call(b"INFO", section).decode().splitlines()
        return float(next(line for line in lines if line.startswith(field + ":")).split(":")[1])

    def seconds(self):
        return self.number(b"cpu", "used_cpu_user") + self.number(b"cpu", "used_cpu_sys")

    def measure(self, what, batches, per, unit):
        """Sends batches of commands; prints what each of the `per` things in a batch cost."""
        batches = [(b"".join(map(packed, batch)), len(batch)) for batch in batches]
        memory, begin = self.number(b"memory", "used_memory"), self.seconds()
        for at in range(0, len(batches), TOGETHER):
            some = batches[at : at + TOGETHER]
            self.socket.sendall(b"".join(bytes for bytes, _ in some))
            for _ in range(sum(count for _, count in some)):
                self.read()
        took, things = self.seconds() - begin, len(batches) * per
        grown = (self.number(b"memory", "used_memory") - memory) / things
        print(f"{what:58} {took:6.2f} s  {took / things * 1e6:6.2f} us a {unit}  {grown:5.0f} B", flush=True)


def places(tag):
    return [bytes([offset]) + tag for offset in range(BLOCKS)]


def bucket(name):
    return b"v:{7.0}:%d" % (int.from_bytes(name, "little") % 16384)


def names_of(server):
    def fresh(what, batches):
        server.call(b"FLUSHALL")
        server.measure(what, list(batches), BLOCKS, "name")

    pairs = [list(zip(names, places(tag))) for names, tag in zip(NAMES, TAGS)]
    bind = server.call(b"SCRIPT", b"LOAD", BIND)
    rows = zip(NAMES, TAGS)
    fresh("one script for a batch, one hash (kvscout)", (
        [[b"EVALSHA", bind, b"3", b"v:{7.0}", b"u:{7.0}", b"c:{7.0}", b"16", b"86400",
          b"\x80" + tag, b"".join(names), bytes(range(BLOCKS)), b"0"]]
        for names, tag in rows))
    fresh("HSETNX for each name, 16,384 small hashes", (
        [[b"HSETNX", bucket(name), name, place] for name, place in batch] for batch in pairs))
    small = server.call(b"SCRIPT", b"LOAD", SMALL)
    fresh("one script for a batch, 16,384 small hashes", (
        [[b"EVALSHA", small, b"0"] + [part for name, place in batch for part in (bucket(name), name, place)]]
        for batch in pairs))
    fresh("one HSET for a batch, which overwrites", (
        [[b"HSET", b"v:{7.0}"] + [part for pair in batch for part in pair]] for batch in pairs))
    flat = (([part for pair in batch for part in pair], [name for name, _ in batch]) for batch in pairs)
    fresh("MULTI, HMGET, HSET, EXEC, which overwrites", (
        [[b"MULTI"], [b"HMGET", b"v:{7.0}"] + names, [b"HSET", b"v:{7.0}"] + both, [b"EXEC"]] for both, names in flat))
    numbers = ((at, names) for at, names in enumerate(NAMES))
    fresh("one ZADD NX for a batch, places as numbers", (
        [[b"ZADD", b"v:{7.0}", b"NX"] + [part for n, name in enumerate(names) for part in (b"%d" % (64 * at + n), name)]]
        for at, names in numbers))
    fresh("HSET for each block, as hkeys_per_block", (
        [[b"HSET", name * 2, b"10.0.0.1:8000@gpu", b""] for name in names] for names in NAMES))


def run_of(tag, keys):
    return b"{%s}:%s" % (tag.hex().encode(), keys[:8].hex().encode())


def head_of(at):
    return b"\1\0" + struct.pack("<IIII", at % 16, 16, 0, at)


def proof_of(keys):
    # The last eight bytes stand for a hash of the names: the server only compares.
    return struct.pack("<I", 7) + keys[-8:] + keys[:8]


def proven(worker, sha):
    """The same for a worker that follows, as `join_proven` sends them."""
    slot = struct.pack("<I", 1000 + worker)
    for at, (tag, keys) in enumerate(zip(TAGS, KEYS)):
        run = run_of(tag, keys)
        held = struct.pack(">QI", at + 1, 0) + struct.pack("<BBI", 0, BLOCKS, 1)
        yield [[b"EVALSHA", sha, b"2", b"r:" + run, b"n:" + run, head_of(at), proof_of(keys), slot, held]]


def joins(worker, sha):
    """The same with the names, as `join` sends them."""
    slot = struct.pack("<I", 1000 + worker)
    for at, (tag, keys, names) in enumerate(zip(TAGS, KEYS, NAMES)):
        run, stamp = run_of(tag, keys), struct.pack(">QI", at + 1, 0)
        about = struct.pack("<I", 7) + slot + stamp + head_of(at) + keys[-8:] + b"\0"
        yield [[b"EVALSHA", sha, b"2", b"r:" + run, b"n:" + run, about, b"".join(names)]]


def segments(worker, sha, at_once=False):
    """Batches of one whole segment, as `lay` sends them: in steps, or to a server that has all slots."""
    slot = struct.pack("<I", 1000 + worker)
    for at, (tag, keys, names) in enumerate(zip(TAGS, KEYS, NAMES)):
        run = run_of(tag, keys)
        head = head_of(at)
        hung = b"" if at % 16 == 0 else b"\x3f" + TAGS[at - 1]
        used = [b"r:" + run, b"n:" + run]
        if at_once:
            used += [b"v:{7.0}", b"u:{7.0}", b"c:{7.0}"] + ([b"r:" + run_of(TAGS[at - 1], KEYS[at - 1])] if hung else [])
        yield [[b"EVALSHA", sha, b"%d" % len(used), *used, keys[:8], b"\0", KEYS[at - 1][-8:], keys, b"".join(names),
                struct.pack("<I", 7), slot, struct.pack(">QI", at + 1, 0), b"1", head, b"86400", hung, b"64", tag, proof_of(keys)]]


def hangs(sha):
    """What a new segment's run hangs on gets to know of it."""
    for tag, keys in zip(TAGS, KEYS):
        yield [[b"EVALSHA", sha, b"1", b"r:" + run_of(tag, keys), b"\x3f"]]


def stores(server):
    server.call(b"FLUSHALL")
    sha = server.call(b"SCRIPT", b"LOAD", STORE)
    hang = server.call(b"SCRIPT", b"LOAD", script("hang"))
    server.measure("all of a segment that is new in one script (kvscout)", list(segments(0, sha, True)), 1, "segment")
    server.call(b"FLUSHALL", b"SYNC")
    server.measure("in steps: the script of a segment that is new", list(segments(0, sha)), 1, "segment")
    server.measure("the same, of one that another worker stored", list(segments(1, sha)), 1, "segment")
    server.measure("in steps: what a new one hangs on", list(hangs(hang)), 1, "segment")
    join = server.call(b"SCRIPT", b"LOAD", JOIN_PROVEN)
    server.measure("the script that joins one, by a client that knows it", list(proven(2, join)), 1, "segment")
    if server.call(*list(proven(3, join))[0][0]) != b"1":
        raise RuntimeError("nothing was joined")
    join = server.call(b"SCRIPT", b"LOAD", JOIN)
    server.measure("the same by its names", list(joins(4, join)), 1, "segment")
    if server.call(*list(joins(5, join))[0][0]) != b"1":
        raise RuntimeError("nothing was joined")
    nothing = server.call(b"SCRIPT", b"LOAD", b"return 1")
    server.measure("a script that does nothing, same arguments", list(segments(6, nothing)), 1, "segment")
    one = server.call(b"SCRIPT", b"LOAD", b"redis.call('HMGET', KEYS[1], 'k', 'h', 'c', ARGV[7]) return 1")
    server.measure("the same with one call of four fields", list(segments(6, one)), 1, "segment")


def main():
    with tempfile.TemporaryDirectory() as directory:
        server = Server(directory)
        try:
            names_of(server)
            stores(server)
        finally:
            server.process.terminate()
            server.process.wait()


if __name__ == "__main__":
    main()
