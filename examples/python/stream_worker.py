"""A worker on a Subscribe stream. Copy it and put your functions into HANDLERS. docs/protocol.md explains each rule.

pip install grpcio grpcio-tools
python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/bananas/v1/*.proto
BANANAS_BROKER=http://127.0.0.1:8080 python stream_worker.py demo
"""

import logging
import os
import queue
import random
import signal
import sys
import threading
import time

import grpc
from bananas.v1 import broker_service_pb2 as pb
from bananas.v1 import broker_service_pb2_grpc as rpc

BROKERS = os.environ.get("BANANAS_BROKER", "127.0.0.1:8080").split(",")
ADDRESSES = [address.removeprefix("http://") for address in BROKERS]
CONCURRENCY = 10
LEASE_SECONDS = int(os.environ.get("LEASE_SECONDS", "30"))
STOP_SECONDS = 20  # jobs that still run this long after SIGTERM are released
INVALID_ARGUMENT, FAILED_PRECONDITION = 3, 9
# Errors before `opened` that a retry cannot fix. After any other end of a stream, also OK, the next stream is opened.
FATAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}
HEARTBEAT = pb.SubscribeRequest(heartbeat={})


def sleep(payload, cancelled):
    """A long job checks `cancelled`: the job was cancelled, or its lease is lost."""
    if cancelled.wait(float(payload)):
        raise InterruptedError("cancelled")
    return b"slept " + payload


HANDLERS = {"upper": lambda payload, cancelled: payload.upper(), "sleep": sleep}


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


