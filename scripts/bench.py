#!/usr/bin/env python3
"""`make bench`: measures the standard set of `bananas bench` and a reliable queue on plain Redis lists, in turn.

Prints the medians of several rounds. Each measurement starts its own Redis and broker with scripts/bench.sh.
Needs only the standard library.

ROUNDS=3      number of rounds
DURATION=3    seconds of each measurement, after a warm-up of one second
REDIS_AOF=    everysec (default), always or no
OUT=          a file for all figures as JSON
BEFORE=       a directory with the bananas-broker of another version, which is measured as well, just before this one
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = int(os.environ.get("ROUNDS") or 3)
DURATION = float(os.environ.get("DURATION") or 3)
AOF = os.environ.get("REDIS_AOF") or "everysec"
OUT = os.environ.get("OUT")
BEFORE = os.environ.get("BEFORE")

# Large payloads: the worker library with its default window, and a stream with a window of a thousand jobs.
LARGE = [
    f"{life} --payload {size}" for size in [64 << 10, 1 << 20] for life in ["handlers", "life --window 1000"]
]
# The order keeps scenarios that are compared with each other close together in time.
RUNS = [
    "life",
    "direct life",
    "combine",
    "handlers",
    "direct life-pipelined",
    "unary-life",
    "batch",
    "drain",
    "idle",
    "memory",
    "delayed",
    "subscribers",
    "spread",
    "fairness --workers 8",
    *LARGE,
]
LIVES = ["life", "combine", "handlers", "unary-life"]
DIRECT = [run for run in RUNS if run.startswith("direct ")]


def main():
    rounds, before = [], []
    with tempfile.TemporaryDirectory() as directory:
        older = binaries_before(Path(directory)) if BEFORE else None
        for number in range(1, ROUNDS + 1):
            rounds.append({})
            before.append({})
            for run in RUNS:
                print(f"round {number} of {ROUNDS}: {run}", file=sys.stderr)
                if older and run not in DIRECT:
                    before[-1][run] = measure(run, older)
                rounds[-1][run] = measure(run)
    first = rounds[0]["life"]["report"]
    figures = {run: gathered([each[run]["figures"] for each in rounds]) for run in RUNS}
    ratios = {
        life: {direct: spread([rate(each[life]) / rate(each[direct]) for each in rounds]) for direct in DIRECT}
        for life in LIVES
    }
    print(head(first))
    print()
    print(throughput(figures))
    print()
    print(times_direct(ratios))
    print()
    print(latencies(figures))
    print()
    print(costs(figures))
    if BEFORE:
        print()
        print(compared(before, rounds))
    if OUT:
        about = {name: first[name] for name in ["machine", "versions", "optimised_build", "payload_bytes"]}
        about |= {"append_only_file": AOF, "rounds": ROUNDS, "seconds_each": DURATION}
        if BEFORE:
            about["before"] = {run: gathered([each[run]["figures"] for each in before]) for run in before[0]}
        Path(OUT).write_text(json.dumps(about | {"times_direct": ratios, "scenarios": figures}, indent=2) + "\n")


def binaries_before(directory):
    """Makes a directory with the other broker and today's programs, so that both brokers get the same load."""
    today = Path(os.environ["BANANAS_BIN_DIR"])
    for name, of in [("bananas-broker", Path(BEFORE)), ("bananas", today), ("direct", today)]:
        (directory / name).symlink_to((of / name).resolve(strict=True))
    return directory


def measure(run, binaries=None):
    """Measures one scenario once."""
    options = ["--output", "json", "--duration", f"{round(DURATION * 1000)}ms"]
    if run in DIRECT:
        options = ["--seconds", str(DURATION)]
    command = [Path(__file__).with_name("bench.sh"), *run.split(), *options]
    environment = os.environ | ({"BANANAS_BIN_DIR": str(binaries)} if binaries else {})
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{run}: exit {done.returncode}\n{done.stderr}")
    report = json.loads(done.stdout)
    return {"report": report, "figures": flat(report if run in DIRECT else report["scenarios"][0])}


def rate(measured):
    return measured["figures"]["jobs_per_second"]


def flat(value, path=""):
    """All numbers of a report by their path. The entries of a list are keyed by their names."""
    if isinstance(value, list):
        value = {entry["name"]: entry for entry in value}
    if isinstance(value, dict):
        inner = (flat(each, f"{path}.{name}" if path else name) for name, each in value.items())
        return {name: number for part in inner for name, number in part.items()}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {path: value} if is_number else {}


