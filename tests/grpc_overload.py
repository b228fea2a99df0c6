"""Makes one call of each kind after the other until each was refused once, and prints why. Usage: grpc_overload.py GRPC"""

import sys
import time

import grpc

sys.path.insert(0, __file__.rsplit("/", 1)[0] + "/grpc_stubs")

import indexer_pb2
import indexer_pb2_grpc
import kv_indexer_pb2
import kv_indexer_pb2_grpc
import kvscout_pb2
import kvscout_pb2_grpc

channel = grpc.insecure_channel(sys.argv[1])
scout = kvscout_pb2_grpc.ScoutStub(channel)
indexer = kv_indexer_pb2_grpc.KVIndexerStub(channel)
llmd = indexer_pb2_grpc.IndexerServiceStub(channel)


def question(length):
    return kvscout_pb2.ScoreRequest(model="m", token_ids=kvscout_pb2.TokenIds(ids=range(length)))


class Refused(Exception):
    """One question of a stream was, and the stream goes on."""


def ask_many():
    for answer in scout.ScoreMany(iter([question(5), question(6)]), timeout=60):
        if answer.HasField("error"):
            code = next(code for code in grpc.StatusCode if code.value[0] == answer.error.code)
            raise Refused(f"{code.name} {answer.error.message} ({answer.error.reason})")


def report():
    action = kv_indexer_pb2.ExternalKvAction(
        type="ACTION_REPORT", tier="TIER_HBM", hashes=[1], component_masks=[1], block_sizes=[64]
    )
    return kv_indexer_pb2.ApplyExternalKvBatchRequest(
        worker_id="w", worker_address="http://w:1", worker_epoch="e", actions=[action]
    )


calls = {
    "Score": lambda: scout.Score(question(5), timeout=60),
    "Score, long": lambda: scout.Score(question(50_000), timeout=60),
    "MatchExternalKv": lambda: indexer.MatchExternalKv(
        kv_indexer_pb2.MatchExternalKvRequest(hashes=[1]), timeout=60
    ),
    "GetExternalKvHitCounts": lambda: indexer.GetExternalKvHitCounts(
        kv_indexer_pb2.GetExternalKvHitCountsRequest(hashes=[1]), timeout=60
    ),
    "ScoreMany": ask_many,
    "GetPodScores": lambda: llmd.GetPodScores(
        indexer_pb2.GetPodScoresRequest(prompt="a", model_name="m"), timeout=60
    ),
    "MatchExternalKvPrefix": lambda: indexer.MatchExternalKvPrefix(
        kv_indexer_pb2.MatchExternalKvPrefixRequest(hashes=[1]), timeout=60
    ),
    "ApplyExternalKvBatch": lambda: indexer.ApplyExternalKvBatch(report(), timeout=60),
    "ReplaceExternalKvSnapshot": lambda: indexer.ReplaceExternalKvSnapshot(
        kv_indexer_pb2.ReplaceExternalKvSnapshotRequest(
            worker_id="w", worker_address="http://w:1", worker_epoch="e"
        ),
        timeout=60,
    ),
    "ConfigureExpectedWorkers": lambda: indexer.ConfigureExpectedWorkers(
        kv_indexer_pb2.ConfigureExpectedWorkersRequest(), timeout=60
    ),
}
for name, call in calls.items():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            call()
        except Refused as refused:
            print(f"{name}: {refused}")
            break
        except grpc.RpcError as error:
            reason = dict(error.trailing_metadata() or ()).get("kvscout-reason")
            print(f"{name}: {error.code().name} {error.details()} ({reason})")
            break
