"""A client of every gRPC method, with grpcio and stubs made from proto/. Usage: grpc_client.py GRPC HTTP

The daemon has model "m" on two pods with blocks of 4 tokens. Pod 7 holds the blocks (0, 1, 2, 3) and (4, 5, 6, 7) under the names
11 and 12, pod 8 holds nothing. Of a message it takes 65,536 bytes.
"""

import json
import queue
import sys
import urllib.request

import grpc

sys.path.insert(0, __file__.rsplit("/", 1)[0] + "/grpc_stubs")

import health_pb2
import health_pb2_grpc
import indexer_pb2
import indexer_pb2_grpc
import kv_indexer_pb2 as kv
import kv_indexer_pb2_grpc
import kvscout_pb2 as kvscout
import kvscout_pb2_grpc
from google.protobuf.json_format import MessageToDict

GRPC, HTTP = sys.argv[1:3]
channel = grpc.insecure_channel(GRPC)
scout = kvscout_pb2_grpc.ScoutStub(channel)
indexer = kv_indexer_pb2_grpc.KVIndexerStub(channel)
llmd = indexer_pb2_grpc.IndexerServiceStub(channel)
health = health_pb2_grpc.HealthStub(channel)
WAIT = 60


def refused(call, request, code, field=None):
    try:
        answer = call(request, timeout=WAIT)
    except grpc.RpcError as error:
        assert error.code() == code, (request, error)
        trailing = dict(error.trailing_metadata())
        assert trailing.get("kvscout-field") == field, (request, trailing)
        assert field is None or f"field '{field}'" in error.details(), error.details()
        return error.details()
    raise AssertionError(f"{request} was answered: {answer}")


def over_http(body):
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{HTTP}/v1/score", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=WAIT) as answer:
        return json.load(answer)


def as_http(answer):
    """An answer as /v1/score writes it."""
    workers = []
    for worker in answer.workers:
        row = {
            "worker": worker.worker,
            "rank": worker.rank,
            "matched_blocks": worker.matched_blocks,
            "expected_cached_tokens": None,
            "tiers": {tier: getattr(worker.tiers, tier) for tier in ("gpu", "cpu", "disk", "remote")},
            "score": worker.score,
            "ratio": worker.ratio,
            "as_of": worker.as_of if worker.HasField("as_of") else None,
            "trust": worker.trust,
        }
        if worker.HasField("expected_cached_tokens"):
            row["expected_cached_tokens"] = worker.expected_cached_tokens
        for name in ("predicted_blocks", "expected_unknown", "miss", "reason", "quarantined"):
            if getattr(worker, name):
                row[name] = getattr(worker, name)
        workers.append(row)
    whole = {"workers": workers}
    if answer.unknown_candidates:
        whole["unknown_candidates"] = list(answer.unknown_candidates)
    return whole


def tokens(ids):
    return kvscout.TokenIds(ids=ids)


# --- kvscout.v1: what HTTP says, gRPC says, too.
TOKENS = list(range(9))
picked = {"model": "m", "token_ids": TOKENS + [9, 10, 11], "worker": "7"}
headers = {"content-type": "application/json"}
request = urllib.request.Request(f"http://{HTTP}/v1/picked", json.dumps(picked).encode(), headers)
urllib.request.urlopen(request, timeout=WAIT).close()
for message, body in [
    ({"token_ids": tokens(TOKENS)}, {"token_ids": TOKENS}),
    ({"token_ids": tokens(TOKENS + [9, 10, 11])}, {"token_ids": TOKENS + [9, 10, 11]}),
    ({"token_ids": tokens([1])}, {"token_ids": [1]}),
    ({"token_ids": tokens([])}, {"token_ids": []}),
    ({"token_ids": tokens(TOKENS), "cache_salt": "s"}, {"token_ids": TOKENS, "cache_salt": "s"}),
    (
        {"token_ids": tokens(TOKENS), "lora": kvscout.Adapter(name="l", id=3, path="/p")},
        {"token_ids": TOKENS, "lora": {"name": "l", "id": 3, "path": "/p"}},
    ),
    (
        {"token_ids": tokens(TOKENS), "mm": [kvscout.Item(hash="h", offset=5, length=2)]},
        {"token_ids": TOKENS, "mm": [{"hash": "h", "offset": 5, "length": 2}]},
    ),
    (
        {
            "token_ids": tokens(TOKENS),
            "candidates": [kvscout.Candidate(worker="8", rank=0), kvscout.Candidate(worker="nobody")],
        },
        {"token_ids": TOKENS, "candidates": [{"worker": "8", "rank": 0}, "nobody"]},
    ),
    (
        {"token_ids": tokens(TOKENS), "labels": [kvscout.Label(name="role", values=["decode", "x"])]},
        {"token_ids": TOKENS, "labels": {"role": ["decode", "x"]}},
    ),
]:
    answer = scout.Score(kvscout.ScoreRequest(id=5, model="m", **message), timeout=WAIT)
    expected = over_http({"model": "m", **body})
    assert answer.id == 5 and as_http(answer) == expected, (as_http(answer), expected)

