#!/usr/bin/env python3
"""Runs the same workloads on Bananas and on its peers, and prints medians. README.md explains the choices.

Started by scripts/bench-peers.sh. Needs only the standard library.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from report import as_text
from servers import Failed
from systems import SYSTEMS, Settings
from versions import versions


def arguments():
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="number of runs (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs of the bulk workloads (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3, help="seconds of life and latency (default: %(default)s)")
    parser.add_argument("--warmup", type=float, default=3, help="seconds of their warm-up (default: %(default)s)")
    parser.add_argument("--payload", type=int, default=256, help="bytes of payload, at least 20 (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=200, help="latency: jobs per second (default: %(default)s)")
    keys = ",".join(system.key for system in SYSTEMS)
    parser.add_argument("--only", default="", help=f"some of {keys}, separated by commas")
    parser.add_argument("--dir", default=None, help="data directory of the servers (default: a temporary directory)")
    parser.add_argument("-o", "--output", default="text", help="text, json, or a file for the JSON in addition to text")
    parser.add_argument("--bananas-bin", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--peers-bin", type=Path, required=True, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    unknown = set(filter(None, chosen.only.split(","))) - {system.key for system in SYSTEMS}
    if unknown or chosen.runs < 1 or chosen.jobs < 1 or chosen.seconds <= 0 or chosen.payload < 20 or chosen.rate < 1:
        parser.error(f"there is no {', '.join(unknown)}" if unknown else "a number is too small")
    return chosen


def measure(systems, settings, runs, directory):
    """The figures of each variant in each run. A variant that has failed is not run again."""
    measured = {(system.key, variant): [] for system in systems for variant in system.variants}
    failures = {}
    for run in range(runs):
        # Rotate the order, so that no variant is always first or always follows the same one.
        order = list(measured)
        order = order[run % len(order) :] + order[: run % len(order)]
        for key, variant in order:
            if (key, variant) in failures:
                continue
            system = next(system for system in systems if system.key == key)
            label = f"run {run + 1} of {runs}: {system.name}, {system.variants[variant]} ..."
            print(label, file=sys.stderr, flush=True)
            try:
                with tempfile.TemporaryDirectory(prefix="bench-peers-", dir=directory) as own:
                    measured[key, variant].append(system.measure(variant, settings, Path(own)))
            except Failed as failure:
                failures[key, variant] = str(failure)
                print(f"FAILED: {failure}", file=sys.stderr, flush=True)
    return measured, failures


def medians(figures):
    """Median, minimum and maximum of each figure over all runs."""
    names = {name: None for run in figures for name in run}
    spread = {}
    for name in names:
        values = sorted(run[name] for run in figures if run.get(name) is not None)
        if values:
            spread[name] = {"median": statistics.median(values), "min": values[0], "max": values[-1]}
    return spread


def machine(directory):
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model[0] if model else "unknown CPU",
        "kernel": platform.release(),
        "filesystem": filesystem(Path(directory or tempfile.gettempdir()).resolve()),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def filesystem(path):
    """The type of the file system of a path. Data on a file system in memory are not durable."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if path.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def main():
    # Exit on SIGTERM as usual, so that the servers are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = arguments()
    only = set(filter(None, chosen.only.split(",")))
    settings = Settings(
        jobs=chosen.jobs,
        seconds=chosen.seconds,
        warmup=chosen.warmup,
        payload=chosen.payload,
        rate=chosen.rate,
        bananas_bin=chosen.bananas_bin,
        peers_bin=chosen.peers_bin,
    )
    wanted = [system for system in SYSTEMS if not only or system.key in only]
    left_out = {system.name: reason for system in wanted if (reason := system.missing(settings))}
    systems = [system for system in wanted if system.name not in left_out]
    if not systems:
        sys.exit(f"bench-peers: nothing can be measured: {left_out}")
    report = {
        "machine": machine(chosen.dir),
        "versions": versions(settings),
        "settings": {
            "runs": chosen.runs,
            "bulk_jobs": chosen.jobs,
            "measured_seconds": chosen.seconds,
            "warmup_seconds": chosen.warmup,
            "payload_bytes": chosen.payload,
            "latency_jobs_per_second": chosen.rate,
        },
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "left_out": left_out,
    }
    measured, failures = measure(systems, settings, chosen.runs, chosen.dir)
    report["systems"] = [
        {
            "system": system.name,
            "variant": variant,
            "durability": system.variants[variant],
            "settings": system.settings,
            "runs": len(measured[system.key, variant]),
            "failure": failures.get((system.key, variant)),
            "figures": medians(measured[system.key, variant]),
        }
        for system in systems
        for variant in system.variants
    ]
    if chosen.output == "json":
        print(json.dumps(report, indent=2))
    else:
        print(as_text(report))
        if chosen.output != "text":
            Path(chosen.output).write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
