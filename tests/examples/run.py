"""Runs the example workers unchanged: slow jobs, a killed and a stopped broker, a cancel, SIGTERM.

usage: with-broker.sh python run.py readme|python|node|go [COMMAND...]
COMMAND starts the worker, with a routing key as its last argument. Prints one line per test, and the totals.
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
# Setting of the broker that is restarted.
MAX_BATCH_ITEMS = 4
WORK = tempfile.TemporaryDirectory(prefix="bananas-examples-")
STUBS = Path(WORK.name) / "stubs"


def generate_stubs():
    well_known = Path(protoc.__file__).parent / "_proto"
    files = [str(path) for path in sorted((ROOT / "proto" / "bananas" / "v1").glob("*.proto"))]
    STUBS.mkdir()
    options = [f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--python_out={STUBS}", f"--grpc_python_out={STUBS}"]
    if protoc.main(["protoc", *options, *files]):
        sys.exit("cannot generate the stubs")
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


def listens(port):
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


def eventually(what, condition):
    """Waits until the condition is true, and returns its value."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    last = None
    while time.monotonic() < deadline:
        try:
            last = condition()
            if last:
                return last
        except (OSError, grpc.RpcError) as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what} (last: {last})")


class Broker:
    """A second broker on the same Redis. It can be stopped, killed and started again at the same address."""

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
        eventually("the broker listens", lambda: listens(self.port))

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(PATIENCE_SECONDS)


class Client:
    """A producer at the broker that is not restarted."""

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
        """Waits until all jobs have succeeded, at their first attempt."""
        for job_id in job_ids:
            eventually(f"{job_id} succeeds", lambda job_id=job_id: self.state(job_id) == "SUCCEEDED")
            job = self.get(job_id)
            assert (job.attempts, job.losses) == (0, 0), job


class WorkerProcess:
    def __init__(self, command, key, broker):
        self.path = Path(WORK.name) / f"{key}.log"
        environment = {**os.environ, "BANANAS_BROKER": f"http://127.0.0.1:{broker.port}", "PYTHONPATH": str(STUBS)}
        environment |= {"LEASE_SECONDS": "8", "QUEUE": key}
        with open(self.path, "wb") as log:
            self.process = subprocess.Popen([*command, key], env=environment, stdout=log, stderr=log)

    def started(self, job_id):
        """How often the handler of a job was started."""
        return len(re.findall(f"started {job_id}", self.path.read_text()))

    def finished(self, job_id):
        return f"finished {job_id}" in self.path.read_text()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def slow_jobs_survive_brokers_that_die_and_stop(client, broker, worker):
    """Jobs that run for two leases survive SIGKILL and SIGTERM of the only broker."""
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
    assert "no frame from the worker" not in worker.path.read_text(), "the worker sent no heartbeats"
    result = client.get(quick[0]).result.data
    assert result == b"QUICK 0", result


def a_cancel_reaches_the_handler(client, _broker, worker):
    job_id = client.enqueue("sleep", b"600")
    eventually("it runs", lambda: worker.started(job_id))
    request = jobs_pb.CancelJobRequest(routing_key=client.key, job_id=job_id)
    client.jobs.CancelJob(request, timeout=PATIENCE_SECONDS)
    eventually("it is cancelled", lambda: client.state(job_id) == "CANCELLED")


def many_settlements_are_sent_in_frames_that_the_broker_accepts(client, broker, worker):
    """More jobs than MAX_BATCH_ITEMS finish while the broker is down."""
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
    """A worker without a stream runs a job for longer than its lease of 30 s."""
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
    late = client.enqueue("upper", b"no worker runs")
    assert client.state(late) == "READY"


STREAM_FACTS = [
    slow_jobs_survive_brokers_that_die_and_stop,
    a_cancel_reaches_the_handler,
    many_settlements_are_sent_in_frames_that_the_broker_accepts,
    sigterm_ends_the_worker_after_its_jobs,
]
UNARY_FACTS = [a_slow_job_survives_a_restart_of_the_broker, sigterm_ends_the_worker_after_its_jobs]


def readme_worker():
    """The Python code of the section "A worker in Python" of the README."""
    section = (ROOT / "README.md").read_text().split("## A worker in Python")[1].split("\n## ")[0]
    path = Path(WORK.name) / "readme_worker.py"
    path.write_text(re.search(r"```python\n(.*?)```", section, re.S).group(1))
    return [sys.executable, "-u", str(path)]  # it reads its queue from the environment


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
            print(f"-- the log of the worker\n{worker.path.read_text()[-4000:]}", flush=True)
    worker.end()
    broker.end(signal.SIGKILL)
    print(f"example-{name}: {len(facts) - failed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
