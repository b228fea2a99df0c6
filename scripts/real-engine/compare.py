"""Asks /v1/score before each request and compares with what the engine reports afterwards.

compare.py ENGINE_URL KVSCOUT_URL, both running; prints a row for each request; exits 1 on any
difference that the engine's own protocol does not explain.
"""

import json
import random
import sys
import time
import urllib.error
import urllib.request

engine, kvscout = sys.argv[1:3]
random.seed(7)


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        text = reply.read()
        return json.loads(text) if text else {}


def wait_for(what, check, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := check():
                return found
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.2)
    sys.exit(f"{what} did not happen within {seconds} s")


def link_up():
    return call(f"{kvscout}/workers")["workers"][0]["link"]["state"] == "up"


wait_for("the engine's start", lambda: call(f"{engine}/v1/models"), 300)
wait_for("kvscout's connection to the engine", link_up, 30)
time.sleep(1)  # a subscription takes a moment to reach the publisher


def as_of():
    return call(f"{kvscout}/workers")["workers"][0]["as_of"]


def settled():
    """Events leave the engine within a step or two of its answer; wait until they stop."""
    seen, since = as_of(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.1)
        if as_of() != seen:
            seen, since = as_of(), time.monotonic()


def tokens_of(kind, body):
    ask = {"model": "tiny"}
    if kind == "chat":
        ask |= {"messages": body["messages"], "add_generation_prompt": True}
    elif isinstance(body["prompt"], list):
        return body["prompt"]
    else:
        ask["prompt"] = body["prompt"]
    return call(f"{engine}/tokenize", ask)["tokens"]


rows = []


def request(label, kind, body, after_reset=False):
    body = {"model": "tiny", "max_tokens": 1, "temperature": 0} | body
    tokens = tokens_of(kind, body)
    settled()
    score = {"model": "tiny", "token_ids": tokens, "cache_salt": body.get("cache_salt")}
    worker = call(f"{kvscout}/v1/score", score)["workers"][0]
    path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
    usage = call(engine + path, body)["usage"]
    assert usage["prompt_tokens"] == len(tokens), "kvscout was asked about another prompt"
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    rows.append((label, len(tokens), worker, cached, after_reset))
    equal = worker["expected_cached_tokens"] == cached
    note = "" if equal else "  the reset is announced with the next step" if after_reset else "  WRONG"
    print(
        f"{label:<44} {len(tokens):>6} {worker['expected_cached_tokens']:>9} {cached:>7}"
        f" {worker['trust']:>9}{note}"
    )


print(f"{'request':<44} {'tokens':>6} {'expected':>9} {'cached':>7} {'trust':>9}")
text = "A router sends each request to the engine that holds its prefix. " * 8
ids = [(i * 37 + 11) % 600 for i in range(96)]
request("text, cold", "completion", {"prompt": text})
request("the same text", "completion", {"prompt": text})
request("longer text, same beginning", "completion", {"prompt": text + "Then another one. " * 9})
request("three whole blocks of token ids, cold", "completion", {"prompt": ids})
request("the same: the last block is computed again", "completion", {"prompt": ids})
request("one token more: all three blocks", "completion", {"prompt": ids + [7]})
chat = [
    {"role": "system", "content": "You are a careful assistant. " * 6},
    {"role": "user", "content": "Which engine holds my prefix?"},
]
request("chat, first turn", "chat", {"messages": chat, "max_tokens": 40, "ignore_eos": True})
chat += [
    {"role": "assistant", "content": "The one you asked before."},
    {"role": "user", "content": "Ask it again, please. " * 6},
]
request("chat, second turn", "chat", {"messages": chat})
request("chat, second turn again", "chat", {"messages": chat})
other = [dict(chat[0]), {"role": "user", "content": "Another user, same system prompt."}]
request("another user, same system prompt", "chat", {"messages": other})
request("long generation", "completion", {"prompt": ids[:20], "max_tokens": 90, "ignore_eos": True})
request("cache salt a", "completion", {"prompt": ids + [7], "cache_salt": "a"})
request("cache salt a again", "completion", {"prompt": ids + [7], "cache_salt": "a"})
request("cache salt b", "completion", {"prompt": ids + [7], "cache_salt": "b"})
for n in range(3):
    filler = [(i * 101 + n * 7 + 3) % 600 for i in range(900)]
    request(f"filler {n}: evicts", "completion", {"prompt": filler})
request("text after evictions", "completion", {"prompt": text})
request("token ids after evictions", "completion", {"prompt": ids + [7]})
prefixes = [[random.randrange(600) for _ in range(random.choice((40, 96, 160)))] for _ in range(5)]
for n in range(20):
    prompt = random.choice(prefixes) + [random.randrange(600) for _ in range(random.choice((1, 33, 70)))]
    request(f"mixed {n}", "completion", {"prompt": prompt, "max_tokens": random.choice((1, 20))})
call(f"{engine}/reset_prefix_cache", {})
request("right after a cache reset", "completion", {"prompt": text}, after_reset=True)
request("the same again", "completion", {"prompt": text})

status = call(f"{kvscout}/workers")["workers"][0]
wrong = [r for r in rows if r[2]["expected_cached_tokens"] != r[3] and not r[4]]
equal = sum(r[2]["expected_cached_tokens"] == r[3] for r in rows)
print(
    f"\n{len(rows)} requests: {equal} expectations equal to the engine's cached tokens, "
    f"{len(wrong)} wrong, {len(rows) - equal - len(wrong)} right after a reset"
)
print(f"contract detected: {status['contract']}")
sys.exit(bool(wrong))