first = scout.Score(kvscout.ScoreRequest(model="m", token_ids=tokens(TOKENS)), timeout=WAIT).workers[0]
assert (first.worker, first.matched_blocks, first.trust, first.as_of) == ("7", 2, "exact", 0), first
assert first.expected_cached_tokens == 8 and first.tiers.remote == 8, first
blocks = kvscout.BlockHashes(hashes=[11, 12, 13], block_size=4)
named = scout.Score(kvscout.ScoreRequest(model="m", block_hashes=blocks), timeout=WAIT)
assert [worker.matched_blocks for worker in named.workers] == [2, 0], named
decode = [kvscout.Candidate(worker="8")]
named = scout.Score(kvscout.ScoreRequest(model="m", block_hashes=blocks, candidates=decode), timeout=WAIT)
assert [worker.worker for worker in named.workers] == ["8"], named

# Each question is answered before the next one is asked.
questions = queue.Queue()
answers = scout.ScoreMany(iter(questions.get, None), timeout=WAIT)
for n in range(50):
    if n == 20:
        questions.put(kvscout.ScoreRequest(id=n, model="another", token_ids=tokens([])))
    elif n == 30:
        questions.put(kvscout.ScoreRequest(id=n, model="m"))
    else:
        questions.put(kvscout.ScoreRequest(id=n, model="m", token_ids=tokens(TOKENS[:n])))
    answer = next(answers)
    assert answer.id == n, (n, answer)
    if n == 20:
        error = answer.error
        assert (error.code, error.reason, error.field) == (5, "unknown_model", ""), answer
        assert "another" in error.message and not answer.workers, answer
    elif n == 30:
        error = answer.error
        assert (error.code, error.reason, error.field) == (3, "invalid_field", "prompt"), answer
    else:
        assert not answer.HasField("error"), answer
        assert max(worker.matched_blocks for worker in answer.workers) == min(n, 8) // 4, (n, answer)
questions.put(None)
assert list(answers) == []
# And many that do not wait.
many = [kvscout.ScoreRequest(id=n, model="m", token_ids=tokens(TOKENS)) for n in range(2000)]
assert [answer.id for answer in scout.ScoreMany(iter(many), timeout=WAIT)] == list(range(2000))

WRONG, GONE = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
ask = kvscout.ScoreRequest
refused(scout.Score, ask(model="m"), WRONG, "prompt")
refused(scout.Score, ask(model="another", token_ids=tokens([1])), GONE)
zero = kvscout.BlockHashes(hashes=[11])
refused(scout.Score, ask(model="m", block_hashes=zero), WRONG, "block_hashes.block_size")
refused(scout.Score, ask(model="m", block_hashes=blocks, cache_salt="s"), WRONG, "cache_salt")
refused(scout.Score, ask(model="m", block_hashes=blocks, lora=kvscout.Adapter(name="l")), WRONG, "lora")
prompt = {"model": "m", "token_ids": tokens([1])}
refused(scout.Score, ask(lora=kvscout.Adapter(), **prompt), WRONG, "lora.name")
refused(scout.Score, ask(mm=[kvscout.Item(hash="h"), kvscout.Item()], **prompt), WRONG, "mm[1].hash")
refused(scout.Score, ask(candidates=[kvscout.Candidate()], **prompt), WRONG, "candidates[0].worker")
no_rank = [kvscout.Candidate(worker="7"), kvscout.Candidate(worker="7", rank=9)]
refused(scout.Score, ask(candidates=no_rank, **prompt), WRONG, "candidates[1]")
refused(scout.Score, ask(labels=[kvscout.Label(name="role")], **prompt), WRONG, "labels[0].values")
huge = ask(model="m", token_ids=tokens(range(20000)))
assert "65536" in refused(scout.Score, huge, grpc.StatusCode.OUT_OF_RANGE)