def gathered(rounds):
    """Median and range of each figure that all rounds have."""
    names = [name for name in rounds[0] if all(name in each for each in rounds)]
    return {name: spread([each[name] for each in rounds]) for name in names}


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def shown(figure, digits=0, scale=1):
    if figure is None:
        return "-"
    middle, low, high = (f"{figure[name] * scale:,.{digits}f}" for name in ["median", "min", "max"])
    return f"{middle} ({low} to {high})"


def median(figure, digits=2):
    return "-" if figure is None else f"{figure['median']:.{digits}f}"


def head(report):
    machine, versions = report["machine"], report["versions"]
    build = "" if report["optimised_build"] else " (NOT an optimised build)"
    return (
        f"{machine['cores']} cores, {machine['cpu']}, kernel {machine['kernel']}\n"
        f"bananas {versions['bench']}{build}, broker {versions['broker']}, redis {versions['redis']},"
        f" append-only file: {AOF}\n"
        f"payload {report['payload_bytes']} bytes; {DURATION:g} s each; median of {ROUNDS} rounds (minimum to maximum)"
    )


def throughput(figures):
    rows = [["SCENARIO", "JOBS/S", "CPU US/JOB", "CLIENT", "BROKER", "REDIS"]]
    for run in RUNS:
        get = figures[run].get
        if "jobs_per_second" not in figures[run] or run in ["idle", "delayed", "memory"]:
            continue
        cpu = [get(f"cpu_us_per_job.{name}") for name in ["bench", "client", "broker", "redis"]]
        total = sum(each["median"] for each in cpu if each)
        client = cpu[0] or cpu[1]
        rows.append([run, shown(get("jobs_per_second")), f"{total:.2f}", *map(median, [client, *cpu[2:]])])
    return table(rows)


def times_direct(ratios):
    rows = [["TIMES THE JOBS/S OF", *DIRECT]]
    rows += [[life, *(shown(ratios[life][direct], 2) for direct in DIRECT)] for life in LIVES]
    return table(rows)


def latencies(figures):
    rows = [["LATENCY FROM DUE, MS", "P50", "P99", "MAX"]]
    for run in ["idle", "delayed"]:
        get = figures[run].get
        quantiles = [get(f"due_to_worker_us.{at}") for at in ["p50", "p99", "max"]]
        rows.append([f"{run}, to worker", *(shown(quantile, 2, 1e-3) for quantile in quantiles)])
    return table(rows)


def costs(figures):
    idle, memory, fairness = figures["subscribers"].get, figures["memory"].get, figures["fairness --workers 8"].get
    streams = f"{idle('streams')['median']:.0f}"
    return table(
        [
            [f"{streams} idle streams: CPU of the broker, % of a core", shown(idle("cpu_cores.broker"), 2, 100)],
            [f"{streams} idle streams: memory of the broker, bytes per stream", shown(idle("broker_bytes_per_stream"))],
            [
                "8 equal streams, jobs one by one: spread of the shares, % of an equal share",
                shown(fairness("shares.spread_percent"), 1),
            ],
            ["a waiting job: memory of Redis, bytes with the payload", shown(memory("redis_bytes_per_job"))],
        ]
    )


def compared(before, after):
    """Compares with the broker before. The ratios are per round, because the speed of the machine changes."""
    rows = [["BEFORE AND AFTER", "WHAT", "BEFORE", "AFTER", "RATIO"]]
    for run in before[0]:
        for name, what, digits in [
            ("jobs_per_second", "jobs/s", 0),
            ("cpu_us_per_job.broker", "us of the broker per job", 2),
            ("cpu_us_per_job.redis", "us of Redis per job", 2),
            ("due_to_worker_us.p50", "us to worker, p50", 0),
            ("due_to_worker_us.p99", "us to worker, p99", 0),
            ("cpu_cores.broker", "cores of the broker", 4),
            ("shares.spread_percent", "spread of shares, %", 1),
            ("redis_bytes_per_job", "bytes of Redis per job", 0),
        ]:
            pairs = [
                (old[run]["figures"].get(name), new[run]["figures"].get(name)) for old, new in zip(before, after)
            ]
            if not all(old is not None and new is not None for old, new in pairs):
                continue
            if name == "jobs_per_second" and run in ["idle", "delayed", "memory", "subscribers"]:
                continue
            olds, news = zip(*pairs)
            ratios = [new / old for old, new in pairs if old]
            ratio = shown(spread(ratios), 2) if ratios else "-"
            old, new = (f"{statistics.median(values):,.{digits}f}" for values in [olds, news])
            rows.append([run, what, old, new, ratio])
    return table(rows)


def table(rows):
    """Renders a table. All columns but the first are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
