"""The servers that are measured: each on a free port of this machine, in a directory of its own, ended by its process id."""

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
    """Something that was started did not do what it should."""


def free_port():
    """A port that nobody listens on. Below the range from which outgoing connections take theirs."""
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise Failed("no free port found")


@contextmanager
def process(command, log, ready, environment=None):
    """A process from when ready() is true until the end of the block. Yields its process id."""
    with open(log, "wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                last_lines = log.read_text(errors="replace").splitlines()[-5:]
                raise Failed(f"{command[0]} does not start: " + " | ".join(last_lines))
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
    """Yields port and process id of a Redis. No rewrites of the append-only file: one would meet only some of those compared."""
    port = free_port()
    command = [REDIS_SERVER, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
    command += ["--maxmemory-policy", "noeviction", "--auto-aof-rewrite-percentage", "0"]
    command += ["--appendonly", "yes" if append_only else "no", "--appendfsync", "everysec"]
    with process(command, directory / "redis.log", lambda: answers(port, b"PING\r\n", b"+PONG")) as pid:
        yield port, pid


@contextmanager
def nats(directory):
    """Yields port and process id of a NATS server with JetStream."""
    port = free_port()
    command = ["nats-server", "--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir", str(directory)]
    with process(command, directory / "nats.log", lambda: answers(port, b"", b"INFO")) as pid:
        yield port, pid


@contextmanager
def broker(directory, binary, redis_port):
    """Yields address and process id of a Bananas broker."""
    api_port, http_port = free_port(), free_port()
    command = [str(binary), "serve", "--redis-url", f"redis://127.0.0.1:{redis_port}", "--listen", f"127.0.0.1:{api_port}"]
    # Without the variable it would refuse a Redis without an append-only file.
    environment = {"METRICS_PORT": str(http_port), "LOG_LEVEL": "error", "BANANAS_REDIS_ALLOW_UNSAFE": "true"}

    def ready():
        try:
            with urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    with process(command, directory / "broker.log", ready, environment) as pid:
        yield f"http://127.0.0.1:{api_port}", pid


def answers(port, question, beginning):
    """Whether the answer of a server begins so."""
    try:
        return ask(port, question).startswith(beginning)
    except OSError:
        return False


def ask(port, question):
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(question)
        return connection.recv(65_536)


def redis_bytes(port):
    """The memory that Redis uses for its data and their bookkeeping."""
    for line in ask(port, b"INFO memory\r\n").splitlines():
        if line.startswith(b"used_memory:"):
            return int(line.split(b":")[1])
    raise Failed("Redis does not say how much memory it uses")


def resident_bytes(pid):
    """The memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def disk_bytes(directory):
    """What the files in a directory take."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
