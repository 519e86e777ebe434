"""Block devices: what each form reaches of the initiator inside the benchmark's own process, and what FUSE costs by itself."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager

from measure import BIN, NQN, ROUNDS, SECONDS, SPACES, WRAP, figures, job, run, show, spread, target, verdict

# name, pattern, block size, depth
FORM_ROWS = [
    ("4 KiB randread QD1", "randread", "4k", 1),
    ("4 KiB randread QD32", "randread", "4k", 32),
    ("4 KiB randwrite QD32", "randwrite", "4k", 32),
    ("128 KiB read QD8", "read", "128k", 8),
    ("128 KiB write QD8", "write", "128k", 8),
]


def need_root():
    if os.geteuid() != 0:
        sys.exit("block devices take root")


@contextmanager
def served(command):
    """The device of a server that prints its path, and takes it away when its input ends."""
    server = subprocess.Popen(WRAP + command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        path = server.stdout.readline().strip()
        if not path:
            sys.exit(f"{command[0]} makes no device")
        yield path
    finally:
        server.stdin.close()
        server.wait(30)


@contextmanager
def on_nothing(queues, *options):
    """A device on FUSE and loop that has nothing behind it: its path."""
    with tempfile.TemporaryDirectory() as folder:
        command = [os.path.join(BIN, "block-serve"), "--block=fuse", "--backing=null", f"--size={64 << 30}", "--block-size=4096",
                   f"--queues={queues}", f"--runtime-dir={folder}", f"--name=bench-{os.getpid()}", *options]
        with served(command) as path:
            yield path


@contextmanager
def fuse_uring():
    """fuse_uring.c, built, with the kernel's offer turned on for as long as it is used; None where the kernel has none."""
    switch = "/sys/module/fuse/parameters/enable_uring"
    if not os.path.exists(switch):
        yield None
        return
    with open(switch, encoding="ascii") as parameter:
        before = parameter.read()
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "fuse_uring")
        run(["cc", "-O2", "-Wall", "-Wextra", "-pthread", "-o", program, "benches/fuse_uring.c"])
        try:
            with open(switch, "w", encoding="ascii") as parameter:
                parameter.write("Y")
            yield program
        finally:
            with open(switch, "w", encoding="ascii") as parameter:
                parameter.write(before)


@contextmanager
def on_namespace(at, form, queues=1):
    """A device of nvmf-initiator of the target's namespace: what `connect` says of it."""
    with tempfile.TemporaryDirectory() as folder:
        ours = [os.path.join(BIN, "nvmf-initiator"), "--run-dir", folder, "--etc-nvme", folder]
        daemon = subprocess.Popen(WRAP + [*ours, "daemon", f"--shards={queues}"], stderr=subprocess.DEVNULL)
        try:
            while not os.path.exists(os.path.join(folder, "socket")):
                if daemon.poll() is not None:
                    sys.exit("nvmf-initiator's daemon does not start")
                time.sleep(0.01)
            host, port = at.address.rsplit(":", 1)
            said = json.loads(run([*ours, "connect", "-a", host, "-s", port, "-n", NQN, f"--block={form}", "-o", "json"]))
            yield said["namespaces"][0]
        finally:
            if daemon.poll() is None:
                run([*ours, "disconnect", "--all", "--force"])
                daemon.send_signal(signal.SIGTERM)
                daemon.wait(30)


def device(path, rw, bs, depth, **times):
    """Figures of nvmf-bench on a block device."""
    return figures(run([os.path.join(BIN, "nvmf-bench"), *job(path, rw, bs, depth, ["--quiet"], **times)]))


def nbd_client(uri, rw, bs, depth):
    """Figures of fio's NBD client, which is libnbd. fio takes whole seconds only."""
    return figures(run(["fio", "--name=nbd", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", f"--bs={bs}", f"--iodepth={depth}", "--time_based",
                        f"--runtime={max(1, round(SECONDS))}", "--output-format=json"]))


def block(report, _only):
    """A block device on FUSE and loop: of a null namespace over the network, against the same server with nothing behind it."""
    need_root()
    data, lines = [], []
    for queues in (1, 2):
        for rw in ("randread", "randwrite"):
            near, far = [], []
            with target(SPACES["null"], spin=False, cores="0-1") as at, on_nothing(queues) as nothing, on_namespace(at, "fuse", queues) as namespace:
                for _ in range(ROUNDS):
                    for path, found in ((namespace["device"], far), (nothing, near)):
                        found.append(device(path, rw, "4k", 32)["iops"])
            share = spread([a / b for a, b in zip(far, near)])
            data.append({"row": rw, "queues": queues, "share": share, "near": spread(near), "far": spread(far)})
            lines.append([f"4 KiB {rw} QD32", queues, f"{spread(near)['median']:.0f}", f"{spread(far)['median']:.0f}", show(share), 0.6,
                          verdict(share, 0.6)])
    report.table("block", "FUSE with loop: a null namespace over TCP, as a share of the same server on nothing",
                 ["row", "queues", "on nothing /s", "namespace /s", "share (min-max)", "required", "reached"], lines, data)


