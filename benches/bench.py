#!/usr/bin/env python3
"""Measures the NVMe/TCP data path as shares of what the loopback, or the file, can do: see bench.sh.

Yardstick and product take turns in every round; a table shows the median of the rounds' shares with the smallest and the
largest. The target is on core 0 and the side that asks on core 1, as both sides of the yardstick are.
"""

import glob
import json
import os
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager

import devices
from measure import (BIN, DIR, FILE_BYTES, PERCENTILES, RAMP, ROUNDS, SECONDS, SPACES, SPIN_US, TOLERANCE, WRAP, Report, ceiling,
                     figures, fio, fio_command, job, product, run, show, spread, target, verdict)

# name, pattern, block size, depth, ceiling mode, request and response bytes, required share on null and on memory
ROWS = [
    ("4 KiB randread QD1", "randread", "4k", 1, "spin", 72, 4120, 0.80, 0.75),
    ("4 KiB randread QD32", "randread", "4k", 32, "pipe", 72, 4120, 0.55, 0.45),
    ("4 KiB randread QD128", "randread", "4k", 128, "pipe", 72, 4120, 0.70, 0.55),
    ("4 KiB randwrite QD1", "randwrite", "4k", 1, "spin", 4168, 24, 0.85, 0.80),
    ("4 KiB randwrite QD32", "randwrite", "4k", 32, "pipe", 4168, 24, 0.60, 0.45),
    ("4 KiB randwrite QD128", "randwrite", "4k", 128, "pipe", 4168, 24, 0.75, 0.55),
    ("128 KiB read QD32", "read", "128k", 32, "pipe", 72, 131096, 0.95, 0.75),
    ("128 KiB write QD32", "write", "128k", 32, "pipe", 131144, 24, 0.92, 0.75),
]

# Threads of the side that asks, for many connections: more than cores only switch.
SCALING_THREADS = 4

# name, pattern, block size, depth, required share of fio when polled and event-driven (QD1 event-driven: latency, apart)
FILE_ROWS = [
    ("4 KiB randread QD1", "randread", "4k", 1, 0.75, None),
    ("4 KiB randread QD32", "randread", "4k", 32, 0.90, 0.85),
    ("4 KiB randread QD128", "randread", "4k", 128, 0.97, 0.95),
    ("4 KiB randwrite QD1", "randwrite", "4k", 1, 0.75, None),
    ("4 KiB randwrite QD32", "randwrite", "4k", 32, 0.90, 0.85),
    ("4 KiB randwrite QD128", "randwrite", "4k", 128, 0.97, 0.95),
    ("128 KiB read QD32", "read", "128k", 32, 0.90, 0.90),
    ("128 KiB write QD32", "write", "128k", 32, 0.97, 0.90),
]


def rows(report, only):
    """Shares of the ceiling."""
    names = [name for name in SPACES if not only or name in only]
    data, lines = [], []
    with ExitStack() as stack:
        # All run from beginning to end: those that have nothing to do sleep.
        at = {space: stack.enter_context(target(SPACES[space])) for space in names}
        for name, rw, bs, depth, mode, request, response, for_null, for_memory in ROWS:
            top, found = [], {space: [] for space in names}
            for _ in range(ROUNDS):
                top.append(ceiling(mode, depth, request, response)["per_second"])
                for space in names:
                    found[space].append(product(at[space].url(), rw, bs, depth)["iops"])
            for space in names:
                share = spread([ours / all_ for ours, all_ in zip(found[space], top)])
                required = for_null if space == "null" else for_memory
                data.append({"row": name, "space": space, "share": share, "required": required, "ceiling": spread(top),
                             "iops": spread(found[space])})
                lines.append([name, space, f"{mode} {request}→{response}", f"{statistics.median(top):.0f}",
                              f"{statistics.median(found[space]):.0f}", show(share), required, verdict(share, required)])
    report.table("rows", "Polled, one connection: share of the ceiling",
                 ["row", "namespace", "ceiling form", "ceiling /s", "ours /s", "share (min-max)", "required", "reached"],
                 lines, data)


