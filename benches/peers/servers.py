"""Starts and ends the measured servers, each on a free port and with its own directory."""

import os
import random
import socket
import subprocess
import time
from contextlib import contextmanager
from urllib.request import urlopen

# As in scripts/lib.sh.
REDIS_SERVER = os.environ.get("REDIS_SERVER") or "redis-server"
PATIENCE_SECONDS = 20


class Failed(Exception):
    """A program failed, or did not start."""


def free_port():
    """A free TCP port, below the range of ephemeral ports."""
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise Failed("found no free port")


@contextmanager
def process(command, log, ready, environment=None):
    """Runs a process during the block, which starts when ready() is true. Yields the process id."""
    with open(log, "wb") as output:
        variables = {**os.environ, **(environment or {})}
        child = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=variables)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                last_lines = log.read_text(errors="replace").splitlines()[-5:]
                raise Failed(f"{command[0]} did not start: " + " | ".join(last_lines))
            time.sleep(0.05)
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def redis(directory, append_only):
    """Yields port and process id of a Redis, which does not rewrite its append-only file during a measurement."""
    port = free_port()
    command = [REDIS_SERVER, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
    command += ["--maxmemory-policy", "noeviction", "--auto-aof-rewrite-percentage", "0"]
    command += ["--appendonly", "yes" if append_only else "no", "--appendfsync", "everysec"]
    with process(command, directory / "redis.log", lambda: replies(port, b"PING\r\n", b"+PONG")) as pid:
        yield port, pid


@contextmanager
def nats(directory):
    """Yields port and process id of a NATS server with JetStream."""
    port = free_port()
    command = ["nats-server", "--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir", str(directory)]
    with process(command, directory / "nats.log", lambda: replies(port, b"", b"INFO")) as pid:
        yield port, pid


@contextmanager
def broker(directory, binary, redis_port):
    """Yields address and process id of a Bananas broker."""
    api_port, http_port = free_port(), free_port()
    command = [str(binary), "serve", "--redis-url", f"redis://127.0.0.1:{redis_port}"]
    command += ["--listen", f"127.0.0.1:{api_port}"]
    # Without BANANAS_REDIS_ALLOW_UNSAFE the broker refuses a Redis without an append-only file.
    environment = {"METRICS_PORT": str(http_port), "LOG_LEVEL": "error", "BANANAS_REDIS_ALLOW_UNSAFE": "true"}

    def ready():
        try:
            with urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=1) as response:
                return response.status == 200
        except OSError:
            return False

    with process(command, directory / "broker.log", ready, environment) as pid:
        yield f"http://127.0.0.1:{api_port}", pid


def replies(port, request, start):
    """Whether the reply of a server starts with these bytes."""
    try:
        return exchange(port, request).startswith(start)
    except OSError:
        return False


def exchange(port, request):
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(request)
        return connection.recv(65_536)


def redis_bytes(port):
    """The memory that Redis uses."""
    for line in exchange(port, b"INFO memory\r\n").splitlines():
        if line.startswith(b"used_memory:"):
            return int(line.split(b":")[1])
    raise Failed("INFO of Redis does not contain used_memory")


def resident_bytes(pid):
    """The resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def disk_bytes(directory):
    """The size of all files in a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