class Worker:
    def __init__(self, routing_key):
        self.selector = pb.Selector(routing_keys=[routing_key], job_types=list(HANDLERS))
        self.lock = threading.Lock()  # for the next four
        self.running = {}  # lease token -> Event that asks the handler to stop
        self.settlements = {}  # lease token -> the Settlement that has no result yet
        self.in_flight = []  # the tokens of the settle frame that was sent and has no results yet
        self.out = None  # the queue for frames, while a stream is open
        self.session_id, self.opened, self.sequence = "", pb.Opened(), 0
        self.last_frame = time.monotonic()
        self.stopping = threading.Event()

    def run(self):
        """Keeps a stream open, trying the brokers in turn, until the worker is stopped and all its jobs are settled."""
        tries = 0
        while not self.finished():
            address = ADDRESSES[tries % len(ADDRESSES)]
            # A new channel for each try: the backoff of a shared channel would be added to this one.
            with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                is_open = False
                try:
                    for frame in self.open(channel):
                        is_open = is_open or frame.WhichOneof("frame") == "opened"
                        self.on_frame(frame)
                except grpc.RpcError as error:
                    logging.info("stream ended: %s %s", error.code().name, error.details())
                    if not is_open and error.code() in FATAL:
                        raise
            with self.lock:
                self.out, self.in_flight = None, []  # settlements without a result are sent again
            # The first retry is immediate, the next ones wait 0.1, 0.2, 0.4 ... 5 s.
            tries = 1 if is_open else tries + 1
            time.sleep(0.05 if is_open else min(5, 0.05 * 2**tries) * random.uniform(0.5, 1))
            if time.monotonic() - self.last_frame > LEASE_SECONDS - 2:
                self.lose(list(self.running))  # no broker has renewed the leases

    def open(self, channel):
        with self.lock:  # all held leases: of running jobs, and of settlements without a result
            self.named = [*self.running, *self.settlements][:10_000]
        first = pb.SubscribeRequest(
            open=pb.Open(
                worker={"worker_id": self.opened.worker_id, "sdk": "stream_worker.py"},
                selector=self.selector,
                flow={"max_jobs": 0 if self.stopping.is_set() else CONCURRENCY},
                lease_duration={"seconds": LEASE_SECONDS},
                session_id=self.session_id,
                held_tokens=self.named,
            )
        )
        self.last_sign, self.frames = time.monotonic(), queue.SimpleQueue()
        self.call = rpc.BrokerServiceStub(channel).Subscribe(self.requests(first, self.frames))
        return self.call

    def requests(self, first, frames):
        """gRPC sends the frames that this yields. When it returns, the stream is half-closed."""
        yield first
        while not (self.out and self.finished()):
            interval = self.opened.heartbeat_interval.ToTimedelta().total_seconds() or 10
            try:
                frame = frames.get(timeout=interval / 2)
            except queue.Empty:
                frame = HEARTBEAT
            if frame is None:
                break
            yield frame
            if time.monotonic() - self.last_sign > 3 * interval:
                self.call.cancel()  # a broken connection may not report an error
        later(2, self.call.cancel)  # the broker ends a half-closed stream; this is for a stream that hangs

    def on_frame(self, frame):
        self.last_sign = self.last_frame = time.monotonic()
        kind = frame.WhichOneof("frame")
        if kind == "opened":
            self.on_opened(frame.opened)
        elif kind == "jobs" and self.out:
            self.out.put(pb.SubscribeRequest(received={"delivery": frame.jobs.delivery}))
            for job in frame.jobs.jobs:
                self.start(job)
        elif kind == "settle_results":
            self.on_results(frame.settle_results.results)
        elif kind == "cancel":
            self.cancel(frame.cancel.lease_token)
        elif kind == "lease_lost":
            self.lose([frame.lease_lost.lease_token])
        elif kind == "draining":
            self.leave()

    def on_opened(self, opened):
        self.opened, self.session_id, self.out = opened, opened.session_id, self.frames
        if self.stopping.is_set():
            self.out.put(pb.SubscribeRequest(drain={}))
        for token, result in zip(self.named, opened.held):
            if result.error.reason == "ALREADY_SETTLED":
                self.settlements.pop(token, None)
            elif result.error.code == FAILED_PRECONDITION:
                self.lose([token])  # a settlement is kept: it may be what ended the lease
            elif result.cancel_requested:
                self.cancel(token)
        self.settle()

    def start(self, job):
        cancelled = threading.Event()
        with self.lock:
            self.running[job.lease_token] = cancelled
        if self.stopping.is_set():
            self.report(job.lease_token, nack={"action": pb.NACK_ACTION_RELEASE})
        else:
            threading.Thread(target=self.work, args=(job, cancelled), daemon=True).start()

    def work(self, job, cancelled):
        logging.info("started %s attempt %d", job.job_id, job.attempt)
        try:
            data = HANDLERS[job.job_type](job.payload, cancelled)
            action, failure = None, {}
            if len(data) > self.opened.max_payload_bytes:
                action = pb.NACK_ACTION_DEAD_LETTER
                failure = {"type": "ResultTooLarge", "message": f"{len(data)} bytes"}
        except Exception as error:  # pylint: disable=broad-except
            action = pb.NACK_ACTION_DISCARD if cancelled.is_set() else pb.NACK_ACTION_RETRY
            failure = {"type": type(error).__name__, "message": str(error)}
        logging.info("finished %s", job.job_id)
        if action is None:
            self.report(job.lease_token, ack={"result": {"data": data}})
        else:
            self.report(job.lease_token, nack={"action": action, "failure": failure})

    def report(self, token, **outcome):
        with self.lock:
            if token not in self.running:
                return  # the lease is lost
            self.settlements[token] = pb.Settlement(lease_token=token, **outcome)
            del self.running[token]
        self.settle()

    def settle(self):
        """Sends the settlements, one frame at a time. Later ones are in the next frame."""
        with self.lock:
            if not self.out or self.in_flight:
                return
            batch, size = [], 0
            for settlement in self.settlements.values():
                size += settlement.ByteSize()
                if batch and (len(batch) == self.opened.max_batch_items or size > self.opened.max_batch_bytes):
                    break
                batch.append(settlement)
            self.in_flight = [settlement.lease_token for settlement in batch]
            self.sequence += 1
            if batch:
                self.out.put(pb.SubscribeRequest(settle={"sequence": self.sequence, "settlements": batch}))
            elif self.finished():
                self.out.put(HEARTBEAT)  # wakes `requests`, which half-closes the stream

    def on_results(self, results):
        again = 0
        with self.lock:
            for token, result in zip(self.in_flight, results):
                if result.error.code in (0, FAILED_PRECONDITION):  # applied, LEASE_LOST or ALREADY_SETTLED
                    del self.settlements[token]
                elif result.error.code == INVALID_ARGUMENT:  # rejected: report that instead
                    failure = {"type": "AnswerRefused", "message": result.error.message}
                    nack = {"action": pb.NACK_ACTION_DEAD_LETTER, "failure": failure}
                    self.settlements[token] = pb.Settlement(lease_token=token, nack=nack)
                else:  # not applied, or the outcome is unknown: sending the same settlement again is safe
                    again = max(again, 1, result.error.retry_after.ToTimedelta().total_seconds())
            self.in_flight = []
        later(again, self.settle)

    def cancel(self, token):
        if token in self.running:
            self.running[token].set()

    def lose(self, tokens):
        for token in tokens:
            with self.lock:
                cancelled = self.running.pop(token, None)
            if cancelled:
                logging.info("lease lost")
                cancelled.set()

    def leave(self):
        """The broker will end this stream: half-close it, receive the last results, and open the next stream."""
        with self.lock:
            self.out = None
        self.frames.put(None)

    def finished(self):
        return self.stopping.is_set() and not self.running and not self.settlements

    def stop(self, *_):
        """SIGTERM: take no new jobs, settle the running ones, half-close the stream. A signal handler must not lock."""
        self.stopping.set()
        if out := self.out:
            out.put(pb.SubscribeRequest(drain={}))
        later(STOP_SECONDS, self.release_all)

    def release_all(self):
        for token in list(self.running):
            self.report(token, nack={"action": pb.NACK_ACTION_RELEASE})
        time.sleep(5)
        os._exit(1)  # no broker took the settlements; the jobs run again when their leases expire


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
worker = Worker(sys.argv[1])
signal.signal(signal.SIGTERM, worker.stop)
signal.signal(signal.SIGINT, worker.stop)
worker.run()