@contextmanager
def written_file():
    """A file of which every block was written: reads of blocks never written would measure nothing."""
    path = os.path.join(DIR, f"nvmf-bench.{os.getpid()}.img")
    try:
        run([os.path.join(BIN, "nvmf-bench"), "--filename", path, "--rw=write", "--bs=1m", "--iodepth=4",
             f"--size={FILE_BYTES}", "--quiet"])
        yield path
    finally:
        if os.path.exists(path):
            os.unlink(path)


def file_rows(report, _only):
    """Shares of fio with io_uring on the same file, polled and event-driven."""
    data, lines, latencies = [], [], []
    with written_file() as path:
        for name, rw, bs, depth, polled, event in FILE_ROWS:
            local, spun, slept, cpu = [], [], [], []
            tops, blocks = [], []
            for _ in range(ROUNDS):
                local.append(fio(path, rw, bs, depth))
                with target(["--file", path]) as at:
                    spun.append(product(at.url(), rw, bs, depth))
                with target(["--file", path], spin=False) as at:
                    before = at.run_ns()
                    slept.append(product(at.url(), rw, bs, depth, spin=False))
                    # The ramp is part of what the target worked for.
                    ios = slept[-1]["iops"] * (SECONDS + RAMP)
                    cpu.append((at.run_ns() - before) / 1000 / ios + slept[-1]["cpu_us"])
                if depth == 1:
                    request, response = (72, 4120) if rw == "randread" else (4168, 24)
                    tops.append(ceiling("spin", 1, request, response)["mean_us"])
                    blocks.append(ceiling("block", 1, request, response)["mean_us"])
            for kind, ours, required in (("polled", spun, polled), ("event", slept, event)):
                share = spread([a["iops"] / b["iops"] for a, b in zip(ours, local)])
                line = [name, kind, f"{statistics.median(one['iops'] for one in local):.0f}",
                        f"{statistics.median(one['iops'] for one in ours):.0f}", show(share),
                        "" if required is None else required, "" if required is None else verdict(share, required)]
                lines.append(line)
                data.append({"row": name, "mode": kind, "share": share, "required": required,
                             "cpu_us": spread(cpu) if kind == "event" else None,
                             "fio_cpu_us": spread([one["cpu_us"] for one in local])})
            if depth == 1:
                for kind, ours, wire in (("polled", spun, tops), ("event", slept, blocks)):
                    ratio = spread([a["lat_us"] / (b["lat_us"] + c) for a, b, c in zip(ours, local, wire)])
                    latencies.append([name, kind, show(ratio), "1.10" if kind == "event" else "",
                                      "" if kind == "polled" else ("yes" if ratio["median"] <= 1.1 else "**missing**")])
                    data.append({"row": name, "mode": kind, "latency_ratio": ratio})
    report.table("file", "On a file (O_DIRECT): share of fio with io_uring on the same file",
                 ["row", "mode", "fio /s", "ours /s", "share (min-max)", "required", "reached"], lines, data)
    report.table("file_latency", "On a file: latency over (fio's + the ceiling's)",
                 ["row", "mode", "ratio (min-max)", "at most", "reached"], latencies, latencies)


def event(report, _only):
    """Event-driven: nobody spins. Idle CPU with a host attached."""
    data, lines = [], []
    for name, rw, request, response in (("4 KiB randread QD1", "randread", 72, 4120), ("4 KiB randwrite QD1", "randwrite", 4168, 24)):
        for space, arguments in SPACES.items():
            top, ours = [], []
            for _ in range(ROUNDS):
                top.append(ceiling("block", 1, request, response)["per_second"])
                with target(arguments, spin=False) as at:
                    ours.append(product(at.url(), rw, "4k", 1, spin=False)["iops"])
            share = spread([a / b for a, b in zip(ours, top)])
            data.append({"row": name, "space": space, "share": share})
            required = 0.9 if space == "null" else None
            lines.append([name, space, f"{statistics.median(top):.0f}", f"{statistics.median(ours):.0f}", show(share),
                          required or "", verdict(share, required) if required else ""])
    report.table("event", "Event-driven: share of the blocking ceiling",
                 ["row", "namespace", "ceiling /s", "ours /s", "share (min-max)", "required", "reached"], lines, data)


