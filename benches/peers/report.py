"""Renders the report as text."""

import textwrap

WIDTH = 120


def as_text(report):
    machine, settings = report["machine"], report["settings"]
    lines = [
        f"{machine['cores']} cores, {machine['cpu']}, kernel {machine['kernel']}; data on {machine['filesystem']};"
        f" load average before: {machine['load_average'][0]}; {report['measured_at']}",
        "versions: " + ", ".join(f"{name} {version or '-'}" for name, version in report["versions"].items()),
        f"medians of {settings['runs']} runs; payload {settings['payload_bytes']} bytes, no-op handler."
        " CPU is µs per job over all processes, server included.",
        f"W1: {settings['bulk_jobs']:,} jobs enqueued in bulk, then drained by one worker process."
        f" W2: one job per call, 50 in flight, one worker with concurrency 50, for {settings['measured_seconds']:g} s.",
        f"W3: from the enqueue call to the handler at {settings['latency_jobs_per_second']} jobs/s. W4: memory of the"
        " server per waiting job (NATS: growth of its process).",
    ]
    lines = [wrapped for line in lines for wrapped in textwrap.wrap(line, WIDTH)]
    lines += ["", *table(report["systems"]), "", "Settings:"]
    for name, text in {system["system"]: system["settings"] for system in report["systems"]}.items():
        lines += textwrap.wrap(f"{name}: {text}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    lines += [f"Skipped: {name}: {reason}" for name, reason in report["left_out"].items()]
    lines += [
        f"FAILED: {system['system']} ({system['durability']}): {system['failure']}"
        for system in report["systems"]
        if system["failure"]
    ]
    return "\n".join(lines)


def table(systems):
    headings = ["SYSTEM", "DURABILITY", "W1 ENQUEUE/S", "CPU", "W1 DRAIN/S", "CPU"]
    headings += ["W2 JOBS/S", "CPU", "W3 P50 MS", "P99 MS", "W4 B/JOB"]
    rows = [headings, *(row(system) for system in systems)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(headings))]

    def line(cells):
        # Text is aligned to the left, numbers to the right.
        aligned = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2])]
        aligned += [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:])]
        return "  ".join(aligned).rstrip()

    return [line(cells) for cells in rows]


def row(system):
    def value(name, form, scale=1):
        figure = system["figures"].get(name)
        return format(figure["median"] / scale, form) if figure else "-"

    memory = value("memory_bytes", ",.0f")
    if "disk_bytes" in system["figures"]:
        memory += f" + {value('disk_bytes', ',.0f')} disk"
    return [
        system["system"],
        system["durability"],
        *(
            value(f"{phase}_{figure}", form)
            for phase in ("enqueue", "drain", "life")
            for figure, form in (("per_second", ",.0f"), ("cpu_us", ".1f"))
        ),
        value("latency_p50_us", ".2f", 1000),
        value("latency_p99_us", ".2f", 1000),
        memory,
    ]
