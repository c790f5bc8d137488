"""The measured systems: how each is started, configured and measured. All return the same figures."""

import json
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from servers import REDIS_SERVER, Failed, broker, disk_bytes, nats, redis, redis_bytes, resident_bytes

HERE = Path(__file__).resolve().parent
PATIENCE_SECONDS = 600
# Calls in flight of a producer and concurrency of a worker, the same for all systems.
IN_FLIGHT = 50


@dataclass(frozen=True)
class Settings:
    """The parameters of a measurement, and the directories of the programs."""

    jobs: int
    seconds: float
    warmup: float
    payload: int
    rate: int
    bananas_bin: Path
    peers_bin: Path


def one_line(command):
    """Runs a program and reads the JSON that it prints."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired as timeout:
        raise Failed(f"{command[0]} took longer than {PATIENCE_SECONDS} s") from timeout
    if ended.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: {ended.stderr.strip()[-1000:]}")
    return json.loads(ended.stdout)


def milliseconds(seconds):
    """A duration in the format of the Bananas command line."""
    return f"{seconds * 1000:.0f}ms"


class System(ABC):
    """A job queue with its server. `variants` describes the durability of each variant."""

    key: str
    name: str
    settings: str
    variants: dict

    @abstractmethod
    def missing(self, settings):
        """Why the system cannot be measured on this machine. None if it can."""

    @abstractmethod
    def measure(self, variant, settings, directory):
        """Runs all workloads once, on new servers."""


REDIS_VARIANTS = {"none": "no persistence", "aof": "AOF, fsync every second"}


class Bananas(System):
    """`bananas bench` against a broker."""

    key = "bananas"
    name = "Bananas"
    settings = (
        "bananas bench: W1 calls of 500 jobs, four in flight, then Subscribe with a window of 2,000; W2 50 tasks with"
        " the client library, a worker process with 50 handlers of the worker library; W3 a stream without the library,"
        " counted from when a job is due"
    )
    variants = REDIS_VARIANTS

    def missing(self, settings):
        if not (settings.bananas_bin / "bananas").exists() or not (settings.bananas_bin / "bananas-broker").exists():
            return "its release build is missing"
        return None if shutil.which(REDIS_SERVER) else f"{REDIS_SERVER} is missing"

    def measure(self, variant, settings, directory):
        with redis(directory, variant == "aof") as (redis_port, redis_pid):
            with broker(directory, settings.bananas_bin / "bananas-broker", redis_port) as (address, broker_pid):
                common = [settings.bananas_bin / "bananas", "--broker", address, "-o", "json", "bench"]
                common += ["--redis-url", f"redis://127.0.0.1:{redis_port}", "--redis-pid", str(redis_pid)]
                common += ["--broker-pid", str(broker_pid), "--payload", str(settings.payload)]
                common += ["--jobs", str(settings.jobs), "--warmup", milliseconds(settings.warmup)]

                def bench(scenario, *flags):
                    return one_line([*common, *flags, scenario])["scenarios"][0]

                measured = ["--duration", milliseconds(settings.seconds)]
                # Measures until the last job is enqueued.
                until_all = ["--duration", f"{PATIENCE_SECONDS}s", "--batch", "500"]
                memory = bench("memory")
                bulk = bench("batch", *until_all)
                drain = bench("drain", "--window", "2000")
                life = bench("handlers", *measured, "--tasks", str(IN_FLIGHT), "--workers", str(IN_FLIGHT))
                idle = bench("idle", *measured, "--rate", str(settings.rate), "--window", str(2 * IN_FLIGHT))

        def cpu(scenario):
            return sum(scenario["cpu_us_per_job"].values())

        return {
            "enqueue_per_second": bulk["jobs_per_second"],
            "enqueue_cpu_us": cpu(bulk),
            "drain_per_second": drain["jobs_per_second"],
            "drain_cpu_us": cpu(drain),
            "life_per_second": life["jobs_per_second"],
            "life_cpu_us": cpu(life),
            "latency_p50_us": idle["due_to_worker_us"]["p50"],
            "latency_p99_us": idle["due_to_worker_us"]["p99"],
            "latency_cpu_us": cpu(idle),
            "memory_bytes": memory["redis_bytes_per_job"],
        }


class Peer(System):
    """A program of this directory with the commands produce-bulk, drain, life and latency."""

    # Flags of the bulk workloads, if other values than those of the other workloads are faster.
    bulk_flags: list = []
    drain_flags: list = []

    @abstractmethod
    def program(self, settings):
        """The command without flags."""

    def workloads(self, settings, address, server_pid, stored_bytes, flags=()):
        """Runs all workloads. `stored_bytes` returns the storage of the server as a dictionary."""
        common = [*self.program(settings), f"--address={address}", f"--server-pid={server_pid}"]
        common += [f"--payload={settings.payload}", f"--warmup={settings.warmup}", f"--rate={settings.rate}"]
        common += [f"--in-flight={IN_FLIGHT}", f"--concurrency={IN_FLIGHT}", *flags]
        # The first job creates the data that a queue has independent of its length.
        one_line([*common, "produce-bulk", "1"])
        one_line([*common, "drain", "1"])
        empty = stored_bytes()
        bulk = one_line([*common, *self.bulk_flags, "produce-bulk", str(settings.jobs)])
        full = stored_bytes()
        drain = one_line([*common, *self.drain_flags, "drain", str(settings.jobs)])
        life = one_line([*common, "life", str(settings.seconds)])
        idle = one_line([*common, "latency", str(settings.seconds)])
        figures = {f"{name}_bytes": (full[name] - empty[name]) / settings.jobs for name in full}
        for name, phase in {"enqueue": bulk, "drain": drain, "life": life, "latency": idle}.items():
            figures[f"{name}_per_second"] = phase["jobs"] / phase["seconds"]
            figures[f"{name}_cpu_us"] = sum(phase["cpu_us"].values()) / max(phase["jobs"], 1)
        del figures["latency_per_second"]
        figures["latency_p50_us"] = idle["latency_us"]["p50"]
        figures["latency_p99_us"] = idle["latency_us"]["p99"]
        return figures


class RedisPeer(Peer):
    """A peer with Redis as its server."""

    variants = REDIS_VARIANTS

    def measure(self, variant, settings, directory):
        with redis(directory, variant == "aof") as (port, pid):
            return self.workloads(settings, f"127.0.0.1:{port}", pid, lambda: {"memory": redis_bytes(port)})


class BullMQ(RedisPeer):
    key = "bullmq"
    name = "BullMQ"
    settings = (
        "W1 addBulk of 1,000 jobs, two in flight, then one Worker with concurrency 50; W2 50 promises that add one job"
        " at a time, concurrency 50; removeOnComplete; ioredis"
    )

    def program(self, settings):
        return ["node", HERE / "bullmq" / "main.js"]

    def missing(self, settings):
        if not shutil.which("node"):
            return "node is missing"
        package = HERE / "bullmq" / "node_modules" / "bullmq"
        return None if package.exists() else "its packages are not installed (npm ci)"


class GoPeer(Peer):
    """A peer with a client in Go."""

    def program(self, settings):
        return [settings.peers_bin / self.key]

    def missing(self, settings):
        return None if self.program(settings)[0].exists() else "its program is not built (needs Go)"


class Asynq(GoPeer, RedisPeer):
    key = "asynq"
    name = "asynq"
    settings = (
        "W1 200 goroutines (there is no bulk call), then one Server with concurrency 50; W2 50 goroutines, concurrency"
        " 50; a connection for each; an idle worker polls every 10 ms (default: 1 s)"
    )
    bulk_flags = ["--in-flight=200"]


class Nats(GoPeer):
    key = "nats"
    name = "NATS JetStream"
    settings = (
        "work-queue stream, durable pull consumer, explicit ack; W1 PublishAsync with 4,000 unacknowledged, then one"
        " Consume that handles messages in its callback and keeps 5,000 ready; W2 50 goroutines that publish"
        " synchronously, 50 that handle, 500 ready"
    )
    variants = {"file": "file storage, fsync every 2 minutes", "memory": "memory storage"}
    drain_flags = ["--concurrency=1", "--pull=5000"]

    def missing(self, settings):
        if reason := super().missing(settings):
            return reason
        return None if shutil.which("nats-server") else "nats-server is missing and could not be installed"

    def measure(self, variant, settings, directory):
        with nats(directory) as (port, pid):

            def stored():
                # NATS writes its files in the background.
                time.sleep(0.5)
                return {"memory": resident_bytes(pid), **({"disk": disk_bytes(directory)} if variant == "file" else {})}

            return self.workloads(settings, f"127.0.0.1:{port}", pid, stored, [f"--storage={variant}"])


SYSTEMS = [Bananas(), BullMQ(), Asynq(), Nats()]
