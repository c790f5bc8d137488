"""The report for people."""

import textwrap

WIDTH = 120


def as_text(report):
    machine, settings = report["machine"], report["settings"]
    lines = [
        f"{machine['cores']} cores, {machine['cpu']}, kernel {machine['kernel']}; data on {machine['filesystem']};"
        f" load average before: {machine['load_average'][0]}; {report['measured_at']}",
        "versions: " + ", ".join(f"{name} {version or '-'}" for name, version in report["versions"].items()),
        f"medians of {settings['runs']} runs; payload {settings['payload_bytes']} bytes, no-op handler. CPU is µs per job over all processes, server included.",
        f"W1: {settings['bulk_jobs']:,} jobs enqueued in bulk, then drained by one worker process. W2: one job at a time from 50 in flight, one worker"
        f" with 50 at once, for {settings['measured_seconds']:g} s.",
        f"W3: from the enqueue call to the handler at {settings['latency_jobs_per_second']} jobs/s. W4: memory of the server per waiting job (NATS: growth of"
        " its process).",
    ]
    lines = [wrapped for line in lines for wrapped in textwrap.wrap(line, WIDTH)]
    lines += ["", *table(report["systems"]), "", "How each is set:"]
    for name, text in {system["system"]: system["settings"] for system in report["systems"]}.items():
        lines += textwrap.wrap(f"{name}: {text}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    lines += [f"Left out: {name}: {reason}" for name, reason in report["left_out"].items()]
    lines += [f"FAILED: {system['system']} ({system['durability']}): {system['failure']}" for system in report["systems"] if system["failure"]]
    return "\n".join(lines)


def table(systems):
    headings = ["SYSTEM", "DURABILITY", "W1 ENQUEUE/S", "CPU", "W1 DRAIN/S", "CPU", "W2 JOBS/S", "CPU", "W3 P50 MS", "P99 MS", "W4 B/JOB"]
    rows = [headings, *(row(system) for system in systems)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(headings))]
    # Words to the left, numbers to the right.
    return [
        "  ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths))).rstrip() for cells in rows
    ]


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
        *(value(f"{phase}_{figure}", form) for phase in ("enqueue", "drain", "life") for figure, form in (("per_second", ",.0f"), ("cpu_us", ".1f"))),
        value("latency_p50_us", ".2f", 1000),
        value("latency_p99_us", ".2f", 1000),
        memory,
    ]
