"""Makes one call of each kind after the other until each was refused once, and prints why. Usage: grpc_overload.py GRPC"""

import sys
import time

import grpc

sys.path.insert(0, __file__.rsplit("/", 1)[0] + "/grpc_stubs")

import kv_indexer_pb2
import kv_indexer_pb2_grpc
import kvscout_pb2
import kvscout_pb2_grpc

channel = grpc.insecure_channel(sys.argv[1])
scout = kvscout_pb2_grpc.ScoutStub(channel)
indexer = kv_indexer_pb2_grpc.KVIndexerStub(channel)


def question(length):
    return kvscout_pb2.ScoreRequest(model="m", token_ids=kvscout_pb2.TokenIds(ids=range(length)))


calls = {
    "Score": lambda: scout.Score(question(5), timeout=60),
    "Score, long": lambda: scout.Score(question(50_000), timeout=60),
    "MatchExternalKv": lambda: indexer.MatchExternalKv(
        kv_indexer_pb2.MatchExternalKvRequest(hashes=[1]), timeout=60
    ),
    "GetExternalKvHitCounts": lambda: indexer.GetExternalKvHitCounts(
        kv_indexer_pb2.GetExternalKvHitCountsRequest(hashes=[1]), timeout=60
    ),
}
for name, call in calls.items():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            call()
        except grpc.RpcError as error:
            print(f"{name}: {error.code().name} {error.details()}")
            break
