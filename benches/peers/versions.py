"""Reads the versions of the measured systems."""

import json
import re
import subprocess
from pathlib import Path

from servers import REDIS_SERVER

HERE = Path(__file__).resolve().parent


def versions(settings):
    """All versions. None if a program is missing."""
    modules = dict(re.findall(r"^\s*(\S+) (v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE))
    packages = json.loads((HERE / "bullmq" / "package-lock.json").read_text())["packages"]
    return {
        "bananas": reported(settings.bananas_bin / "bananas-broker", "--version"),
        "redis": reported(REDIS_SERVER, "--version"),
        "nats-server": reported("nats-server", "--version"),
        "bullmq": packages["node_modules/bullmq"]["version"],
        "ioredis": packages["node_modules/ioredis"]["version"],
        "asynq": modules["github.com/hibiken/asynq"].lstrip("v"),
        "nats.go": modules["github.com/nats-io/nats.go"].lstrip("v"),
        "node": reported("node", "--version"),
        "go": reported("go", "version"),
    }


def reported(*command):
    """The first version number in the output of a program."""
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found.group() if found else None
