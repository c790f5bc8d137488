"""The workers that readers are sent to, run as they stand: slow jobs, a broker that is killed and one that is stopped, a cancel, SIGTERM.

usage: with-broker.sh python run.py readme|python|node|go [COMMAND...]
COMMAND starts the worker; it gets a routing key as its last argument. Prints a line for each fact and the totals.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from pathlib import Path

import grpc
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 60
# Of the broker that is restarted.
MAX_BATCH_ITEMS = 4
WORK = tempfile.TemporaryDirectory(prefix="bananas-examples-")
STUBS = Path(WORK.name) / "stubs"


def generate_stubs():
    well_known = Path(protoc.__file__).parent / "_proto"
    files = [str(path) for path in sorted((ROOT / "proto" / "bananas" / "v1").glob("*.proto"))]
    STUBS.mkdir()
    if protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--python_out={STUBS}", f"--grpc_python_out={STUBS}", *files]):
        sys.exit("the stubs cannot be generated")
    sys.path.insert(0, str(STUBS))


generate_stubs()
# pylint: disable=wrong-import-position
from bananas.v1 import broker_service_pb2 as pb  # noqa: E402
from bananas.v1 import broker_service_pb2_grpc as rpc  # noqa: E402
from bananas.v1 import job_pb2  # noqa: E402
from bananas.v1 import job_service_pb2 as jobs_pb  # noqa: E402
from bananas.v1 import job_service_pb2_grpc as jobs_rpc  # noqa: E402


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(what, ask):
    deadline = time.monotonic() + PATIENCE_SECONDS
    seen = None
    while time.monotonic() < deadline:
        try:
            seen = ask()
            if seen:
                return seen
        except (OSError, grpc.RpcError) as error:
            seen = error
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what} (last: {seen})")


class Broker:
    """A broker of this test's own on the Redis that is there; stopped, killed and started again at one address."""

    def __init__(self):
        self.port, self.http = free_port(), free_port()
        self.log = open(Path(WORK.name) / "broker.log", "ab")  # pylint: disable=consider-using-with
        self.process = None

    def start(self):
        command = [os.environ["BANANAS_TEST_BROKER_BIN"], "serve", "--redis-url", os.environ["BANANAS_TEST_REDIS_URL"]]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BANANAS_TEST_")}
        environment["METRICS_PORT"] = str(self.http)
        environment["BANANAS_STREAM_HEARTBEAT_INTERVAL"] = "1s"
        environment["BANANAS_LIMITS_MAX_BATCH_ITEMS"] = str(MAX_BATCH_ITEMS)
        command += ["--listen", f"127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        eventually("the broker listens", lambda: socket.create_connection(("127.0.0.1", self.port), 1).close() or True)

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(PATIENCE_SECONDS)


class Client:
    """A producer at the broker that nobody restarts."""

    def __init__(self, key):
        self.key = key
        channel = grpc.insecure_channel(os.environ["BANANAS_BROKER"].removeprefix("http://"))
        self.broker, self.jobs = rpc.BrokerServiceStub(channel), jobs_rpc.JobServiceStub(channel)

    def enqueue(self, job_type, payload):
        spec = {"routing_key": self.key, "job_type": job_type, "payload": payload, "retention": {"seconds": 3600}}
        return self.broker.Enqueue(pb.EnqueueRequest(job=spec), timeout=PATIENCE_SECONDS).job_id

    def get(self, job_id):
        request = jobs_pb.GetJobRequest(routing_key=self.key, job_id=job_id, full=True)
        return self.jobs.GetJob(request, timeout=PATIENCE_SECONDS).job

    def state(self, job_id):
        return job_pb2.JobState.Name(self.get(job_id).state).removeprefix("JOB_STATE_")

    def done(self, job_ids):
        """All succeeded, at the first attempt."""
        for job_id in job_ids:
            eventually(f"{job_id} is done", lambda job_id=job_id: self.state(job_id) == "SUCCEEDED")
            job = self.get(job_id)
            assert (job.attempts, job.losses) == (0, 0), job


class WorkerProcess:
    def __init__(self, command, key, broker):
        self.path = Path(WORK.name) / f"{key}.log"
        environment = {**os.environ, "BANANAS_BROKER": f"http://127.0.0.1:{broker.port}", "LEASE_SECONDS": "8", "QUEUE": key}
        environment["PYTHONPATH"] = str(STUBS)
        with open(self.path, "wb") as log:
            self.process = subprocess.Popen([*command, key], env=environment, stdout=log, stderr=log)

    def started(self, job_id):
        """How often the handler of a job was begun."""
        return len(re.findall(f"started {job_id}", self.path.read_text()))

    def finished(self, job_id):
        return f"finished {job_id}" in self.path.read_text()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def slow_jobs_survive_brokers_that_die_and_stop(client, broker, worker):
    """Jobs of two leases' length, through kill -9 and SIGTERM of the only broker."""
    slow = [client.enqueue("sleep", b"16") for _ in range(3)]
    quick = [client.enqueue("upper", b"quick %d" % n) for n in range(20)]
    client.done(quick)
    for how in (signal.SIGKILL, signal.SIGTERM):
        for job_id in slow:
            eventually(f"{job_id} runs", lambda job_id=job_id: worker.started(job_id))
        broker.end(how)
        broker.start()
        client.done([client.enqueue("upper", b"after the restart") for _ in range(20)])
    client.done(slow)
    assert all(worker.started(job_id) == 1 for job_id in slow), "a job was run twice"
    assert "no frame from the worker" not in worker.path.read_text(), "the worker forgot its heartbeats"
    result = client.get(quick[0]).result.data
    assert result == b"QUICK 0", result


def a_cancel_reaches_the_handler(client, _broker, worker):
    job_id = client.enqueue("sleep", b"600")
    eventually("it runs", lambda: worker.started(job_id))
    request = jobs_pb.CancelJobRequest(routing_key=client.key, job_id=job_id)
    client.jobs.CancelJob(request, timeout=PATIENCE_SECONDS)
    eventually("it is cancelled", lambda: client.state(job_id) == "CANCELLED")


def answers_that_piled_up_are_sent_in_frames_that_the_broker_takes(client, broker, worker):
    """The broker takes MAX_BATCH_ITEMS in a frame; these are finished while it is away."""
    ids = [client.enqueue("sleep", b"1") for _ in range(2 * MAX_BATCH_ITEMS + 1)]
    for job_id in ids:
        eventually(f"{job_id} runs", lambda job_id=job_id: worker.started(job_id))
    broker.end(signal.SIGKILL)
    for job_id in ids:
        eventually(f"{job_id} is finished", lambda job_id=job_id: worker.finished(job_id))
    broker.start()
    client.done(ids)
    assert all(worker.started(job_id) == 1 for job_id in ids), "a job was run twice"


def a_slow_job_survives_a_restart_of_the_broker(client, broker, worker):
    """Unary: one job at a time, longer than its lease of 30 s."""
    slow = client.enqueue("sleep", b"33")
    eventually("it runs", lambda: worker.started(slow))
    for how in (signal.SIGKILL, signal.SIGTERM):
        broker.end(how)
        broker.start()
    client.done([slow])
    assert worker.started(slow) == 1, "it was run twice"
    client.done([client.enqueue("upper", b"after the restarts")])


def sigterm_ends_the_worker_after_its_jobs(client, _broker, worker):
    job_id = client.enqueue("sleep", b"2")
    eventually("it runs", lambda: worker.started(job_id))
    worker.process.send_signal(signal.SIGTERM)
    code = worker.process.wait(PATIENCE_SECONDS)
    assert code == 0, f"the worker ended with {code}"
    client.done([job_id])
    late = client.enqueue("upper", b"nobody is there")
    assert client.state(late) == "READY"


STREAM_FACTS = [
    slow_jobs_survive_brokers_that_die_and_stop,
    a_cancel_reaches_the_handler,
    answers_that_piled_up_are_sent_in_frames_that_the_broker_takes,
    sigterm_ends_the_worker_after_its_jobs,
]
UNARY_FACTS = [a_slow_job_survives_a_restart_of_the_broker, sigterm_ends_the_worker_after_its_jobs]


def readme_worker():
    """The Python code of README's section "A worker in Python", as it stands."""
    section = (ROOT / "README.md").read_text().split("## A worker in Python")[1].split("\n## ")[0]
    path = Path(WORK.name) / "readme_worker.py"
    path.write_text(re.search(r"```python\n(.*?)```", section, re.S).group(1))
    return [sys.executable, "-u", str(path)]  # it takes its queue from the environment


def main():
    name, command = sys.argv[1], sys.argv[2:]
    facts = UNARY_FACTS if name == "readme" else STREAM_FACTS
    if name == "readme":
        command = readme_worker()
    elif name == "python":
        command = [sys.executable, str(ROOT / "examples" / "python" / "stream_worker.py")]
    client, broker = Client(f"{name}-{uuid.uuid4().hex[:8]}"), Broker()
    broker.start()
    worker = WorkerProcess(command, client.key, broker)
    failed = 0
    for fact in facts:
        try:
            fact(client, broker, worker)
            print(f"ok      {fact.__name__}", flush=True)
        except Exception:  # pylint: disable=broad-except
            failed += 1
            print(f"FAILED  {fact.__name__}")
            traceback.print_exc(file=sys.stdout)
            print(f"-- the worker's log\n{worker.path.read_text()[-4000:]}", flush=True)
    worker.end()
    broker.end(signal.SIGKILL)
    print(f"example-{name}: {len(facts) - failed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
