"""Begins a call whose message never comes, and prints how it ends. Usage: grpc_slow.py GRPC"""

import sys
import threading

import grpc

over = threading.Event()


def nothing():
    over.wait(60)
    yield from ()


channel = grpc.insecure_channel(sys.argv[1])
score = channel.stream_unary("/kvscout.v1.Scout/Score")
try:
    score(nothing(), timeout=60)
except grpc.RpcError as error:
    print(error.code().name)
over.set()
