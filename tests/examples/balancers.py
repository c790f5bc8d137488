"""Tests of the configurations in deploy/balancers: a Lease that waits for 20 s, 4 MiB of settlements on one stream, a
rolling restart of two brokers under a worker, and the error of a call while no broker runs.

usage: with-broker.sh python balancers.py envoy|haproxy|nginx [PROGRAM]     exit 3: the program is missing
"""

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import grpc
from run import Broker, Client, WORK, WorkerProcess, eventually, free_port, listens, pb, rpc  # generates the stubs

ROOT = Path(__file__).resolve().parents[2]
FILES = {"envoy": "envoy.yaml", "haproxy": "haproxy.cfg", "nginx": "nginx.conf"}


class Proxy:
    """A balancer with its configuration in deploy/balancers, and with the ports of this test."""

    def __init__(self, name, program, brokers, minimal=False):
        self.port = free_port()
        text = (ROOT / "deploy" / "balancers" / FILES[name]).read_text()
        ports = {"8000": self.port, "8080": brokers[0].port, "8081": brokers[1].port}
        ports |= {"9090": brokers[0].http, "9091": brokers[1].http}
        for before, after in ports.items():
            for prefix in ("127.0.0.1:", "port_value: ", "port "):
                text = text.replace(f"{prefix}{before}", f"{prefix}{after}")
        directory = Path(WORK.name) / name
        directory.mkdir()
        path = directory / FILES[name]
        path.write_text(text)
        shutil.copy(ROOT / "deploy" / "balancers" / "unavailable.http", directory)
        nginx_directives = f"daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log;"
        command = {
            "envoy": [program, "-c", str(path), "--log-level", "warn", "--concurrency", "2", "--use-dynamic-base-id"],
            "haproxy": [program, "-f", str(path)],
            "nginx": [program, "-c", str(path), "-g", nginx_directives],
        }[name]
        with open(directory / "log", "wb") as log:
            self.process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
        self.log = directory / "log"
        try:
            eventually("the proxy listens", lambda: listens(self.port))
        except AssertionError:
            print(self.log.read_text()[-3000:])
            raise

    def channel(self):
        return grpc.insecure_channel(f"127.0.0.1:{self.port}")


def a_lease_waits_for_20_seconds(proxy, _client, _brokers):
    with proxy.channel() as channel:
        request = pb.LeaseRequest(selector={"routing_keys": [f"empty-{uuid.uuid4().hex[:8]}"]}, wait={"seconds": 20})
        response = rpc.BrokerServiceStub(channel).Lease(request, timeout=30)
        assert response.advice.reason == pb.ADVICE_REASON_EMPTY, response


def four_mebibytes_of_settlements_pass_on_one_stream(proxy, client, _brokers):
    for _ in range(60):
        client.enqueue("big", b"x")
    frames = queue.SimpleQueue()
    selector = {"routing_keys": [client.key], "job_types": ["big"]}
    frames.put(pb.SubscribeRequest(open={"selector": selector, "flow": {"max_jobs": 10}}))
    done = 0
    with proxy.channel() as channel:
        call = rpc.BrokerServiceStub(channel).Subscribe(iter(frames.get, None), timeout=60)
        for frame in call:
            for job in frame.jobs.jobs:
                settlement = {"lease_token": job.lease_token, "ack": {"result": {"data": bytes(64 << 10)}}}
                frames.put(pb.SubscribeRequest(settle={"sequence": 1, "settlements": [settlement]}))
            for result in frame.settle_results.results:
                assert not result.HasField("error"), result
                done += 1
            if done == 60:
                break
        frames.put(None)
        call.cancel()


def a_rolling_restart_of_the_brokers_loses_no_job_and_no_attempt(proxy, client, brokers):
    worker = WorkerProcess([sys.executable, str(ROOT / "examples/python/stream_worker.py")], client.key, proxy)
    try:
        slow = [client.enqueue("sleep", b"16") for _ in range(3)]
        ids = list(slow)
        for job_id in slow:
            eventually("it runs", lambda job_id=job_id: worker.started(job_id))
        for broker, how in ((brokers[0], signal.SIGKILL), (brokers[1], signal.SIGTERM), (brokers[0], signal.SIGTERM)):
            broker.end(how)
            started = time.monotonic()
            job_id = client.enqueue("upper", b"one broker is down")
            eventually("the other broker takes over", lambda job_id=job_id: client.state(job_id) == "SUCCEEDED")
            print(f"        the next job succeeded {time.monotonic() - started:.1f} s after {how.name}")
            ids.append(job_id)
            broker.start()
            eventually("readiness", lambda broker=broker: b" 200 " in ready(broker))
        client.done(ids)
        assert all(worker.started(job_id) == 1 for job_id in slow), "a job was run twice"
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(60) == 0
    except BaseException:
        print(worker.path.read_text()[-3000:])
        raise
    finally:
        worker.end()


def ready(broker):
    with socket.create_connection(("127.0.0.1", broker.http), 1) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
        return connection.recv(100)


def calls_without_a_broker_are_unavailable(proxy, _client, brokers):
    for broker in brokers:
        broker.end(signal.SIGKILL)
    with proxy.channel() as channel:
        stub = rpc.BrokerServiceStub(channel)
        for _ in range(3):
            try:
                stub.Lease(pb.LeaseRequest(selector={"routing_keys": ["x"]}), timeout=10)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            else:
                raise AssertionError("the call succeeded without a broker")


FACTS = [
    a_lease_waits_for_20_seconds,
    four_mebibytes_of_settlements_pass_on_one_stream,
    a_rolling_restart_of_the_brokers_loses_no_job_and_no_attempt,
    calls_without_a_broker_are_unavailable,
]


def main():
    name = sys.argv[1]
    program = shutil.which(sys.argv[2] if len(sys.argv) > 2 else name)
    if not program:
        print(f"skipped: {name} is missing")
        sys.exit(3)
    brokers = [Broker(), Broker()]
    for broker in brokers:
        broker.start()
    proxy = Proxy(name, program, brokers)
    client = Client(f"{name}-{uuid.uuid4().hex[:8]}")
    failed = 0
    for fact in FACTS:
        try:
            fact(proxy, client, brokers)
            print(f"ok      {fact.__name__}", flush=True)
        except Exception as error:  # pylint: disable=broad-except
            failed += 1
            print(f"FAILED  {fact.__name__}: {error!r}", flush=True)
    proxy.process.terminate()
    for broker in brokers:
        broker.process.kill()
    if failed:
        print(proxy.log.read_text()[-2000:])
    print(f"balancer-{name}: {len(FACTS) - failed} passed, {failed} failed", flush=True)
    os._exit(1 if failed else 0)


main()