def digests(report, _only):
    """What both digests cost."""
    data, lines = [], []
    for name, rw, bs, depth, limit in (("4 KiB randread QD128", "randread", "4k", 128, 10), ("4 KiB randwrite QD128", "randwrite", "4k", 128, 10),
                                       ("128 KiB read QD32", "read", "128k", 32, 15), ("128 KiB write QD32", "write", "128k", 32, 15)):
        costs = []
        for _ in range(ROUNDS):
            with target(SPACES["memory"]) as at:
                off = product(at.url(), rw, bs, depth)["iops"]
                on = product(at.url(), rw, bs, depth, extra=["--hdr-digest=1", "--data-digest=1"])["iops"]
            costs.append((1 - on / off) * 100)
        cost = spread(costs)
        data.append({"row": name, "cost_percent": cost, "at_most": limit})
        lines.append([name, f"{show(cost, 1)} %", f"{limit} %", "yes" if cost["median"] <= limit else "**missing**"])
    report.table("digests", "Header and data digest on, memory namespace: throughput lost",
                 ["row", "lost (min-max)", "at most", "reached"], lines, data)


def large(report, _only):
    """1 MiB against 128 KiB at equal bytes in flight."""
    data, lines = [], []
    for rw in ("read", "write"):
        ratios = []
        for _ in range(ROUNDS):
            with target(SPACES["memory"]) as at:
                small = product(at.url(), rw, "128k", 32)["iops"] * (128 << 10)
                big = product(at.url(), rw, "1m", 4)["iops"] * (1 << 20)
            ratios.append(big / small)
        ratio = spread(ratios)
        data.append({"rw": rw, "ratio": ratio})
        lines.append([rw, show(ratio), 0.95, "yes" if ratio["median"] >= 0.95 else "**missing**"])
    report.table("large", "1 MiB QD4 over 128 KiB QD32, memory namespace: bytes per second",
                 ["pattern", "ratio (min-max)", "required", "reached"], lines, data)


