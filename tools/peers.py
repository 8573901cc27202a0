#!/usr/bin/env python3
"""build/bench beside other libraries: the same workloads, weights and inputs, in one run.

    make bench-peers                    everything; hours, most of it the peers' compilers
    make bench-peers ARGS='--quick mlp'
    make bench-peers PYTHON=python3     with an interpreter that has torch and jax already
    python3 tools/peers.py --help

For every workload build/bench writes its inputs and first weights to a file which the peer reads. Both
stay alive and time blocks in turn (A B A B ..), on the same processors; the medians are compared. The loss
and the norm of the first weight's gradient in the first step must agree to 1e-3, else the row is marked as
different and not counted. Writes build/peers.csv.

Peers: PyTorch, eager and in the faster ways that it offers (see peers_torch.py), and JAX (peers_jax.py),
each in the newest version that the package index gives.
"""
import argparse
import csv
import importlib.metadata
import os
import pathlib
import select
import statistics
import subprocess
import sys
import time

TOOLS = pathlib.Path(__file__).resolve().parent
FIELDS = ["work", "batch", "threads", "xguide_ms", "peer", "peer_version", "peer_ms", "ratio"]
WORKS = [("r50.inf", (1, 8)), ("r50.train", (1, 8)), ("r50.guided", (1, 8)), ("r50.gradcam", (1, 8)),
         ("r18.inf", (64,)), ("r18.train", (64,)), ("r18.guided", (64,)),
         ("small.train", (16, 50)), ("small.mapkl", (16, 50)), ("small.gradreg", (16, 50)),
         ("mlp.train", (32, 256)), ("mlp.gradreg", (32, 256)), ("mlp.pgd", (32, 256)),
         ("mlp.ibp", (32, 256)), ("r50.intgrad", (8,)), ("r18.lime", (100,)), ("r50.insdel", (20,))]
FORWARD_ONLY = ("inf", "lime", "insdel")
AGREE = 1e-3


class Failed(Exception):
    """A child that did not answer; the text says why."""


class Child:
    """A process that answers lines: build/bench --serve, or a peer."""

    def __init__(self, command, cores, environment, log):
        self.log = open(log, "w+b")
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            env={**os.environ, **environment}, preexec_fn=lambda: os.sched_setaffinity(0, cores))
        self.rest = b""

    def read(self, seconds):
        until = time.monotonic() + seconds
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))
            got = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            if not got:
                raise Failed(self.reason() if ready else f"no answer within {seconds:.0f} s")
            self.rest += got
        line, self.rest = self.rest.split(b"\n", 1)
        return line.decode().split()

    def ask(self, word, seconds):
        try:
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self.reason()) from None
        return self.read(seconds)

    def ready(self, seconds):
        """The version that it names; other output before that is passed over."""
        while True:
            words = self.read(seconds)
            if words[:1] == ["ready"]:
                return words[1]

    def reason(self):
        """The last line of what it complained about that says something."""
        self.process.wait()
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().decode(errors="replace").splitlines()]
        telling = [line for line in lines if "rror" in line or "not support" in line]
        return (telling or lines or [f"exit code {self.process.returncode}"])[-1][:160]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


def variants(work, quick):
    """Which peers run a workload: (name, script, variant)."""
    kind, convolutions = work.split(".")[1], not work.startswith("mlp")
    peers = [("pytorch", "peers_torch.py", "eager"), ("jax", "peers_jax.py", "nhwc")]
    if convolutions:
        peers.append(("pytorch-channels-last", "peers_torch.py", "channels-last"))
    if kind in FORWARD_ONLY:
        peers.append(("pytorch-infopt", "peers_torch.py", "infopt"))
    if kind != "mapkl" and not quick:
        peers.append(("pytorch-compile", "peers_torch.py", "compile"))
    return peers


