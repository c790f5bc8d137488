"""Tests of a Python client with stubs generated from proto/: enqueue, subscribe, ack, nack, resume after a broker died.

Run it with scripts/with-broker.sh, which sets the addresses of the broker and its Redis. Prints one line per test, and
the totals.
"""

import os
import queue
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
STUBS = tempfile.TemporaryDirectory(prefix="bananas-stubs-")
PATIENCE_SECONDS = 30


def generate_stubs():
    """The same as `python -m grpc_tools.protoc`."""
    well_known = Path(protoc.__file__).parent / "_proto"
    files = [str(path) for path in sorted((ROOT / "proto" / "bananas" / "v1").glob("*.proto"))]
    arguments = [f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    arguments += [f"--python_out={STUBS.name}", f"--grpc_python_out={STUBS.name}"]
    if protoc.main(["protoc", *arguments, *files]) != 0:
        sys.exit("python: cannot generate the stubs")
    sys.path.insert(0, STUBS.name)


generate_stubs()
# pylint: disable=wrong-import-position
from bananas.v1 import broker_service_pb2 as broker  # noqa: E402
from bananas.v1 import broker_service_pb2_grpc as broker_grpc  # noqa: E402
from bananas.v1 import job_pb2 as job  # noqa: E402
from bananas.v1 import job_service_pb2 as jobs  # noqa: E402
from bananas.v1 import job_service_pb2_grpc as jobs_grpc  # noqa: E402


class Client:
    """The stubs of one broker, on one channel."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address.removeprefix("http://"))
        self.broker = broker_grpc.BrokerServiceStub(self.channel)
        self.jobs = jobs_grpc.JobServiceStub(self.channel)

    def enqueue(self, routing_key, payload=b"", **fields):
        spec = job.JobSpec(
            routing_key=routing_key, job_type="python", payload=payload, retention=Duration(seconds=3600), **fields
        )
        return self.broker.Enqueue(broker.EnqueueRequest(job=spec), timeout=PATIENCE_SECONDS)

    def state(self, routing_key, job_id):
        request = jobs.GetJobRequest(routing_key=routing_key, job_id=job_id)
        return self.jobs.GetJob(request, timeout=PATIENCE_SECONDS).job.state


class Session:
    """A Subscribe stream. gRPC sends the frames of a queue."""

    def __init__(self, client, routing_key, max_jobs, session_id="", held_tokens=()):
        self.outgoing = queue.Queue()
        self.send(
            open=broker.Open(
                selector=broker.Selector(routing_keys=[routing_key]),
                flow=broker.Flow(max_jobs=max_jobs),
                session_id=session_id,
                held_tokens=held_tokens,
            )
        )
        self.call = client.broker.Subscribe(iter(self.outgoing.get, None), timeout=2 * PATIENCE_SECONDS)
        self.opened = self.next("opened")

    def send(self, **frame):
        self.outgoing.put(broker.SubscribeRequest(**frame))

    def next(self, kind):
        """The next frame of this kind. Other frames are skipped."""
        for response in self.call:
            if response.WhichOneof("frame") == kind:
                return getattr(response, kind)
        raise AssertionError(f"the stream ended before {kind}")

    def take(self, count):
        taken = []
        while len(taken) < count:
            frame = self.next("jobs")
            self.send(received=broker.Received(delivery=frame.delivery))
            taken.extend(frame.jobs)
        return taken

    def settle(self, *settlements):
        self.send(settle=broker.Settle(sequence=1, settlements=settlements))
        return self.next("settle_results").results

    def close(self):
        self.outgoing.put(None)
        self.call.cancel()


def ack(token, result=None):
    return broker.Settlement(lease_token=token, ack=broker.SettleAck(result=result))


def nack(token, action):
    return broker.Settlement(lease_token=token, nack=broker.SettleNack(action=action))


def unique_key():
    return f"python-{uuid.uuid4().hex[:12]}"


def reason_of(error):
    status = rpc_status.from_call(error)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason, info.domain
    return None


class OwnBroker:
    """A second broker on the same Redis, which the test kills."""

    def __init__(self):
        self.ports = [free_port(), free_port()]
        self.address = f"http://127.0.0.1:{self.ports[0]}"
        self.process = None

    def start(self):
        environment = {**os.environ, "METRICS_PORT": str(self.ports[1])}
        self.process = subprocess.Popen(
            [
                os.environ["BANANAS_TEST_BROKER_BIN"],
                "serve",
                "--redis-url",
                os.environ["BANANAS_TEST_REDIS_URL"],
                "--listen",
                f"127.0.0.1:{self.ports[0]}",
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        address = ("127.0.0.1", self.ports[0])
        eventually("the broker listens", lambda: socket.create_connection(address, 1).close() or True)

    def kill(self):
        self.process.kill()
        self.process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(what, condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, grpc.RpcError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


def a_job_is_enqueued_leased_and_acked_with_unary_calls(client):
    key = unique_key()
    sent = client.enqueue(key, b"hello", headers={"a": "b"})
    request = broker.LeaseRequest(selector=broker.Selector(routing_keys=[key]), wait=Duration(seconds=10))
    leased = client.broker.Lease(request, timeout=PATIENCE_SECONDS).jobs[0]
    assert (leased.job_id, leased.payload, dict(leased.headers)) == (sent.job_id, b"hello", {"a": "b"})
    result = job.JobResult(data=b"done", content_type="text/plain")
    client.broker.Ack(broker.AckRequest(lease_token=leased.lease_token, result=result), timeout=PATIENCE_SECONDS)
    wait = jobs.WaitJobRequest(routing_key=key, job_id=sent.job_id, full=True)
    done = client.jobs.WaitJob(wait, timeout=PATIENCE_SECONDS)
    assert done.settled and done.job.result.data == b"done"


def the_same_id_is_enqueued_once(client):
    key, job_id = unique_key(), str(uuid.uuid4())
    assert not client.enqueue(key, job_id=job_id).deduplicated
    assert client.enqueue(key, job_id=job_id).deduplicated


def a_second_job_with_a_unique_key_replaces_or_debounces_the_first(client):
    key = unique_key()
    replace = job.Unique(key="k", on_conflict=job.ON_CONFLICT_REPLACE)
    first = client.enqueue(key, b"1", unique=replace)
    second = client.enqueue(key, b"2", unique=replace)
    assert (second.job_id, second.deduplicated, second.replaced) == (first.job_id, True, True)
    request = broker.LeaseRequest(selector=broker.Selector(routing_keys=[key]), wait=Duration(seconds=10))
    leased = client.broker.Lease(request, timeout=PATIENCE_SECONDS).jobs[0]
    assert (leased.job_id, leased.payload) == (first.job_id, b"2")
    third = client.enqueue(key, b"3", unique=replace)
    assert (third.deduplicated, third.replaced, third.state) == (True, False, job.JOB_STATE_LEASED)

    debounce = job.Unique(key="d", on_conflict=job.ON_CONFLICT_DEBOUNCE, delay=Duration(seconds=60))
    first, second = client.enqueue(key, b"1", unique=debounce), client.enqueue(key, b"2", unique=debounce)
    assert not first.replaced and second.replaced and second.job_id == first.job_id
    assert first.run_time.ToDatetime() <= second.run_time.ToDatetime()

    window = job.Unique(key="w", scope=job.UNIQUE_SCOPE_WINDOW, window=Duration(seconds=3600))
    assert not client.enqueue(key, unique=window).deduplicated
    assert client.enqueue(key, unique=window).deduplicated


def the_example_of_the_page_on_unique_keys_runs(client):
    page = (ROOT / "docs" / "uniqueness.md").read_text(encoding="utf-8")
    (example,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
    names = {"job": job, "broker": broker, "stub": client.broker}
    for replaced in (False, True):
        exec(example, names)  # pylint: disable=exec-used
        assert names["answer"].replaced is replaced
    cancel = jobs.CancelJobRequest(routing_key="search", job_id=names["answer"].job_id)
    client.jobs.CancelJob(cancel, timeout=PATIENCE_SECONDS)


def a_batch_has_a_result_for_each_job(client):
    key = unique_key()
    specs = [job.JobSpec(routing_key=key, job_type="t", priority=priority) for priority in (1, 10, 2)]
    results = client.broker.BatchEnqueue(broker.BatchEnqueueRequest(jobs=specs), timeout=PATIENCE_SECONDS).results
    assert [result.error.reason for result in results] == ["", "INVALID_FIELD", ""]


def jobs_are_acked_and_nacked_over_a_stream(client):
    key = unique_key()
    ids = [client.enqueue(key).job_id for _ in range(3)]
    session = Session(client, key, max_jobs=3)
    taken = session.take(3)
    assert [leased.job_id for leased in taken] == ids
    first, second, third = (leased.lease_token for leased in taken)
    results = session.settle(
        ack(first), nack(second, broker.NACK_ACTION_RETRY), nack(third, broker.NACK_ACTION_DEAD_LETTER)
    )
    assert not any(result.HasField("error") for result in results)
    states = [client.state(key, job_id) for job_id in ids]
    assert states == [job.JOB_STATE_SUCCEEDED, job.JOB_STATE_SCHEDULED, job.JOB_STATE_DEAD], states
    session.close()


def lines_of_the_log_of_a_job_are_written_and_read(client):
    key = unique_key()
    job_id = client.enqueue(key).job_id
    session = Session(client, key, 1)
    (leased,) = session.take(1)
    report = job.Progress(percent=40, message="page 2", log_lines=["opened", "page 1"])
    session.send(
        extend=broker.SessionExtend(
            sequence=1, leases=[broker.LeaseExtension(lease_token=leased.lease_token, progress=report)]
        )
    )
    assert not session.next("extend_results").results[0].HasField("error")
    # Lines alone, with a call of their own.
    lines = job.Progress(log_lines=["page 2"])
    extension = broker.LeaseExtension(lease_token=leased.lease_token, progress=lines)
    client.broker.Extend(broker.ExtendRequest(leases=[extension]), timeout=PATIENCE_SECONDS)
    session.settle(ack(leased.lease_token))
    session.close()
    request = jobs.ReadJobLogRequest(routing_key=key, job_id=job_id, page_size=2)
    first = client.jobs.ReadJobLog(request, timeout=PATIENCE_SECONDS)
    request.page_token = first.next_page_token
    rest = client.jobs.ReadJobLog(request, timeout=PATIENCE_SECONDS)
    read = list(first.lines) + list(rest.lines)
    assert [(line.number, line.line) for line in read] == [(1, "opened"), (2, "page 1"), (3, "page 2")]
    assert rest.next_page_token == "" and rest.dropped == 0
    assert all(line.time.seconds > 0 for line in read)
    done = client.jobs.GetJob(jobs.GetJobRequest(routing_key=key, job_id=job_id), timeout=PATIENCE_SECONDS).job
    assert done.has_log and (done.progress.percent, done.progress.message) == (40, "page 2")


def a_released_job_is_delivered_again_on_the_stream(client):
    key = unique_key()
    job_id = client.enqueue(key).job_id
    session = Session(client, key, max_jobs=1)
    session.settle(nack(session.take(1)[0].lease_token, broker.NACK_ACTION_RELEASE))
    again = session.take(1)[0]
    assert (again.job_id, again.attempt, again.losses) == (job_id, 1, 0)
    session.close()


def a_session_resumes_after_its_broker_died(_client):
    own = OwnBroker()
    own.start()
    try:
        key = unique_key()
        client = Client(own.address)
        ids = [client.enqueue(key).job_id for _ in range(2)]
        session = Session(client, key, max_jobs=2)
        taken = session.take(2)
        session.settle(ack(taken[0].lease_token))
        own.kill()
        own.start()
        resumed = []

        def resume():
            held = [taken[1].lease_token]
            resumed.append(Session(Client(own.address), key, 2, session.opened.session_id, held))
            return True

        eventually("the session resumes", resume)
        held = resumed[-1].opened.held[0]
        assert not held.HasField("error"), held
        assert not resumed[-1].settle(ack(taken[1].lease_token))[0].HasField("error")
        fresh = Client(own.address)
        assert [fresh.state(key, job_id) for job_id in ids] == [job.JOB_STATE_SUCCEEDED] * 2
        resumed[-1].close()
    finally:
        own.kill()


def an_error_names_its_reason(client):
    try:
        client.broker.Ack(broker.AckRequest(lease_token=b"junk"), timeout=PATIENCE_SECONDS)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert reason_of(error) == ("MALFORMED_TOKEN", "bananas.dev"), reason_of(error)
    else:
        raise AssertionError("an invalid token was accepted")


def reflection_v1alpha_lists_the_services_for_older_tools(client):
    services = ProtoReflectionDescriptorDatabase(client.channel).get_services()
    assert "bananas.v1.BrokerService" in services, services


FACTS = [
    a_job_is_enqueued_leased_and_acked_with_unary_calls,
    the_same_id_is_enqueued_once,
    a_second_job_with_a_unique_key_replaces_or_debounces_the_first,
    the_example_of_the_page_on_unique_keys_runs,
    a_batch_has_a_result_for_each_job,
    jobs_are_acked_and_nacked_over_a_stream,
    lines_of_the_log_of_a_job_are_written_and_read,
    a_released_job_is_delivered_again_on_the_stream,
    a_session_resumes_after_its_broker_died,
    an_error_names_its_reason,
    reflection_v1alpha_lists_the_services_for_older_tools,
]


def main():
    client = Client(os.environ["BANANAS_BROKER"])
    failed = 0
    for fact in FACTS:
        try:
            fact(client)
            print(f"ok      {fact.__name__}")
        except Exception:  # pylint: disable=broad-except
            failed += 1
            print(f"FAILED  {fact.__name__}")
            traceback.print_exc(file=sys.stdout)
    print(f"python: {len(FACTS) - failed} passed, {failed} failed", flush=True)
    # Exit even if a failed test has left a stream open.
    os._exit(1 if failed else 0)


main()