def scaling(report, _only):
    """Throughput over connections, 256 commands in flight in all, beside what the loopback does with as many connections; the most memory
    that the target took. With one shard the side that asks has the other core, with two they share both."""
    data, lines = [], []
    for cores, asking in (("0", "1"), ("0-1", "0-1")):
        tops, found, memory = {}, {}, {}
        for count in (1, 2, 8, 64, 512):
            # A session has up to 128 queues; each thread has one session, and takes its queues in turn.
            threads = min(count, SCALING_THREADS)
            # Each core that answers has connections, and one thread that asks a core of its own.
            top_cores, client_cores = (cores, asking) if count > 1 else ("0", "1")
            top, rates, held = [], [], []
            for _ in range(ROUNDS):
                top.append(ceiling("many", 256, 72, 4120, [f"--connections={count}", f"--threads={threads}", f"--server-core={top_cores}",
                                                           f"--client-core={client_cores}"])["per_second"])
                with target(SPACES["memory"], spin=False, cores=cores) as at:
                    url = f"{at.url()}&nr_io_queues={count // threads}"
                    text = run([os.path.join(BIN, "nvmf-bench"),
                                *job(url, "randread", "4k", 256 // threads, ["--quiet", f"--numjobs={threads}", f"--cpus_allowed={client_cores}"])])
                    rates.append(sum(one["read"]["iops"] for one in json.loads(text[text.index("{"):])["jobs"]))
                    held.append(at.peak_rss_bytes() / 1024)
            tops[count], found[count], memory[count] = (statistics.median(one) for one in (top, rates, held))
            share = spread([ours / all_ for ours, all_ in zip(rates, top)])
            each = (memory[count] - memory[1]) / (count - 1) if count >= 64 else None
            data.append({"cores": cores, "connections": count, "iops": spread(rates), "ceiling": spread(top), "share": share,
                         "kib_for_each": each})
            over = found[count] / found[8] if count > 8 else None
            lines.append([cores, count, f"{tops[count]:.0f}", f"{found[count]:.0f}", show(share), "" if over is None else f"{over:.2f}",
                          "" if over is None else f"{tops[count] / tops[8]:.2f}", "" if each is None else f"{each:.0f} KiB",
                          "" if count != 512 else ("yes" if over >= 0.9 * TOLERANCE else "**missing**")])
    report.table("scaling", "4 KiB random reads over connections, 256 in flight in all, event-driven, memory namespace",
                 ["target's cores", "connections", "ceiling /s", "ours /s", "share (min-max)", "ours over 8", "ceiling over 8",
                  "target's memory for each", "0.9 of 8"], lines, data)


def depth(report, _only):
    """Throughput and latency over queue depth, for the plots."""
    data, lines = [], []
    kinds = [("ceiling", None, True), ("null, polled", "null", True), ("memory, polled", "memory", True), ("memory, event-driven", "memory", False)]
    for kind, space, spin in kinds:
        with ExitStack() as stack:
            at = stack.enter_context(target(SPACES[space], spin=spin)) if space else None
            for one in (1, 2, 4, 8, 16, 32, 64, 128):
                rates, seen = [], []
                for _ in range(ROUNDS):
                    if at:
                        seen.append(product(at.url(), "randread", "4k", one, spin=spin))
                        rates.append(seen[-1]["iops"])
                    else:
                        rates.append(ceiling("spin" if one == 1 else "pipe", one, 72, 4120)["per_second"])
                percentiles = {name: statistics.median(each["percentiles"][name] for each in seen) for name in PERCENTILES} if seen else None
                data.append({"kind": kind, "depth": one, "iops": spread(rates), "percentiles": percentiles})
                lines.append([kind, one, show(spread(rates), 0), *([f"{value:.0f}" for value in percentiles.values()] if percentiles else [""] * len(PERCENTILES))])
    report.table("depth", "4 KiB random reads over queue depth, one connection",
                 ["what", "depth", "/s (min-max)", *[f"p{float(name):g} µs" for name in PERCENTILES]], lines, data)


def cost(report, _only):
    """System calls and CPU time per I/O."""
    data, lines = [], []
    for space, arguments in SPACES.items():
        for rw in ("randread", "randwrite"):
            with target(arguments) as at:
                counts = {}
                with tempfile.NamedTemporaryFile("r", suffix=".strace") as trace:
                    watch = subprocess.Popen(["strace", "-f", "-c", "-o", trace.name, "-p", str(at.pid)], stderr=subprocess.PIPE, text=True)
                    watch.stderr.readline()  # It is attached.
                    text = run([os.path.join(BIN, "nvmf-bench"), *job(at.url(), rw, "4k", 128, ["--quiet", "--cpus_allowed=1", f"--busy-poll={SPIN_US}"], ramp=0)])
                    watch.send_signal(signal.SIGINT)
                    watch.wait()
                    for line in trace.read().splitlines():
                        words = line.split()
                        if len(words) >= 5 and words[3].isdigit() and words[-1] != "total":
                            counts[words[-1]] = int(words[3])
                done = json.loads(text[text.index("{"):])["jobs"][0]
                ios = done["read"]["total_ios"] + done["write"]["total_ios"]
                calls = sum(counts.values()) / ios
            with target(arguments, spin=False) as at:
                before = at.run_ns()
                ours = product(at.url(), rw, "4k", 128, spin=False)
                theirs = (at.run_ns() - before) / 1000 / (ours["iops"] * (SECONDS + RAMP))
            data.append({"space": space, "rw": rw, "syscalls": calls, "by_name": counts, "target_us": theirs, "host_us": ours["cpu_us"]})
            lines.append([space, f"4 KiB {rw} QD128", f"{calls:.3f}", "yes" if calls < 0.1 else "**missing**", f"{theirs:.2f}", f"{ours['cpu_us']:.2f}"])
    report.table("cost", "Per I/O: system calls of the target (strace), CPU time (event-driven)",
                 ["namespace", "row", "calls", "below 0.1", "target µs", "initiator µs"], lines, data)


@contextmanager
def background(arguments, wrap=None):
    """Runs nvmf-bench beside what is done meanwhile; it has to end well. Its figures are in what it yields, then."""
    with beside([*(WRAP if wrap is None else wrap), os.path.join(BIN, "nvmf-bench"), *arguments]) as found:
        yield found


@contextmanager
def beside(command):
    """Runs something that reports as fio does beside what is done meanwhile."""
    load, found = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), {}
    yield found
    text = load.communicate()[0]
    if load.returncode != 0:
        sys.exit(f"bench: {shlex.join(command)} failed")
    found.update(figures(text))


def fairness(report, only):
    """Time inside the target, from a command received to its response given to the kernel: a connection of depth 1 alone, and beside
    one of depth 128 on the same core. For a file the same of two fio on it, without a target."""
    data, lines = [], []
    spaces = {**SPACES}
    with written_file() as path:
        spaces["disk"] = ["--file", path]
        for space, arguments in spaces.items():
            for spin in (True, False) if not only or space in only else ():
                alone, squeezed_us, ratios, seen, rates, bare = [], [], [], [], [], []
                for _ in range(ROUNDS):
                    with target(arguments, spin=spin, log="info") as at:
                        # What wrote a memory namespace has ended too.
                        before = len(at.associations(1 if space == "memory" else 0))
                        by_itself = product(at.url(), "randread", "4k", 1, spin=False)
                        greedy = job(at.url(), "randread", "4k", 128, ["--quiet", "--cpus_allowed=1"], seconds=SECONDS + 2)
                        # Without BENCH_WRAP: at real-time priority it would keep the modest one from its core.
                        with background(greedy, wrap=[]) as load:
                            time.sleep(0.5)
                            squeezed = product(at.url(), "randread", "4k", 1, spin=False)
                        # The greedy one runs longest.
                        first, second, third = at.associations(before + 3)[before:]
                        if third["reads"] < second["reads"]:
                            sys.exit("bench: the greedy connection ended before the modest one")
                    alone.append(first["read_p99_ns"] / 1000)
                    squeezed_us.append(second["read_p99_ns"] / 1000)
                    ratios.append(squeezed_us[-1] / alone[-1])
                    seen.append((by_itself["p99_us"], squeezed["p99_us"]))
                    rates.append(load["iops"])
                    if space == "disk" and spin:
                        by_itself = fio(path, "randread", "4k", 1)
                        with beside([*WRAP, *fio_command(path, "randread", "4k", 128, SECONDS + 2)]):
                            time.sleep(0.5)
                            bare.append(fio(path, "randread", "4k", 1)["p99_us"] / by_itself["p99_us"])
                ratio, mode = spread(ratios), "polled" if spin else "event"
                data.append({"space": space, "mode": mode, "alone_us": spread(alone), "beside_us": spread(squeezed_us), "ratio": ratio,
                             "host_us": seen, "deep_iops": spread(rates)})
                lines.append([space, mode, show(spread(alone), 1), show(spread(squeezed_us), 1), show(ratio, 1),
                              "yes" if ratio["median"] < 4 else "**missing**",
                              " → ".join(f"{statistics.median(one):.0f}" for one in zip(*seen)), show(spread(rates), 0)])
                if bare:
                    data.append({"space": space, "mode": "fio", "ratio": spread(bare)})
                    lines.append(["two fio on the file", "", "", "", show(spread(bare), 1), "", "", ""])
    report.table("fairness", "Inside the target, 4 KiB random reads: p99 of a QD1 connection beside one of QD128",
                 ["namespace", "mode", "alone µs", "beside µs", "ratio (min-max)", "below 4", "p99 at the host, µs", "deep /s (min-max)"], lines, data)


def start(report, _only):
    """Start, memory, idleness."""
    lines, began, rss, cpu = [], [], [], []
    for _ in range(ROUNDS):
        with target(SPACES["null"], spin=True) as at:
            began.append(at.listening_ms)
            rss.append(at.rss_bytes() / (1 << 20))
        with target(SPACES["null"], spin=True) as at:
            with background(job(at.url(), "randread", "4k", 1, ["--quiet", "--rate_iops=1"], seconds=6)):
                time.sleep(1)
                before = at.run_ns()
                time.sleep(4)
                cpu.append((at.run_ns() - before) / 4e9 * 100)
    for name, values, unit, limit in (("start to listening", began, "ms", 100), ("RSS after start", rss, "MiB", 32),
                                      ("CPU with one host attached, one I/O a second, --busy-poll 1000", cpu, "% of a core", 0.5)):
        found = spread(values)
        lines.append([name, f"{show(found)} {unit}", f"{limit} {unit}", "yes" if found["median"] < limit else "**missing**"])
    report.table("start", "Start and rest", ["what", "found (min-max)", "below", "reached"], lines, lines)


def connections(port):
    """Connections that the target's end of this port has."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        ends = [line.split() for line in table.readlines()[1:]]
    return sum(1 for end in ends if int(end[1].split(":")[1], 16) == port and end[3] == "01")


def idle(report, _only):
    """Resident memory over idle connections whose queues have 128 entries."""
    data, lines, found = [], [], {}
    # Hosts and I/O queues of each; every host has an admin connection too.
    for hosts, queues in ((1, 1), (1, 64), (2, 128)):
        count, held = hosts * (queues + 1), []
        for _ in range(ROUNDS):
            with target(SPACES["null"], spin=False) as at:
                url, port = f"{at.url()}&queue_size=128&nr_io_queues={queues}", int(at.address.rsplit(":", 1)[1])
                # One I/O a second of each host: the connections are idle for nearly all of the time.
                with background(job(url, "randread", "4k", 1, ["--quiet", "--rate_iops=1", f"--numjobs={hosts}"], seconds=4)):
                    give_up = time.monotonic() + 3
                    while connections(port) != count:
                        if time.monotonic() > give_up:
                            sys.exit(f"bench: {connections(port)} connections instead of {count}")
                        time.sleep(0.05)
                    time.sleep(1)
                    held.append(at.rss_bytes() / (1 << 20))
        found[count] = statistics.median(held)
        each = (found[count] - found[2]) / (count - 2) if count > 2 else None
        data.append({"connections": count, "rss_mib": spread(held), "mib_for_each": each})
        lines.append([f"{count} ({hosts} × {queues} I/O queues and admin)", f"{show(spread(held))} MiB",
                      "" if each is None else f"{each * 1024:.0f} KiB", "" if each is None else ("yes" if each < 1 else "**missing**")])
    report.table("idle", "Resident memory of the target over idle connections, 128 entries in each I/O queue",
                 ["connections", "RSS (min-max)", "for each more than 2", "below 1 MiB"], lines, data)


def pool(report, _only):
    """Volumes, snapshots and clones."""
    report.script("Volumes, snapshots, clones", ["benches/pool.sh"], {"BENCH_ROUNDS": str(3 * ROUNDS)})


def volumes(report, _only):
    """Volumes of containers."""
    report.script("Volumes of containers", ["benches/volumes.sh"], {"BENCH_ROUNDS": str(ROUNDS), "BENCH_SECONDS": str(max(1, round(SECONDS)))})


def protocol(report, _only):
    """Instructions and time of the protocol's own work."""
    report.script("Instructions of each step of the protocol, for one command", ["benches/instructions.sh"], {})
    # Half a second each instead of criterion's eight: medians of some thousand batches.
    run(["cargo", "bench", "--quiet", "--locked", "-p", "nvmf-benches", "--bench", "hot", "--", "--noplot", "--warm-up-time", "0.1", "--measurement-time", "0.4"])
    found = {}
    for at in sorted(glob.glob(os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "criterion", "hot", "*", "new"))):
        with open(os.path.join(at, "estimates.json"), encoding="utf-8") as estimates, open(os.path.join(at, "benchmark.json"), encoding="utf-8") as about:
            batch = json.load(about)["throughput"]["Elements"]
            found[os.path.basename(os.path.dirname(at))] = json.load(estimates)["median"]["point_estimate"] / batch
    report.table("times", "Time of each step of the protocol, for one command (criterion)", ["step", "ns"],
                 [[step, f"{ns:.0f}"] for step, ns in found.items()], found)


TABLES = {"rows": rows, "file": file_rows, "event": event, "digests": digests, "large": large, "scaling": scaling, "depth": depth, "cost": cost,
          "fairness": fairness, "start": start, "idle": idle, "block": devices.block, "forms": devices.forms, "readers": devices.readers,
          "pool": pool, "volumes": volumes, "protocol": protocol}


def main():
    words = sys.argv[1:]
    spaces = [*SPACES, "disk"]
    unknown = [word for word in words if word not in TABLES and word not in spaces]
    if unknown:
        sys.exit(f"bench: unknown {' '.join(unknown)}: tables are {', '.join(TABLES)}; after rows or fairness {', '.join(spaces)}")
    # 512 connections are as many descriptors on each side.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    report, only = Report(), [word for word in words if word in spaces]
    wanted = [name for name in TABLES if name in words or not words]
    for number, name in enumerate(wanted, 1):
        report.part(name, number, len(wanted), lambda table=TABLES[name]: table(report, only))
        report.write()
    report.summary()
    print("written:", ", ".join(report.write()))
    if any(one["failed"] for one in report.parts):
        sys.exit(1)


main()