def environment(threads, build):
    """What makes the peers fast: threads, and an allocator with large pages that keeps those it has."""
    n, never = str(threads), 1 << 32
    return {"OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n, "NPROC": n, "JAX_PLATFORMS": "cpu",
            "GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={never}:"
                              f"glibc.malloc.trim_threshold={never}", "THP_MEM_ALLOC_ENABLE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(build / "peers_cache"), "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_VISIBLE_DEVICES": ""}


def difference(a, b):
    return abs(a - b) / max(abs(a), abs(b), 1e-30)


def compare(ours, theirs, quick, blocks):
    """Medians of blocks that alternate: so many, or five to 25 of them, three where they are long."""
    times = [], []
    warm = 1e-3 * (float(ours.ask("go", 900)[0]) + float(theirs.ask("go", 900)[0]))
    count, start = blocks or (1 if quick else 3 if warm > 5 else 5), time.monotonic()
    more = 25 if not quick and not blocks else 0
    while len(times[0]) < count or (len(times[0]) < more and time.monotonic() - start < 4):
        times[0].append(float(ours.ask("go", 900)[0]))
        times[1].append(float(theirs.ask("go", 900)[0]))
    return statistics.median(times[0]), statistics.median(times[1])


def key(row):
    """What a row is about: workload, batch, threads and peer."""
    return row[0], int(row[1]), int(row[2]), row[4]


class Table:
    """Rows on the screen and in the file as they come; the best peer of each workload at the end. With
    `keep`, rows that the file has already stay until they are measured anew."""

    def __init__(self, path, keep):
        self.path, self.rows = path, []
        if keep and path.exists():
            with open(path, newline="") as file:
                self.rows = [row for row in csv.reader(file) if row != FIELDS]
        self.write()
        print(f"{'work':14} {'batch':>5} {'threads':>7} {'xguide ms':>10}  {'peer':22} {'peer ms':>10} "
              f"{'ratio':>6}  difference of loss, gradient")

    def add(self, work, batch, threads, mine, peer, version, other, note="", counts=True):
        print(f"{work:14} {batch:5} {threads:7} {mine:10.3f}  {peer:22} {other:10.3f} {other / mine:6.2f}"
              f"  {note}{'' if counts else '  DIFFERENT: not counted'}", flush=True)
        if counts:
            row = [work, str(batch), str(threads), f"{mine:.4f}", peer, version, f"{other:.4f}",
                   f"{other / mine:.3f}"]
            self.rows = [old for old in self.rows if key(old) != key(row)] + [row]
            self.write()

    def write(self):
        """The whole file, in the order of the list of workloads, never half of it."""
        order = [work for work, _ in WORKS]
        self.rows.sort(key=lambda r: (order.index(r[0]) if r[0] in order else len(order), key(r)))
        fresh = self.path.with_suffix(".part")
        with open(fresh, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([FIELDS] + self.rows)
        fresh.replace(self.path)

    def fail(self, work, batch, threads, peer, why):
        print(f"{work:14} {batch:5} {threads:7} {'':10}  {peer:22} failed: {why}", flush=True)

    def best(self):
        print(f"\nthe best peer of each\n{'work':14} {'batch':>5} {'threads':>7} {'ratio':>6}  peer")
        groups = {}
        for row in self.rows:
            groups.setdefault(tuple(row[:3]), []).append(row)
        for about, rows in groups.items():
            row = min(rows, key=lambda r: float(r[7]))
            print(f"{about[0]:14} {about[1]:>5} {about[2]:>7} {float(row[7]):6.2f}  {row[4]} {row[5]}")


def measure(args, table, work, batch, threads, cores):
    build = pathlib.Path(args.build)
    inputs = build / f"peers_{work}_{batch}.safetensors"
    settings = environment(threads, build)
    ours = Child([build / "bench", "--serve", work, str(batch), str(threads), str(inputs)], cores, {},
                 build / "peers_xguide.log")
    try:
        ours.ready(60)
        expected = [float(v) for v in ours.ask("check", 900)]
        for name, script, variant in variants(work, args.quick):
            if args.peer and name not in args.peer.split(","):
                continue
            command = [sys.executable, TOOLS / script, variant, work, str(batch), str(threads), inputs]
            peer = Child(command, cores, settings, build / f"peers_{name}.log")
            try:
                version = peer.ready(900)
                got = [float(v) for v in peer.ask("check", 900)]
                loss, slope = (difference(a, b) for a, b in zip(expected, got))
                mine, other = compare(ours, peer, args.quick, args.blocks)
                table.add(work, batch, threads, mine, name, version, other, f"{loss:.0e} {slope:.0e}",
                          max(loss, slope) <= AGREE)
            except Failed as why:
                table.fail(work, batch, threads, name, why)
            finally:
                peer.close()
    except Failed as why:
        table.fail(work, batch, threads, "xguide", why)
    finally:
        ours.close()
        inputs.unlink(missing_ok=True)


def first_step(command, cores, settings, log):
    """Milliseconds from the start of a process to the result of its first training step."""
    child = Child(command, cores, settings, log)
    try:
        version = child.ready(600)
        child.ask("check", 600)
        return version, 1e3 * (time.perf_counter() - child.started)
    finally:
        child.close()


def starts(args, table, cores):
    """Work "start": a training step of the perceptron, import and compilation included; median of 5."""
    build = pathlib.Path(args.build)
    inputs = build / "peers_start.safetensors"
    settings = environment(1, build)
    ours = [build / "bench", "--serve", "mlp.train", "32", "1", inputs]
    log = build / "peers_start.log"
    for name, script, variant in (("pytorch", "peers_torch.py", "eager"), ("jax", "peers_jax.py", "nhwc")):
        theirs = [sys.executable, TOOLS / script, variant, "mlp.train", "32", "1", inputs]
        try:
            times = [(first_step(ours, cores, {}, log), first_step(theirs, cores, settings, log))
                     for _ in range(5)]
            table.add("start", 32, 1, statistics.median(t[0][1] for t in times), name, times[0][1][0],
                      statistics.median(t[1][1] for t in times), "seconds x 1000")
        except Failed as why:
            table.fail("start", 32, 1, name, why)
    inputs.unlink(missing_ok=True)


def installed_bytes(package, seen):
    """Files of a package and of all that it requires; nothing that is for graphics processors only."""
    if package in seen or package.startswith(("nvidia", "cuda", "triton")):
        return 0
    seen.add(package)
    try:
        about = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return 0
    total = 0
    for file in about.files or []:
        path = about.locate_file(file)
        total += path.stat().st_size if path.is_file() else 0
    for requirement in about.requires or []:
        if "extra ==" not in requirement:
            name = requirement.split(";")[0]
            for mark in "<>=!~[( ":
                name = name.split(mark)[0]
            total += installed_bytes(name.strip().lower(), seen)
    return total


def disk(args, table):
    """Works "header" and "program": megabytes on disk, not milliseconds, against those of a package and
    what it needs."""
    ours = (("header", TOOLS.parent / "xguide.h"), ("program", pathlib.Path(args.build) / "hello_static"))
    for work, path in ours:
        for package in ("torch", "jax"):
            try:
                version, size = importlib.metadata.version(package), installed_bytes(package, set())
                table.add("disk " + work, 0, 0, path.stat().st_size / 1e6, package, version, size / 1e6,
                          "megabytes")
            except (importlib.metadata.PackageNotFoundError, OSError) as why:
                table.fail("disk " + work, 0, 0, package, why)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filter", nargs="?", help="only workloads whose name contains this")
    parser.add_argument("--quick", action="store_true", help="one block for each; nothing that compiles")
    parser.add_argument("--blocks", type=int, help="so many blocks for each, instead of by their length")
    parser.add_argument("--keep", action="store_true", help="keep the file's other rows: a table in parts")
    parser.add_argument("--threads", type=int, help="only on so many threads; default one, then two")
    parser.add_argument("--batch", type=int, help="this batch instead of the table's")
    parser.add_argument("--peer", help="only these peers, as in: pytorch,jax")
    parser.add_argument("--build", default="build", help="where build/bench is; default build")
    args = parser.parse_args()
    allowed = sorted(os.sched_getaffinity(0))
    table = Table(pathlib.Path(args.build) / "peers.csv", args.keep)
    for work, batches in WORKS:
        if args.filter and args.filter not in work:
            continue
        for batch in [args.batch] if args.batch else batches:
            for threads in (1, 2):
                if threads <= len(allowed) and args.threads in (None, threads):
                    measure(args, table, work, batch, threads, allowed[:threads])
    if not args.filter or args.filter in "start":
        starts(args, table, allowed[:1])
    if not args.filter or args.filter in "disk":
        disk(args, table)
    table.best()
    print("\nkann, a small C library, is not measured: no package index or system package offers it")
    print(f"written to {args.build}/peers.csv")


if __name__ == "__main__":
    main()
