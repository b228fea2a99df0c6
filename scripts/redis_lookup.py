#!/usr/bin/env python3
"""A lookup in kvscout's Redis store with nothing but raw commands, as docs/redis.md describes it.

    redis_lookup.py SOCKET NAMESPACE SPACE BLOCK_SIZE DIGEST...

prints one line `worker group tier blocks` for each (worker, group, tier) that holds leading blocks of
the path of content digests (decimal). It answers for paths by content without unplaced blocks.
"""

import hashlib
import socket
import struct
import sys

MASK = (1 << 64) - 1


def siphash_1_3_128(key, data):
    """SipHash-1-3 with a result of 16 bytes."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE,
         k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rounds(n):
        for _ in range(n):
            for a, b, c, d, r, s in ((0, 1, 2, 3, 13, 16), (2, 1, 0, 3, 17, 21)):
                v[a] = (v[a] + v[b]) & MASK
                v[b] = ((v[b] << r | v[b] >> (64 - r)) & MASK) ^ v[a]
                v[a] = (v[a] << 32 | v[a] >> 32) & MASK
                v[c] = (v[c] + v[d]) & MASK
                v[d] = ((v[d] << s | v[d] >> (64 - s)) & MASK) ^ v[c]

    padded = data + b"\0" * (7 - len(data) % 8) + bytes([len(data) & 255])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(1)
        v[0] ^= word
    v[2] ^= 0xEE
    rounds(3)
    first = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    rounds(3)
    return struct.pack("<QQ", first, v[0] ^ v[1] ^ v[2] ^ v[3])


class Store:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")

    def ask(self, *args):
        args = [a if isinstance(a, bytes) else str(a).encode() for a in args]
        text = b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in args)
        self.socket.sendall(b"*%d\r\n%s" % (len(args), text))
        return self.reply()

    def reply(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        return rest

    def hash(self, key):
        flat = self.ask("HGETALL", key)
        return dict(zip(flat[::2], flat[1::2]))


def lookup(store, namespace, space, size, digests):
    prefix = "kvscout:1:%s:" % namespace
    meta = store.hash(prefix + "m")
    assert meta[b"version"] == b"1"
    key = hashlib.sha256(b"kvscout chain key" + meta[b"s"]).digest()[:16]

    # The path: for each block the hash of its segment, and its own 8 bytes.
    segment = siphash_1_3_128(key, b"root" + struct.pack("<II", size, 0) + space.encode())
    block, path = segment[:8], []
    for at, digest in enumerate(digests):
        full = siphash_1_3_128(key, segment + block + struct.pack("<Q", digest))
        segment = full if at % 64 == 0 else segment
        block = full[:8]
        path.append((segment, block))

    number = int(store.ask("HGET", prefix + "i", "s" + space))
    table = store.hash(prefix + "t:{%d}" % number)
    slots, workers = {}, {}
    for field, value in table.items():
        if field[:1] == b"s" and len(field) == 5:
            slots[field[1:]] = struct.unpack("<IIB", value)
        elif field[:1] == b"w" and len(field) == 5:
            owner = value[5:5 + value[4]]
            alive = not owner or store.ask("EXISTS", prefix + "o:" + owner.decode()) == b"1"
            if alive:
                workers[struct.unpack("<I", field[1:])[0]] = value[5 + value[4]:].decode()

    # Walk: the first run of each segment, then the run that begins where the path leaves it.
    holders, at = {}, 0
    while at < len(path):
        segment, block = path[at]
        run = store.hash(prefix + "r:{%s}:%s" % (segment[:12].hex(), block.hex()))
        if not run or run[b"h"][14:] != segment[12:]:
            break
        start, keys = run[b"h"][1], run[b"k"]
        first, n = at, 0
        while (at < len(path) and path[at][0] == segment and n * 8 < len(keys)
               and keys[n * 8:n * 8 + 8] == path[at][1]):
            at, n = at + 1, n + 1
        for slot, value in run.items():
            if len(slot) == 4 and slot in slots:
                for begin, end, _copies in struct.iter_unpack("<BBI", value[12:]):
                    stretch = range(first + begin - start, min(first + end - start, at))
                    holders.setdefault(slot, set()).update(stretch)
    for slot, blocks in holders.items():
        worker, group, tier = slots[slot]
        leading = next(n for n in range(len(path) + 1) if n not in blocks)
        if worker in workers and leading:
            yield workers[worker], group, ["gpu", "cpu", "disk", "remote", "unknown"][tier], leading


if __name__ == "__main__":
    path, namespace, space, size, *digests = sys.argv[1:]
    found = lookup(Store(path), namespace, space, int(size), [int(d) for d in digests])
    for line in sorted(found):
        print(*line)
