"""Asks one question after the other until one is refused, and prints why. Usage: grpc_overload.py GRPC"""

import sys
import time

import grpc

sys.path.insert(0, __file__.rsplit("/", 1)[0] + "/grpc_stubs")

import kvscout_pb2
import kvscout_pb2_grpc

scout = kvscout_pb2_grpc.ScoutStub(grpc.insecure_channel(sys.argv[1]))
question = kvscout_pb2.ScoreRequest(model="m", token_ids=kvscout_pb2.TokenIds(ids=[1, 2, 3, 4, 5]))
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        scout.Score(question, timeout=60)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
        break