# --- SGLang's
HBM, DRAM, SSD = kv.TIER_HBM, kv.TIER_DRAM, kv.TIER_SSD
REPORT, REVOKE, CLEAR = kv.ACTION_REPORT, kv.ACTION_REVOKE, kv.ACTION_CLEAR_ALL_AT_TIER
# Opaque: any 64 bits, negative ones, too.
CHAIN = [978178666101069530, -895308556211281782, -8033692805846017938, 835415944263129316]


def action(kind, tier, hashes=(), **more):
    return kv.ExternalKvAction(type=kind, tier=tier, hashes=hashes, **more)


def apply(worker, seq, *actions, **more):
    more = {"worker_address": f"http://{worker}:30000", **more}
    request = kv.ApplyExternalKvBatchRequest(worker_id=worker, seq=seq, actions=actions, **more)
    return indexer.ApplyExternalKvBatch(request, timeout=WAIT)


def prefix(hashes, most=0):
    request = kv.MatchExternalKvPrefixRequest(hashes=hashes, max_blocks=most)
    return indexer.MatchExternalKvPrefix(request, timeout=WAIT)


def matched(answer):
    return [(match.worker_id, match.matched_prefix_blocks) for match in answer.matches]


assert matched(prefix(CHAIN)) == []
assert apply("w2", 1, action(REPORT, HBM, CHAIN[:2])).applied_seq == 1
apply("w1", 1, action(REPORT, HBM, CHAIN[:2]), action(REPORT, DRAM, CHAIN[:3]))
apply("w3", 1, action(REPORT, HBM, CHAIN[:1] + CHAIN[2:]))
apply("w0", 1, action(REPORT, HBM, CHAIN), worker_address="")
answer = prefix(CHAIN)
assert matched(answer) == [("w1", 3), ("w2", 2), ("w3", 1)], answer
assert answer.best_prefix_blocks == 3 and answer.blocks_read == 4, answer
assert answer.matches[0].worker_address == "http://w1:30000", answer
assert matched(prefix(CHAIN, most=2)) == [("w1", 2), ("w2", 2), ("w3", 1)]
assert matched(prefix(CHAIN[1:])) == [("w1", 2), ("w2", 1)]
# What was applied is not applied again, however late it comes.
apply("w2", 2, action(REVOKE, HBM, CHAIN[1:2]))
again = apply("w2", 1, action(REPORT, HBM, CHAIN[:2]))
assert again.duplicate and again.applied_seq == 2, again
assert matched(prefix(CHAIN)) == [("w1", 3), ("w2", 1), ("w3", 1)]
apply("w1", 2, action(CLEAR, DRAM))
assert matched(prefix(CHAIN)) == [("w1", 2), ("w2", 1), ("w3", 1)]
# A worker that began anew holds nothing of before.
assert not apply("w3", 0, action(REPORT, SSD, CHAIN[2:3])).duplicate
assert matched(prefix(CHAIN)) == [("w1", 2), ("w2", 1)]
found = indexer.MatchExternalKv(
    kv.MatchExternalKvRequest(hashes=CHAIN + CHAIN + [5], count_as_hit=True), timeout=WAIT
)
assert [match.worker_id for match in found.matches] == ["w0", "w1", "w2", "w3"], found
assert found.matches[1].address == "http://w1:30000"
tiers = {held.tier: list(held.hashes) for held in found.matches[1].hashes_by_tier}
assert tiers == {HBM: CHAIN[:2]}, tiers
assert found.matches[3].hashes_by_tier[0].tier == SSD, found
indexer.MatchExternalKv(kv.MatchExternalKvRequest(hashes=CHAIN[:1], count_as_hit=True), timeout=WAIT)
indexer.MatchExternalKv(kv.MatchExternalKvRequest(hashes=CHAIN[:1]), timeout=WAIT)
counts = indexer.GetExternalKvHitCounts(
    kv.GetExternalKvHitCountsRequest(hashes=[5, CHAIN[1], CHAIN[0]]), timeout=WAIT
)
assert [(entry.hash, entry.hit_count_total) for entry in counts.entries] == [(CHAIN[1], 1), (CHAIN[0], 2)]
# A hybrid cache: full attention on each block, the window on the last two, in HBM or DRAM.
spec = kv.WorkerCacheSpec(
    version=1, components=3, swa_window_tokens=32, full_tier_mask=6, swa_tier_mask=2, mamba_tier_mask=0
)
hybrid = action(REPORT, HBM, [101, 102, 103], component_masks=[1, 3, 3], block_sizes=[16, 16, 16])
apply("hybrid", 1, hybrid, cache_spec=spec)
assert matched(prefix([101, 102])) == [] and matched(prefix([101, 102, 103])) == [("hybrid", 3)]
# Nothing of it is in the index, and nothing of the index is in it.
assert matched(prefix([11, 12])) == []

