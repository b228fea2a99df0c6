"""A KV cache pool's publisher (RFC 1527), written with msgpack and pyzmq.

Prints the endpoint, then publishes one batch for each JSON line on stdin: a list of
["stored" | "removed" | "cleared", {fields}]. With --compat the maps carry an engine's fields, too,
as Mooncake's master does by default.
"""
import json
import struct
import sys
import time

import msgpack
import zmq

TAGS = {"stored": "BlockStored", "removed": "BlockRemoved", "cleared": "AllBlocksCleared"}


def event(number, kind, fields, compat):
    written = {"event_id": number, "timestamp": int(time.time() * 1000), "event_type": kind}
    if compat:
        written["type"] = TAGS[kind]
    written |= {
        "model_name": None, "block_size": None, "additional_salt": None, "lora_name": None,
        "tenant_id": "default", "backend_id": "pool-1", "medium": None, "dp_rank": None,
    }
    if kind != "cleared":
        written |= {"group_id": None, "object_key": "m@tp_rank:0@0123", "seq_hashes": []}
        if compat:
            written["block_hashes"] = [h - (1 << 64) if h >> 63 else h for h in fields["seq_hashes"]]
        written["base_block_idx"] = 0 if kind == "stored" else None
    if kind == "stored":
        written |= {"parent_hash": None, "token_ids": None}
        if compat:
            written["parent_block_hash"] = None
    return written | fields


def main():
    compat = "--compat" in sys.argv
    socket = zmq.Context().socket(zmq.XPUB)
    socket.bind("tcp://127.0.0.1:*")
    print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    socket.recv()  # the subscription: nothing is published to nobody
    number = 0
    for sequence, line in enumerate(sys.stdin):
        events = []
        for kind, fields in json.loads(line):
            number += 1
            events.append(event(number, kind, fields, compat))
        payload = msgpack.packb([int(time.time() * 1000), events, 0])
        socket.send_multipart([b"", struct.pack(">Q", sequence), payload])


main()
