"""What every measurement needs: the programs that are measured, their figures, and the tables."""

import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack, contextmanager

import plots

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SECONDS = float(os.environ.get("BENCH_SECONDS", "0.5"))
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
        return self.memory_bytes("VmRSS")

    def peak_rss_bytes(self):
        return self.memory_bytes("VmHWM")

    def memory_bytes(self, which):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            return int(re.search(which + r":\s+(\d+) kB", status.read()).group(1)) << 10


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


def ceiling(mode, depth, request, response, extra=()):
    """Figures of the yardstick."""
    return json.loads(run([os.path.join(BIN, "ceiling"), mode, "--depth", str(depth), "--request", str(request),
                           "--response", str(response), "--seconds", str(SECONDS), "--json", *extra]))


def figures(text):
    """What a fio JSON report says: I/Os per second, latency, CPU."""
    job = json.loads(text[text.index("{"):])["jobs"][0]
    side = max((job["read"], job["write"]), key=lambda one: one["iops"])
    return {
        "iops": side["iops"],
        "all_ios": side["total_ios"],
        # The whole way: fio's clat begins when its system call has submitted, which here takes as long as the kick of the disk.
        "lat_us": side["lat_ns"]["mean"] / 1000,
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


def fio_command(path, rw, bs, depth, seconds=SECONDS):
    # fio takes whole seconds only.
    arguments = job(path, rw, bs, depth, ["--name=local", "--ioengine=io_uring", "--direct=1", "--cpus_allowed=0"])
    arguments = [f"--runtime={max(1, round(seconds))}" if one.startswith("--runtime") else one for one in arguments]
    arguments = ["--ramp_time=0" if one.startswith("--ramp_time") else one for one in arguments]
    arguments[0:2] = [f"--filename={path}"]
    return ["fio", *arguments]


def fio(path, rw, bs, depth):
    """Figures of fio with io_uring on the file, on the target's core: a disk whose interrupts go to one core is faster from there."""
    return figures(run(fio_command(path, rw, bs, depth)))


def spread(values):
    """Median with the smallest and the largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(one, digits=2):
    return f"{one['median']:.{digits}f} ({one['min']:.{digits}f}-{one['max']:.{digits}f})"


# How a row of a table says what it came to.
VERDICTS = {"reached": "yes", "within 5 %": "within 5 %", "missing": "**missing**"}


class Report:
    """Tables, as Markdown for people and JSON for programs."""

    def __init__(self):
        self.data, self.lines, self.parts = {}, [], []
        self.begin = time.monotonic()

    def part(self, name, number, of, measure):
        """Measures one part; what goes wrong in it is told and kept, and the others are measured all the same."""
        begin, tables = time.monotonic(), len(self.lines)
        print(f"[{number}/{of}] {name}, {begin - self.begin:.0f} s after the start", flush=True)
        try:
            measure()
            failed = None
        except (Exception, SystemExit) as error:  # A part ends with SystemExit where a program cannot be run.
            failed = str(error) or type(error).__name__
            print(f"{name} could not be measured: {failed}\n", flush=True)
            if not isinstance(error, SystemExit):
                traceback.print_exc()
        verdicts = [cell.strip() for line in self.lines[tables:] for cell in line.split("|")]
        self.parts.append({"part": name, "seconds": round(time.monotonic() - begin, 1), "failed": failed,
                           **{word: verdicts.count(cell) for word, cell in VERDICTS.items()}})

    def summary(self):
        """The parts, how long each took, and what their rows came to."""
        for one in self.parts:
            one["told"] = f"**not measured**: {one['failed'].splitlines()[0]}" if one["failed"] else "measured"
        self.table("parts", f"Summary: {time.monotonic() - self.begin:.0f} s", ["part", "s", *VERDICTS, ""],
                   [[one["part"], f"{one['seconds']:.0f}", *[one[word] or "" for word in VERDICTS], one["told"]] for one in self.parts], self.parts)

    def table(self, key, title, head, rows, data):
        self.data[key] = data
        text = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        text += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
        self.lines += [*text, ""]
        print("\n".join(text) + "\n", flush=True)

    def script(self, title, command, environment):
        """Runs a script that prints tables of its own."""
        ran = subprocess.run(command, env={**os.environ, "BENCH_NO_BUILD": "1", **environment}, stdout=subprocess.PIPE, text=True, check=False)
        text = f"### {title}\n\n{ran.stdout}"
        self.lines += [text]
        print(text, flush=True)
        if ran.returncode != 0:
            sys.exit(f"{shlex.join(command)} ended with {ran.returncode}")

    def write(self):
        """Writes everything that was measured so far; the names of the files."""
        os.makedirs(OUT, exist_ok=True)
        with open(os.path.join(OUT, "bench.md"), "w", encoding="utf-8") as out:
            out.write("\n".join(self.lines))
        with open(os.path.join(OUT, "bench.json"), "w", encoding="utf-8") as out:
            json.dump(self.data, out, indent=1)
        return [f"{OUT}/bench.md", f"{OUT}/bench.json", *plots.draw(self.data, OUT)]


def verdict(share, required):
    if share["median"] >= required:
        return "yes"
    return "within 5 %" if share["median"] >= required * TOLERANCE else "**missing**"


# Memory is written once before anything is measured: pages that were never touched would be measured instead.
SPACES = {"null": ["--null", "64G"], "memory": ["--memory", "1G"]}