# A bridge that recovers its workers: which there are, all that each holds, then every change by its number.
NOT_YET = grpc.StatusCode.FAILED_PRECONDITION
NEXT = {"enforce_sequence": True, "worker_epoch": "e1"}
replace = indexer.ReplaceExternalKvSnapshot


def expect(*workers):
    workers = [kv.ExpectedWorker(worker_id=worker, worker_address=f"http://{worker}:30000") for worker in workers]
    request = kv.ConfigureExpectedWorkersRequest(workers=workers)
    answer = indexer.ConfigureExpectedWorkers(request, timeout=WAIT)
    return answer.total_workers, answer.ready_workers


def snapshot(worker, epoch, seq, *tiers):
    return kv.ReplaceExternalKvSnapshotRequest(
        worker_id=worker, worker_address=f"http://{worker}:30000", worker_epoch=epoch, applied_seq=seq,
        hashes_by_tier=[kv.TierHashes(tier=tier, hashes=hashes, **more) for tier, hashes, more in tiers],
    )


refused(replace, snapshot("f1", "e1", 7), NOT_YET)
assert expect("f1", "f2", "w1") == (3, 0)
assert matched(prefix(CHAIN)) == [("w1", 2)], "others are forgotten"
refused(indexer.ApplyExternalKvBatch, kv.ApplyExternalKvBatchRequest(worker_id="f1", seq=8, **NEXT), NOT_YET)
whole = snapshot("f1", "e1", 7, (HBM, CHAIN[:2], {}), (DRAM, CHAIN[2:3], {}))
assert replace(whole, timeout=WAIT).applied_seq == 7
assert matched(prefix(CHAIN)) == [("f1", 3), ("w1", 2)]
assert expect("f1", "f2", "w1") == (3, 1)
assert apply("f1", 8, action(REPORT, HBM, CHAIN[3:]), **NEXT).applied_seq == 8
again = apply("f1", 7, action(CLEAR, HBM), **NEXT)
assert again.duplicate and again.applied_seq == 8, again
assert matched(prefix(CHAIN)) == [("f1", 4), ("w1", 2)]
before = kv.ApplyExternalKvBatchRequest(worker_id="f1", seq=9, enforce_sequence=True, worker_epoch="e0")
refused(indexer.ApplyExternalKvBatch, before, NOT_YET)
# Number 9 is missing: what the worker holds is not known any more.
later = kv.ApplyExternalKvBatchRequest(worker_id="f1", seq=10, **NEXT)
assert "expected seq 9" in refused(indexer.ApplyExternalKvBatch, later, NOT_YET)
assert matched(prefix(CHAIN)) == [("w1", 2)] and expect("f1", "w1") == (2, 0)
refused(indexer.ApplyExternalKvBatch, later, NOT_YET)
replace(snapshot("f1", "e2", 0, (SSD, CHAIN[:1], {})), timeout=WAIT)
assert expect("f1") == (1, 1) and matched(prefix(CHAIN)) == [("f1", 1)]

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
batch = kv.ApplyExternalKvBatchRequest
put = indexer.ApplyExternalKvBatch
refused(put, batch(seq=1), WRONG, "worker_id")
refused(put, batch(worker_id="w" * 2000), WRONG, "worker_id")
refused(put, batch(worker_id="w", actions=[action(REPORT, HBM)]), WRONG, "actions[0].hashes")
refused(put, batch(worker_id="w", actions=[action(CLEAR, HBM), action(REVOKE, 0, [1])]), WRONG, "actions[1].tier")
refused(put, batch(worker_id="w", actions=[action(CLEAR, 4)]), WRONG, "actions[0].tier")
refused(put, batch(worker_id="w", actions=[action(0, HBM, [1])]), WRONG, "actions[0].type")
short = action(REPORT, HBM, [1, 2], component_masks=[1])
refused(put, batch(worker_id="w", actions=[short]), WRONG, "actions[0].component_masks")
refused(put, batch(worker_id="w", actions=[action(CLEAR, HBM)] * 257), EXHAUSTED)
refused(put, batch(worker_id="w", enforce_sequence=True), NOT_YET)
refused(replace, snapshot("", "e", 1), WRONG, "worker_id")
refused(replace, snapshot("f1", "e" * 2000, 1), WRONG, "worker_epoch")
refused(replace, snapshot("f1", "e", 1, (4, [1], {})), WRONG, "hashes_by_tier[0].tier")
short = (HBM, [1, 2], {"block_sizes": [16]})
refused(replace, snapshot("f1", "e", 1, (SSD, [], {}), short), WRONG, "hashes_by_tier[1].block_sizes")
nobody = kv.ConfigureExpectedWorkersRequest(workers=[kv.ExpectedWorker(worker_id="w"), kv.ExpectedWorker()])
refused(indexer.ConfigureExpectedWorkers, nobody, WRONG, "workers[1].worker_id")
many = kv.ConfigureExpectedWorkersRequest(workers=[kv.ExpectedWorker(worker_id=str(n)) for n in range(4097)])
refused(indexer.ConfigureExpectedWorkers, many, EXHAUSTED)
assert expect("f1") == (1, 1), "nothing that was refused has changed anything"
refused(indexer.MatchExternalKvPrefix, kv.MatchExternalKvPrefixRequest(), WRONG, "hashes")
refused(indexer.MatchExternalKv, kv.MatchExternalKvRequest(), WRONG, "hashes")
refused(indexer.GetExternalKvHitCounts, kv.GetExternalKvHitCountsRequest(), WRONG, "hashes")
too_long = kv.MatchExternalKvPrefixRequest(hashes=range(10000))
refused(indexer.MatchExternalKvPrefix, too_long, grpc.StatusCode.OUT_OF_RANGE)

# --- llm-d's
ask = indexer_pb2.GetPodScoresRequest
refused(llmd.GetPodScores, ask(prompt="hello"), WRONG, "model_name")
why = refused(llmd.GetPodScores, ask(prompt="hello", model_name="m"), grpc.StatusCode.FAILED_PRECONDITION)
assert "tokenizer" in why and "'m'" in why, why

# --- health
SERVING = health_pb2.HealthCheckResponse.SERVING
services = ["", "liveness", "readiness"]
services += ["kvscout.v1.Scout", "kv_indexer.v1.KVIndexer", "indexer.v1.IndexerService"]
for name in services:
    assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT).status == SERVING, name
refused(health.Check, health_pb2.HealthCheckRequest(service="another"), GONE)
unknown = next(health.Watch(health_pb2.HealthCheckRequest(service="another"), timeout=WAIT))
assert unknown.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, unknown
print("all answered")
