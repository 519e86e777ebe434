"""Asks a running target for volumes, snapshots and clones and prints how long it took; pool.sh starts the target."""

import fcntl
import json
import mmap
import os
import random
import socket
import statistics
import subprocess
import sys
import time

WORK = sys.argv[1]
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "20"))
GIB = 1 << 30
FICLONE = 0x40049409


def call(method, **params):
    """The result, and how long it took in ms, connecting included."""
    start = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{WORK}/rpc.sock")
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        connection.sendall(json.dumps(request).encode())
        text = b""
        while True:
            text += connection.recv(1 << 16)
            try:
                answer = json.loads(text)
                break
            except ValueError:
                continue
    took_ms = (time.perf_counter() - start) * 1e3
    if "error" in answer:
        sys.exit(f"{method}: {answer['error']}")
    return answer["result"], took_ms


def spread(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def sync_ms():
    """What the three fsyncs of a creation take: a new file, another new file, their folder."""
    start = time.perf_counter()
    folder = os.open(f"{WORK}/mnt", os.O_RDONLY)
    for name in ("a", "b"):
        file = os.open(f"{WORK}/mnt/{name}", os.O_RDWR | os.O_CREAT)
        os.write(file, b"x" * 600) if name == "b" else os.ftruncate(file, 10 * GIB)
        os.fsync(file)
        os.close(file)
    os.fsync(folder)
    took_ms = (time.perf_counter() - start) * 1e3
    for name in ("a", "b"):
        os.unlink(f"{WORK}/mnt/{name}")
    os.close(folder)
    return took_ms


def volumes():
    create, delete, sync = [], [], []
    for index in range(ROUNDS):
        sync.append(sync_ms())
        create.append(call("pool_create_volume", pool="p", name=f"v{index}", size_bytes=10 * GIB)[1])
        delete.append(call("pool_delete_volume", pool="p", name=f"v{index}")[1])
    print(f"\n| 10 GiB volume, {ROUNDS} rounds | ms, median (min-max) |\n| --- | --- |")
    print(f"| `pool_create_volume`, served when it returns | {spread(create)} |")
    print(f"| of which three fsyncs like its own take, measured alone | {spread(sync)} |")
    print(f"| `pool_delete_volume` of an empty one | {spread(delete)} |")


def fragment(name, extents):
    """Gives a volume this many extents: single blocks, far enough apart not to be merged."""
    file = os.open(f"{WORK}/mnt/p/volumes/{name}.raw", os.O_WRONLY)
    for index in range(extents):
        os.pwrite(file, b"x" * 4096, index * 16384)
    os.fsync(file)
    os.close(file)


def bare_clone_ms(name):
    """What the kernel alone takes to share a volume's blocks with an empty file."""
    volume = os.open(f"{WORK}/mnt/p/volumes/{name}.raw", os.O_RDONLY)
    copy = os.open(f"{WORK}/mnt/bare-{name}", os.O_RDWR | os.O_CREAT)
    start = time.perf_counter()
    fcntl.ioctl(copy, FICLONE, volume)
    took_ms = (time.perf_counter() - start) * 1e3
    os.close(copy)
    os.close(volume)
    return took_ms


def copies():
    print("\n| volume of 10 GiB with | snapshot, ms | of which hosts wait, ms | clone of it, ms | clone of the volume, ms | FICLONE of its file alone, ms | share of that in the clone |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for wanted in (1, 500, 5000, 20000):
        snapshot, pause, clone, direct, bare = [], [], [], [], []
        names = [f"f{wanted}-{index}" for index in range(max(3, ROUNDS // 4))]
        # A fresh volume each time: the first sharing of an extent costs more than the next.
        for name in names:
            call("pool_create_volume", pool="p", name=name, size_bytes=10 * GIB)
            fragment(name, wanted)
        for index, name in enumerate(names):
            taken, took = call("pool_create_snapshot", pool="p", volume=name, name=name)
            snapshot.append(took)
            pause.append(taken["pause_us"] / 1e3)
            extents = taken["extents"]
            clone.append(call("pool_create_volume", pool="p", name=f"c-{name}", source={"snapshot": name})[1])
            # Which comes first changes, so that neither has the better place.
            if index % 2 == 0:
                bare.append(bare_clone_ms(name))
            direct.append(call("pool_create_volume", pool="p", name=f"d-{name}", source={"volume": name})[1])
            if index % 2 == 1:
                bare.append(bare_clone_ms(name))
        # Only now: XFS frees the blocks of deleted files in the background, under the locks that sharing needs.
        for name in names:
            for gone in (name, f"c-{name}", f"d-{name}"):
                call("pool_delete_volume", pool="p", name=gone)
            call("pool_delete_snapshot", pool="p", name=name)
            os.unlink(f"{WORK}/mnt/bare-{name}")
        share = statistics.median([alone / whole for alone, whole in zip(bare, direct)])
        figures = [spread(values) for values in (snapshot, pause, clone, direct, bare)]
        print(f"| {extents} extents | {' | '.join(figures)} | {share:.2f} |", flush=True)
        os.statvfs(f"{WORK}/mnt")
        os.sync()


def fragmentation():
    """Random writes of one block with O_DIRECT, as a target makes them, and what they leave."""
    size, block = 256 << 20, 4096
    print("\n| 256 MiB volume, blocks of 4 KiB written in random order | extent-size | extents of the volume | allocated, MiB | snapshot, ms |")
    print("| --- | --- | --- | --- | --- |")
    buffer = mmap.mmap(-1, block)
    buffer.write(b"x" * block)
    for pool in ("p", "p64K", "p1M"):
        call("pool_create_volume", pool=pool, name="r", size_bytes=size)
        path = f"{WORK}/mnt/{pool}/volumes/r.raw"
        order = list(range(size // block))
        random.Random(1).shuffle(order)
        file = os.open(path, os.O_WRONLY | os.O_DIRECT)
        done = 0
        for percent in (10, 50, 100):
            upto = len(order) * percent // 100
            for index in order[done:upto]:
                os.pwrite(file, buffer, index * block)
            done = upto
            os.fsync(file)
            extents = subprocess.run(["filefrag", path], capture_output=True, text=True, check=True).stdout.split()[-3]
            allocated = os.stat(path).st_blocks * 512 >> 20
            took = call("pool_create_snapshot", pool=pool, volume="r", name=f"r{percent}")[1]
            # Gone before the next writes, which would copy the blocks that it shares.
            call("pool_delete_snapshot", pool=pool, name=f"r{percent}")
            os.statvfs(f"{WORK}/mnt")
            print(f"| {percent} % | {pool[1:] or 'none'} | {extents} | {allocated} | {took:.1f} |", flush=True)
        os.close(file)


volumes()
copies()
fragmentation()
