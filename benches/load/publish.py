"""Engines that hold prompts: publishes vLLM's KV events over ZMQ until every worker's index has them.

publish.py CONFIG PROMPTS: writes the configuration's sources to CONFIG, waits for the daemon's URL on stdin (by then it
runs), publishes, waits until /workers has applied everything, and stays so that the links stay up.
"""

import json
import sys
import time
import urllib.request

import msgpack
import zmq

WORKERS = 4
BLOCK = 16
LENGTHS = (1024, 16 * 1024, 128 * 1024)


def tokens(prompt, length):
    """What bodies.py writes: the same numbers, for each prompt others."""
    return [(i * 7919 + prompt * 104729 + length) % 120000 for i in range(length)]


def stored(prompt, length, held):
    """A prompt's first blocks; names are numbers that differ."""
    first = (length << 32) + (prompt << 20)
    return {
        "type": "BlockStored",
        "block_hashes": [first + n for n in range(held // BLOCK)],
        "parent_block_hash": None,
        "token_ids": tokens(prompt, length)[:held],
        "block_size": BLOCK,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * (held // BLOCK),
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def main():
    config, prompts = sys.argv[1], int(sys.argv[2])
    context = zmq.Context()
    sockets, text = [], ""
    for worker in range(WORKERS):
        socket = context.socket(zmq.PUB)
        socket.set_hwm(0)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        sockets.append(socket)
        text += f'[[source]]\nname = "{worker}"\nendpoint = "tcp://127.0.0.1:{port}"\nmodel = "m"\n'
    with open(config, "w", encoding="utf-8") as file:
        file.write(text)
    print("written", flush=True)
    url = sys.stdin.readline().strip()

    def workers():
        with urllib.request.urlopen(url + "/workers", timeout=10) as answer:
            return json.load(answer)["workers"]

    while len(workers()) < WORKERS or any(w["link"]["state"] != "up" for w in workers()):
        time.sleep(0.1)
    # A link that is up is subscribed a moment later.
    time.sleep(1)
    batches = [(length, prompt) for length in LENGTHS for prompt in range(prompts)]
    for seq, (length, prompt) in enumerate(batches):
        for worker, socket in enumerate(sockets):
            # The first holds a quarter of each prompt, the last one all.
            held = length * (worker + 1) // WORKERS
            payload = msgpack.packb([time.time(), [stored(prompt, length, held)], 0])
            socket.send_multipart([b"", seq.to_bytes(8, "big"), payload])
    while any(w["as_of"] != len(batches) - 1 for w in workers()):
        time.sleep(0.1)
    question = json.dumps({"model": "m", "token_ids": tokens(0, LENGTHS[0])}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + "/v1/score", question, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        best = json.load(answer)["workers"][0]
    assert best["worker"] == str(WORKERS - 1) and best["matched_blocks"] == LENGTHS[0] // BLOCK, best
    wrong = [w for w in workers() if w["trust"] != "exact" or w["events"]["rejected"]]
    if wrong:
        print([(w["trust"], w["reason"], w["gaps"], w["events"]) for w in wrong], file=sys.stderr)
    print("wrong" if wrong else "filled", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
