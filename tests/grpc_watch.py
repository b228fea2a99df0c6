"""Keeps a stream of questions open, watches the daemon's health, and prints each status. Usage: grpc_watch.py GRPC"""

import queue
import sys

import grpc

sys.path.insert(0, __file__.rsplit("/", 1)[0] + "/grpc_stubs")

import health_pb2
import health_pb2_grpc
import kvscout_pb2
import kvscout_pb2_grpc

channel = grpc.insecure_channel(sys.argv[1])
questions = queue.Queue()
questions.put(kvscout_pb2.ScoreRequest(id=1))
answers = kvscout_pb2_grpc.ScoutStub(channel).ScoreMany(iter(questions.get, None), timeout=60)
assert next(answers).error.field == "prompt"
for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60):
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status), flush=True)
print("over", list(answers), flush=True)
questions.put(None)
