"""Attaches, makes and uses volumes and prints how long it took; volumes.sh starts target, plugin and dockerd."""

import http.client
import json
import mmap
import os
import socket
import statistics
import subprocess
import sys
import time

WORK, BIN, *PARTS = sys.argv[1:]
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "10"))
SECONDS = os.environ.get("BENCH_SECONDS", "3")
FORM = os.environ.get("BENCH_BLOCK", "auto")
HOST = {"hostnqn": "nqn.2025-01.org.example:bench", "hostid": "7a3f2f0e-92a5-4a4c-8d3c-0f2c31b5a9d1"}
GIB = 1 << 30


def spread(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def timed(call, *arguments):
    """What the call returned, and how long it took in ms."""
    start = time.perf_counter()
    result = call(*arguments)
    return result, (time.perf_counter() - start) * 1e3


def exchange(path, request, end):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(json.dumps(request).encode() + end)
        text = b""
        while part := connection.recv(1 << 16):
            text += part
            try:
                return json.loads(text)
            except ValueError:
                continue
    sys.exit(f"{path} answered {text!r}")


def pool(method, **params):
    answer = exchange(f"{WORK}/rpc.sock", {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, b"")
    if "error" in answer:
        sys.exit(f"{method}: {answer['error']}")
    return answer["result"]


def daemon(request):
    answer = exchange(f"{WORK}/run/socket", {"version": 1, "request": request}, b"\n")
    if "failed" in answer:
        sys.exit(f"{request}: {answer['failed']}")
    return answer


def plugin(method, **body):
    connection = http.client.HTTPConnection("plugin", timeout=120)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect("/run/docker/plugins/nvmf.sock")
    connection.request("POST", f"/VolumeDriver.{method}", json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    if answer["Err"]:
        sys.exit(f"{method}: {answer['Err']}")
    return answer


def docker(*arguments):
    command = ["docker", "-H", f"unix://{WORK}/docker/sock", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        sys.exit(f"{' '.join(command)}: {ended.stderr}")
    return ended.stdout


# --- attaching --------------------------------------------------------------------------------------------------------------


def first_read(device):
    file = os.open(device, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    os.preadv(file, [buffer], 0)
    os.close(file)


def attach():
    """Connects, makes the device, reads its first block; then the same without a device."""
    made = pool("pool_create_volume", pool="p", name="keeps-the-daemon", size_bytes=GIB, hosts=[HOST["hostnqn"]])
    at = made["listeners"][0]
    options = ["-t", "tcp", "-a", at["traddr"], "-s", at["trsvcid"], "-q", HOST["hostnqn"], "-I", HOST["hostid"]]
    start = [f"{BIN}/nvmf-initiator", "--run-dir", f"{WORK}/run", "connect", *options, "-n", made["nqn"], "--block", "none"]
    subprocess.run(start, check=True, capture_output=True)
    address = {"transport": "tcp", "traddr": at["traddr"], "trsvcid": int(at["trsvcid"]), "host_traddr": None, "host_iface": None}
    figures, form = {}, FORM
    for index in range(3 * ROUNDS):
        name = f"a{index}"
        nqn = pool("pool_create_volume", pool="p", name=name, size_bytes=10 * GIB, hosts=[HOST["hostnqn"]])["nqn"]
        for block in (FORM, "none"):
            connect = {"target": {"address": address, "subnqn": nqn, "options": {}}, "host": HOST, "block": block}
            if block == "none":
                _, took = timed(daemon, {"connect": connect})
                figures.setdefault("controller", []).append(took)
            else:
                wanted = {"connect": connect, "namespace": "only", "min_size_bytes": 10 * GIB, "timeout_ms": 60000}
                answer, took = timed(daemon, {"attach": wanted})
                namespace = answer["connected"]["namespaces"][0]
                _, read = timed(first_read, namespace["device"])
                form = namespace["block"]
                figures.setdefault("usable", []).append(took + read)
            _, took = timed(daemon, {"disconnect": {"what": {"nqn": nqn}, "force": False}})
            if block != "none":
                figures.setdefault("detach", []).append(took)
        pool("pool_delete_volume", pool="p", name=name)
    daemon({"disconnect": {"what": {"nqn": made["nqn"]}, "force": False}})
    pool("pool_delete_volume", pool="p", name="keeps-the-daemon")
    print(f"\n| 10 GiB volume, {form}, {3 * ROUNDS} rounds | ms, median (min-max) |\n| --- | --- |")
    print(f"| attach: asked of the daemon until the first block was read from the device | {spread(figures['usable'])} |")
    print(f"| of which the controller with its queues, measured without a device | {spread(figures['controller'])} |")
    print(f"| detach | {spread(figures['detach'])} |", flush=True)


# --- making -----------------------------------------------------------------------------------------------------------------


def mkfs_ms():
    with open(f"{WORK}/bin/mkfs.us") as lines:
        return int(lines.readlines()[-1]) / 1e3


def making():
    """The plugin's calls, as dockerd makes them, with mkfs apart; then Docker's own commands."""
    figures = {}

    def note(what, took):
        figures.setdefault(what, []).append(took)

    for index in range(ROUNDS):
        name = f"p{index}"
        _, create = timed(lambda: plugin("Create", Name=name, Opts={"size": "10G"}))
        _, mount = timed(lambda: plugin("Mount", Name=name, ID="i"))
        mkfs = mkfs_ms()
        note("create", create)
        note("mount", mount)
        note("mkfs", mkfs)
        note("ours", create + mount - mkfs)
        _, unmount = timed(lambda: plugin("Unmount", Name=name, ID="i"))
        _, again = timed(lambda: plugin("Mount", Name=name, ID="i"))
        note("unmount", unmount)
        note("again", again)
        plugin("Unmount", Name=name, ID="i")
        plugin("Remove", Name=name)
    run = ["run", "--rm", "--network", "none", "-v", "/usr:/usr:ro"]
    for index in range(ROUNDS):
        name = f"d{index}"
        _, create = timed(docker, "volume", "create", "-d", "nvmf", "-o", "size=10G", name)
        _, first = timed(docker, *run, "-v", f"{name}:/data", "box", "true")
        mkfs = mkfs_ms()
        _, without = timed(docker, *run, "box", "true")
        note("docker", create + first - without)
        note("docker-ours", create + first - without - mkfs)
        docker("volume", "rm", name)
    print(f"\n| 10 GiB volume, ext4, {ROUNDS} rounds | ms, median (min-max) | required | reached |\n| --- | --- | --- | --- |")
    total = [a + b for a, b in zip(figures["create"], figures["mount"])]

    def row(what, values, limit=None):
        reached = "" if limit is None else "yes" if statistics.median(values) < limit else "**missing**"
        print(f"| {what} | {spread(values)} | {limit or ''} | {reached} |")

    row("the plugin's Create and first Mount", total, 1500)
    row("of which mkfs.ext4", figures["mkfs"])
    row("of which ours: all but mkfs", figures["ours"], 300)
    row("Create alone", figures["create"])
    row("Unmount, the last: unmounted and detached", figures["unmount"])
    row("Mount of what has a file system", figures["again"])
    row("`docker volume create` and what `docker run` takes longer with the volume than without", figures["docker"], 1500)
    row("of which all but mkfs", figures["docker-ours"])
    sys.stdout.flush()


# --- using ------------------------------------------------------------------------------------------------------------------


def fio_in_container():
    """fio on one file: through the file system as this machine sees it, as a container does, and as one without Docker's seccomp filter."""
    docker("volume", "create", "-d", "nvmf", "-o", "size=10G", "fio")
    outside = f"{WORK}/plugin/mounts/fio"
    containers = {"fio": [], "fio-unfiltered": ["--security-opt", "seccomp=unconfined"]}
    for name, options in containers.items():
        docker("run", "-d", "--name", name, *options, "--network", "none", "-v", "/usr:/usr:ro", "-v", "fio:/data", "box", "sleep", "infinity")
    with open(f"{outside}/file", "wb") as file:
        block = os.urandom(1 << 20)
        for _ in range(512):
            file.write(block)
        os.fsync(file.fileno())

    def fio(how, where):
        rw, bs, depth = how
        folder = outside if where is None else "/data"
        job = ["fio", "--name=x", f"--filename={folder}/file", "--direct=1", "--ioengine=libaio", f"--rw={rw}", f"--bs={bs}", f"--iodepth={depth}"]
        job += ["--size=512M", "--time_based", f"--runtime={SECONDS}", "--norandommap", "--output-format=json"]
        if where is None:
            said = subprocess.run(job, check=True, capture_output=True, text=True).stdout
        else:
            said = docker("exec", where, *job)
        result = json.loads(said[said.index("{") :])["jobs"][0]
        return result["read"]["iops"] + result["write"]["iops"]

    def share(rates):
        """The median, and how far the mean may be off: twice its standard error."""
        error = 2 * statistics.stdev(rates) / len(rates) ** 0.5
        return f"{statistics.median(rates):.2f}, mean {statistics.mean(rates):.3f} ± {error:.3f} ({min(rates):.2f}-{max(rates):.2f})"

    print(f"\n| fio, O_DIRECT, a written file of 512 MiB, ext4, {ROUNDS} rounds of {SECONDS} s | on this machine /s | in a container /s | share | without seccomp, share | this machine with itself | required | reached |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = (("randread", "4k", 1), ("randread", "4k", 32), ("randwrite", "4k", 32), ("read", "128k", 8), ("write", "128k", 8))
    wanted = os.environ.get("BENCH_ROWS", "").split(",")
    for how in rows:
        label = f"{how[1]} {how[0]} QD{how[2]}"
        if wanted != [""] and label not in wanted:
            continue
        # There and back in each round: what drifts meanwhile meets all alike. Each round begins with another one.
        order = [None, *containers]
        rates = {where: [] for where in order}
        itself = []
        for index in range(ROUNDS):
            turn = order[index % len(order) :] + order[: index % len(order)]
            there = {where: fio(how, where) for where in turn}
            back = {where: fio(how, where) for where in reversed(turn)}
            for where in order:
                rates[where].append((there[where] + back[where]) / 2)
            itself.append(there[None] / back[None])
        shares = {name: [inside / out for inside, out in zip(rates[name], rates[None])] for name in containers}
        median = statistics.median(shares["fio"])
        figures = [f"{statistics.median(rates[None]):.0f}", f"{statistics.median(rates['fio']):.0f}"]
        figures += [share(shares[name]) for name in containers] + [f"({min(itself):.2f}-{max(itself):.2f})"]
        print(f"| {label} | {' | '.join(figures)} | 0.95 | {'yes' if median >= 0.95 else '**missing**'} |", flush=True)
    for name in containers:
        docker("rm", "-f", name)
    docker("volume", "rm", "fio")


for part in PARTS:
    {"attach": attach, "docker": making, "fio": fio_in_container}[part]()
