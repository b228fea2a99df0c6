"""A client of both dialects in msgpack, with nothing of kvscout's own. Usage: dialects_client.py HOST:PORT

The daemon has one pod, 7, that holds the blocks (0, 1, 2, 3) and (4, 5, 6, 7) under the names 11 and 12.
"""

import array
import sys
import urllib.error
import urllib.request

import msgpack

ADDRESS = sys.argv[1]
TOKENS = list(range(9))
KIND = "application/msgpack"
answers = 0


def call(path, body=None, status=200, accept=None):
    global answers
    headers = {"content-type": KIND} if body is not None else {"accept": KIND}
    if accept:
        headers["accept"] = accept
    data = msgpack.packb(body) if body is not None else None
    request = urllib.request.Request(f"http://{ADDRESS}{path}", data=data, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            assert answer.status == status, (path, answer.status)
            assert answer.headers["content-type"] == KIND, answer.headers["content-type"]
            answers += 1
            return msgpack.unpackb(answer.read())
    except urllib.error.HTTPError as error:
        assert error.code == status, (path, error.code, error.read())
        answers += 1
        return error.read()


held = {"longest_matched": 8, "GPU": 8, "CPU": 8, "DISK": 8, "DP": {"0": 8}}
binary = array.array("i", TOKENS)
if sys.byteorder == "big":
    binary.byteswap()

query = {"model": "m", "block_size": 4, "token_ids": TOKENS}
assert call("/query", query) == {"default": {"7": held}}
assert call("/query", {**query, "token_ids": binary.tobytes()}) == {"default": {"7": held}}
by_hash = {"model": "m", "block_size": 4, "block_hash": [11, 12]}
assert call("/query_by_hash", by_hash) == {"default": {"7": held}}

dynamo = call("/query", {"model_name": "m", "token_ids": TOKENS, "unheard_of": [1.5, None]})
assert dynamo["scores"] == {"7": {"0": 8}}, dynamo
hashes = [9143094415614847814, 12124091508212882195 - 2**64]
assert call("/query_by_hash", {"model_name": "m", "block_hashes": hashes}) == dynamo
tiered = call("/query_tiered_by_hash", {"model_name": "m", "block_hashes": hashes, "routing_group": "default"})
assert tiered == {
    "block_size": 4,
    "tiered": {"device": {"scores": [[{"worker_id": 7, "dp_rank": 0}, 2]], "frequencies": []}, "lower_tier": []},
}, tiered

registration = {
    "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m", "instance_id": "a",
    "block_size": 16, "dp_rank": 0, "additionalsalt": "s", "cache_group": None,
}
assert call("/register", registration) == {"status": "registered successfully", "instance_id": "a"}
services = call("/services")
assert services["count"] == 2 and services["services"][0]["instance_id"] == "7", services
removed = call("/unregister", {"instance_id": "a", "dp_rank": 0})
assert removed["removed_instances"] == ["a|default|0"], removed
assert call("/global_view")["contexts"][0]["instances"] == {"7": [0]}
assert b'"field":"token_ids"' in call("/query", {"model": "m", "token_ids": "x"}, status=400)
print(answers, "answers")