def machine():
    """Seconds that all processors have worked, and context switches, since the machine started."""
    with open("/proc/stat", encoding="ascii") as stat:
        text = stat.read()
    user, nice, system, _idle, _iowait, irq, softirq = map(int, text.split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK"), int(re.search(r"^ctxt (\d+)", text, re.M).group(1))


# Forms that are block devices: how a table calls them, nvmf-initiator's word, and what is there where the kernel has the driver.
DEVICE_FORMS = [("FUSE and loop", "fuse", "/dev/fuse"), ("ublk", "ublk", "/dev/ublk-control"), ("nbd, the kernel's client", "nbd", "/sys/block/nbd0")]


def forms(report, _only):
    """What each form of device reaches of the initiator in the benchmark's process, on one null namespace, nobody spinning; and what an I/O
    costs the whole machine meanwhile: target, daemon, kernel and client. Of a machine that does nothing else, that is the reason."""
    need_root()
    data, lines = [], []
    with ExitStack() as stack:
        at = stack.enter_context(target(SPACES["null"], spin=False, cores=f"0-{min(os.cpu_count(), 2) - 1}"))
        ways = {"in the process": lambda *row: device(at.url(), *row, ramp=0)}
        for way, word, driver in DEVICE_FORMS:
            if os.path.exists(driver):
                path = stack.enter_context(on_namespace(at, word))["device"]
                ways[way] = lambda *row, path=path: device(path, *row, ramp=0)
        uri = stack.enter_context(on_namespace(at, "nbd-socket"))["uri"]
        ways["nbd-socket, fio's client"] = lambda *row: nbd_client(uri, *row)
        for name, *row in FORM_ROWS:
            found = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, measure in ways.items():
                    busy, switches = machine()
                    one = measure(*row)
                    busy_after, switches_after = machine()
                    # The start of the program is counted too.
                    found[way].append({**one, "busy_us": (busy_after - busy) * 1e6 / one["all_ios"], "switches": (switches_after - switches) / one["all_ios"]})
            for way, seen in found.items():
                share = spread([a["iops"] / b["iops"] for a, b in zip(seen, found["in the process"])])
                busy, switches = (spread([one[key] for one in seen]) for key in ("busy_us", "switches"))
                iops = spread([one["iops"] for one in seen])
                data.append({"row": name, "form": way, "iops": iops, "share": share, "busy_us": busy, "switches": switches})
                lines.append([name, way, f"{iops['median']:.0f}", show(share), show(busy, 1), show(switches, 1)])
    report.table("forms", "Block devices: share of the initiator in the benchmark's process, null namespace, event-driven, one queue",
                 ["row", "form", "/s", "share (min-max)", "CPU of the whole machine, µs an I/O", "context switches an I/O"], lines, data)


def readers(report, _only):
    """How many reads a FUSE queue may have waiting for requests: one, a few, or as many as are of use; and requests over io_uring instead."""
    need_root()
    data, lines = [], []
    with fuse_uring() as uring:
        kinds = {(1, f"at most {count} reads"): lambda count=count: on_nothing(1, f"--fuse-readers={count}") for count in (1, 2, 4, 8)}
        for queues in (1, 2):
            kinds[queues, "at most 16 reads, the default"] = lambda queues=queues: on_nothing(queues)
            if uring:
                kinds[queues, "io_uring (fuse_uring.c)"] = lambda queues=queues: served([uring, str(queues)])
        for name, *row in FORM_ROWS:
            found = {kind: [] for kind in kinds}
            for _ in range(ROUNDS):
                for kind, serve in kinds.items():
                    with serve() as path:
                        found[kind].append(device(path, *row)["iops"])
            for (queues, kind), seen in found.items():
                share = spread([a / b for a, b in zip(seen, found[1, "at most 16 reads, the default"])])
                data.append({"row": name, "queues": queues, "kind": kind, "iops": spread(seen), "share": share})
                lines.append([name, queues, kind, f"{spread(seen)['median']:.0f}", show(share)])
    report.table("readers", "FUSE and loop on nothing: ways to take requests, over the default with one queue",
                 ["row", "queues", "requests are taken by", "/s", "over the default (min-max)"], lines, data)
    if not uring:
        print("FUSE over io_uring is not measured: this kernel does not have it (Linux 6.14 with CONFIG_FUSE_IO_URING)\n", flush=True)
