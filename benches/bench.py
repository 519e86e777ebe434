#!/usr/bin/env python3
"""Measures the NVMe/TCP data path as shares of what the loopback, or the file, can do: see bench.sh.

Yardstick and product take turns in every round; a table shows the median of the rounds' shares with the smallest and the
largest. The target is on core 0 and the side that asks on core 1, as both sides of the yardstick are.
"""

import json
import os
import re
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager

import plots

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SECONDS = float(os.environ.get("BENCH_SECONDS", "1"))
RAMP = 0.3
DIR = os.environ.get("BENCH_DIR", "/var/tmp")
FILE_BYTES = int(os.environ.get("BENCH_FILE_BYTES", str(2 << 30)))
BIN = os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "release")
OUT = os.environ.get("BENCH_OUT", os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "bench"))
WRAP = shlex.split(os.environ.get("BENCH_WRAP", ""))
NQN = "nqn.2014-08.org.nvmexpress:bench"
SPIN_US = 1000
TOLERANCE = 0.95  # A row counts as reached within 5 % of what is required.

PERCENTILES = ["50.000000", "90.000000", "99.000000", "99.900000", "99.990000"]

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


def run(arguments):
    """Runs a program that is measured; its output."""
    done = subprocess.run(WRAP + arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench: {shlex.join(arguments)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout


class Target:
    """A running nvmf-target."""

    def __init__(self, process, address, listening_ms, log):
        self.process, self.address, self.listening_ms, self.log = process, address, listening_ms, log
        self.pid = process.pid

    def url(self):
        return f"nvme+tcp://{self.address}/{NQN}?nsid=1"

    def cpu_seconds(self):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run_ns(self):
        """CPU time of all its threads, with the scheduler's precision."""
        total = 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            with open(f"/proc/{self.pid}/task/{task}/schedstat", encoding="ascii") as stat:
                total += int(stat.read().split()[0])
        return total

    def associations(self, count):
        """What the log says of the associations that have ended, in the order of their ends; waits until there are `count`."""
        deadline = time.monotonic() + 10
        while True:
            with open(self.log, encoding="utf-8") as lines:
                ended = [line for line in lines if "commands of the association" in line]
            if len(ended) >= count:
                return [{key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)} for line in ended]
            if time.monotonic() > deadline:
                sys.exit(f"bench: nvmf-target tells of {len(ended)} associations that ended, not of {count}")
            time.sleep(0.01)

    def rss_bytes(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            return int(re.search(r"VmRSS:\s+(\d+) kB", status.read()).group(1)) << 10


@contextmanager
def target(namespace, spin=True, cores="0", log=None):
    """Runs nvmf-target with one namespace of 4096-byte blocks (a file keeps what direct I/O asks for). With `log`, a level, what it
    says goes to a file; otherwise warnings go to whoever looks at the figures."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        ready, log_file = os.path.join(folder, "ready"), os.path.join(folder, "log")
        command = [os.path.join(BIN, "nvmf-target"), *namespace, "--nqn", NQN, "--rpc", "none", "--state-dir", "none", "--listen", "tcp://127.0.0.1:0",
                   "--cores", cores, "--ready-file", ready, "--log", log or "warn", "--block-size", "4096"]
        if spin:
            command += ["--busy-poll", str(SPIN_US)]
        begin = time.monotonic()
        said = files.enter_context(open(log_file, "w", encoding="utf-8")) if log else None
        process = subprocess.Popen(WRAP + command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            while not (os.path.exists(ready) and os.path.getsize(ready)):
                if process.poll() is not None or time.monotonic() - begin > 30:
                    sys.exit("bench: nvmf-target does not start")
                time.sleep(0.001)
            took = (time.monotonic() - begin) * 1000
            with open(ready, encoding="ascii") as lines:
                address = lines.readline().strip().removeprefix("tcp://")
            at = Target(process, address, took, log_file)
            if namespace[0] == "--memory":
                run([os.path.join(BIN, "nvmf-bench"), "--filename", at.url(), "--rw=write", "--bs=1m", "--iodepth=8", "--quiet"])
            yield at
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(30)


def ceiling(mode, depth, request, response):
    """Figures of the yardstick."""
    return json.loads(run([os.path.join(BIN, "ceiling"), mode, "--depth", str(depth), "--request", str(request),
                           "--response", str(response), "--seconds", str(SECONDS), "--json"]))


def figures(text):
    """What a fio JSON report says: I/Os per second, latency, CPU."""
    job = json.loads(text[text.index("{"):])["jobs"][0]
    side = max((job["read"], job["write"]), key=lambda one: one["iops"])
    return {
        "iops": side["iops"],
        "lat_us": side["clat_ns"]["mean"] / 1000 if side["clat_ns"]["mean"] else side["lat_ns"]["mean"] / 1000,
        "p50_us": side["clat_ns"].get("percentile", {}).get("50.000000", 0) / 1000,
        "p99_us": side["clat_ns"].get("percentile", {}).get("99.000000", 0) / 1000,
        "percentiles": {name: side["clat_ns"].get("percentile", {}).get(name, 0) / 1000 for name in PERCENTILES},
        "cpu_us": (job["usr_cpu"] + job["sys_cpu"]) * 1e4 / side["iops"] if side["iops"] else 0,
    }


def job(where, rw, bs, depth, extra=(), seconds=SECONDS, ramp=RAMP):
    return ["--filename", where, f"--rw={rw}", f"--bs={bs}", f"--iodepth={depth}", f"--runtime={seconds * 1000:.0f}ms",
            f"--ramp_time={ramp * 1000:.0f}ms", "--time_based", "--output-format=json", *extra]


def product(where, rw, bs, depth, spin=True, extra=()):
    """Figures of nvmf-bench against a namespace."""
    extra = ["--quiet", "--cpus_allowed=1", *([f"--busy-poll={SPIN_US}"] if spin else []), *extra]
    return figures(run([os.path.join(BIN, "nvmf-bench"), *job(where, rw, bs, depth, extra)]))


def fio(path, rw, bs, depth):
    """Figures of fio with io_uring on the file, on the target's core: a disk whose interrupts go to one core is faster from there."""
    # fio takes whole seconds only.
    arguments = job(path, rw, bs, depth, ["--name=local", "--ioengine=io_uring", "--direct=1", "--cpus_allowed=0"])
    arguments = [f"--runtime={max(1, round(SECONDS))}" if one.startswith("--runtime") else one for one in arguments]
    arguments = ["--ramp_time=0" if one.startswith("--ramp_time") else one for one in arguments]
    arguments[0:2] = [f"--filename={path}"]
    return figures(run(["fio", *arguments]))


def spread(values):
    """Median with the smallest and the largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(one, digits=2):
    return f"{one['median']:.{digits}f} ({one['min']:.{digits}f}-{one['max']:.{digits}f})"


class Report:
    """Tables, as Markdown for people and JSON for programs."""

    def __init__(self):
        self.data, self.lines = {}, []

    def table(self, key, title, head, rows, data):
        self.data[key] = data
        text = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        text += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
        self.lines += [*text, ""]
        print("\n".join(text) + "\n", flush=True)

    def write(self):
        os.makedirs(OUT, exist_ok=True)
        with open(os.path.join(OUT, "bench.md"), "w", encoding="utf-8") as out:
            out.write("\n".join(self.lines))
        with open(os.path.join(OUT, "bench.json"), "w", encoding="utf-8") as out:
            json.dump(self.data, out, indent=1)
        drawn = plots.draw(self.data, OUT)
        print("written:", ", ".join([f"{OUT}/bench.md", f"{OUT}/bench.json", *drawn]))


def verdict(share, required):
    if share["median"] >= required:
        return "yes"
    return "within 5 %" if share["median"] >= required * TOLERANCE else "**missing**"


# Memory is written once before anything is measured: pages that were never touched would be measured instead.
SPACES = {"null": ["--null", "64G"], "memory": ["--memory", "1G"]}


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
    """Throughput over connections, 256 commands in flight in all; memory of idle connections of 128 entries."""
    data, lines = [], []
    for cores in ("0", "0-1"):
        found = {}
        for count in (1, 2, 8, 64, 512):
            # A session has up to 128 queues; each thread has one session, and takes its queues in turn.
            threads = min(count, SCALING_THREADS)
            depth, rates = 256 // threads, []
            for _ in range(ROUNDS):
                with target(SPACES["memory"], spin=False, cores=cores) as at:
                    url = f"{at.url()}&nr_io_queues={count // threads}"
                    text = run([os.path.join(BIN, "nvmf-bench"), *job(url, "randread", "4k", depth, ["--quiet", f"--numjobs={threads}"])])
                    rates.append(sum(one["read"]["iops"] for one in json.loads(text[text.index("{"):])["jobs"]))
            found[count] = statistics.median(rates)
            data.append({"cores": cores, "connections": count, "iops": spread(rates)})
            over = found[count] / found[8] if count > 8 else None
            lines.append([cores, count, show(spread(rates), 0), "" if over is None else f"{over:.2f}",
                          "" if count != 512 else ("yes" if over >= 0.9 * TOLERANCE else "**missing**")])
    report.table("scaling", "4 KiB random reads over connections, 256 in flight, event-driven",
                 ["target's cores", "connections", "ours /s (min-max)", "over 8 connections", "0.9 reached"], lines, data)


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
    """Runs nvmf-bench beside what is done meanwhile; it has to end well."""
    load = subprocess.Popen([*(WRAP if wrap is None else wrap), os.path.join(BIN, "nvmf-bench"), *arguments], stdout=subprocess.DEVNULL)
    yield
    if load.wait() != 0:
        sys.exit(f"bench: nvmf-bench {shlex.join(arguments)} failed")


def fairness(report, only):
    """Time inside the target, from a command received to its response given to the kernel: a connection of depth 1 alone, and beside
    one of depth 128 on the same core."""
    data, lines = [], []
    spaces = {**SPACES}
    with written_file() as path:
        spaces["file"] = ["--file", path]
        for space, arguments in spaces.items():
            for spin in (True, False) if not only or space in only else ():
                alone, beside, ratios, seen = [], [], [], []
                for _ in range(ROUNDS):
                    with target(arguments, spin=spin, log="info") as at:
                        # What wrote a memory namespace has ended too.
                        before = len(at.associations(1 if space == "memory" else 0))
                        by_itself = product(at.url(), "randread", "4k", 1, spin=False)
                        greedy = job(at.url(), "randread", "4k", 128, ["--quiet", "--cpus_allowed=1"], seconds=SECONDS + 2)
                        # Without BENCH_WRAP: at real-time priority it would keep the modest one from its core.
                        with background(greedy, wrap=[]):
                            time.sleep(0.5)
                            squeezed = product(at.url(), "randread", "4k", 1, spin=False)
                        # The greedy one runs longest.
                        first, second, third = at.associations(before + 3)[before:]
                        if third["reads"] < second["reads"]:
                            sys.exit("bench: the greedy connection ended before the modest one")
                    alone.append(first["read_p99_ns"] / 1000)
                    beside.append(second["read_p99_ns"] / 1000)
                    ratios.append(beside[-1] / alone[-1])
                    seen.append((by_itself["p99_us"], squeezed["p99_us"]))
                ratio, mode = spread(ratios), "polled" if spin else "event"
                data.append({"space": space, "mode": mode, "alone_us": spread(alone), "beside_us": spread(beside), "ratio": ratio,
                             "host_us": seen})
                lines.append([space, mode, show(spread(alone), 1), show(spread(beside), 1), show(ratio, 1),
                              "yes" if ratio["median"] < 4 else "**missing**",
                              " → ".join(f"{statistics.median(one):.0f}" for one in zip(*seen))])
    report.table("fairness", "Inside the target, 4 KiB random reads: p99 of a QD1 connection beside one of QD128",
                 ["namespace", "mode", "alone µs", "beside µs", "ratio (min-max)", "below 4", "p99 at the host, µs"], lines, data)


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


@contextmanager
def fuse_on_nothing(queues):
    """A device on FUSE and loop that has nothing behind it: its path."""
    with tempfile.TemporaryDirectory() as folder:
        command = [os.path.join(BIN, "block-serve"), "--block=fuse", "--backing=null", f"--size={64 << 30}", "--block-size=4096",
                   f"--queues={queues}", f"--runtime-dir={folder}", f"--name=bench-{os.getpid()}"]
        server = subprocess.Popen(WRAP + command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            path = server.stdout.readline().strip()
            if not path:
                sys.exit("bench: block-serve makes no device")
            yield path
        finally:
            server.stdin.close()
            server.wait(30)


@contextmanager
def fuse_on_namespace(queues):
    """A device of nvmf-initiator on FUSE and loop, of a null namespace: its path."""
    with tempfile.TemporaryDirectory() as folder, target(SPACES["null"], spin=False, cores="0-1") as at:
        ours = [os.path.join(BIN, "nvmf-initiator"), "--run-dir", folder, "--etc-nvme", folder]
        daemon = subprocess.Popen(WRAP + [*ours, "daemon", f"--shards={queues}"], stderr=subprocess.DEVNULL)
        try:
            while not os.path.exists(os.path.join(folder, "socket")):
                if daemon.poll() is not None:
                    sys.exit("bench: the daemon does not start")
                time.sleep(0.01)
            host, port = at.address.rsplit(":", 1)
            said = json.loads(run([*ours, "connect", "-a", host, "-s", port, "-n", NQN, "--block=fuse", "-o", "json"]))
            yield said["namespaces"][0]["device"]
        finally:
            run([*ours, "disconnect", "--all", "--force"])
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)


def block(report, _only):
    """A block device on FUSE and loop: of a null namespace over the network, against the same server with nothing behind it."""
    if os.geteuid() != 0:
        sys.exit("bench: block devices take root")
    data, lines = [], []
    for queues in (1, 2):
        for rw in ("randread", "randwrite"):
            near, far = [], []
            with fuse_on_nothing(queues) as nothing, fuse_on_namespace(queues) as namespace:
                for _ in range(ROUNDS):
                    for path, found in ((namespace, far), (nothing, near)):
                        found.append(figures(run([os.path.join(BIN, "nvmf-bench"), *job(path, rw, "4k", 32, ["--quiet"])]))["iops"])
            share = spread([a / b for a, b in zip(far, near)])
            data.append({"row": rw, "queues": queues, "share": share, "near": spread(near), "far": spread(far)})
            lines.append([f"4 KiB {rw} QD32", queues, f"{statistics.median(near):.0f}", f"{statistics.median(far):.0f}", show(share), 0.6,
                          verdict(share, 0.6)])
    report.table("block", "FUSE with loop: a null namespace over TCP, as a share of the same server on nothing",
                 ["row", "queues", "on nothing /s", "namespace /s", "share (min-max)", "required", "reached"], lines, data)


TABLES = {"rows": rows, "file": file_rows, "event": event, "digests": digests, "large": large, "scaling": scaling, "depth": depth, "cost": cost,
          "fairness": fairness, "start": start,
          "idle": idle, "block": block}


def main():
    words = sys.argv[1:]
    unknown = [word for word in words if word not in TABLES and word not in SPACES]
    if unknown:
        sys.exit(f"bench: unknown {' '.join(unknown)}: tables are {', '.join(TABLES)}; after rows, {' or '.join(SPACES)}")
    # 512 connections are as many descriptors on each side.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    report, took = Report(), {}
    for name, table in TABLES.items():
        if not words or name in words:
            begin = time.monotonic()
            table(report, [word for word in words if word in SPACES])
            took[name] = round(time.monotonic() - begin, 1)
            print(f"{name}: {took[name]:.0f} s\n", flush=True)
    report.data["seconds"] = took
    report.write()


main()
