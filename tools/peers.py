#!/usr/bin/env python3
"""build/bench beside other libraries: the same workloads, weights and inputs, in one run.

    make bench-peers                    everything; hours, most of it the peers' compilers
    make bench-peers ARGS='--quick mlp'
    make bench-peers PYTHON=python3     with an interpreter that has torch and jax already
    make bench-peers KANN=folder        with kann, too, whose sources are there
    python3 tools/peers.py --help

For every workload build/bench writes its inputs and first weights to a file which the peer reads. Both
stay alive and time blocks of turns one after the other (A B A B ..), on the same processors; the medians are
compared. A turn ends when its results are there. The loss and the norm of the first weight's gradient in
the first step must agree to 1e-3, else the row is marked as different and not counted. Writes
build/peers.csv; Ctrl-C ends it with what was measured.

Peers: PyTorch, eager and in the faster ways that it offers (see peers_torch.py), and JAX (peers_jax.py),
each in the newest version that the package index gives; kann, which no package index has, where it can do
the work (peers_kann.c).
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
FORWARD_ONLY = ("inf", "lime", "insdel")
AGREE = 1e-3


def progress(text=""):
    """A line on the terminal; the next one takes its place."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


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


def peers_of(work, build, quick):
    """Which peers run a workload: (name, command without workload, batch, threads and file)."""
    kind, convolutions = work.split(".")[1], not work.startswith("mlp")
    torch = [("pytorch", "eager")]
    if convolutions:
        torch.append(("pytorch-channels-last", "channels-last"))
    if kind in FORWARD_ONLY:
        torch.append(("pytorch-infopt", "infopt"))
    if not quick:
        torch.append(("pytorch-compile", "compile"))
    peers = [(name, [sys.executable, TOOLS / "peers_torch.py", variant]) for name, variant in torch]
    peers.insert(1, ("jax", [sys.executable, TOOLS / "peers_jax.py", "jit"]))
    if work == "mlp.train" and (build / "peers_kann").exists():
        peers.append(("kann", [build / "peers_kann"]))
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


def block(child):
    """Milliseconds of a turn. Before, whatever threads the other one has fall asleep: OpenMP's wait awake
    for some milliseconds."""
    time.sleep(0.03)
    return float(child.ask("go", 900)[0])


def compare(ours, theirs, quick, blocks):
    """Medians of blocks that alternate: so many, or five to 25 of them, three where they are long."""
    times = [], []
    warm = 1e-3 * (block(ours) + block(theirs))
    count, start = blocks or (1 if quick else 3 if warm > 5 else 5), time.monotonic()
    more = 25 if not quick and not blocks else 0
    while len(times[0]) < count or (len(times[0]) < more and time.monotonic() - start < 4):
        times[0].append(block(ours))
        times[1].append(block(theirs))
    return statistics.median(times[0]), statistics.median(times[1])


def key(row):
    """What a row is about: workload, batch, threads and peer."""
    return row[0], int(row[1]), int(row[2]), row[4]


class Table:
    """Rows on the screen and in the file as they come; the best peer of each workload at the end. With
    `keep`, rows that the file has already stay until they are measured anew. Rows stand in the order of
    the names in `works`."""

    def __init__(self, path, works, keep):
        self.path, self.works, self.rows = path, works, []
        if keep and path.exists():
            with open(path, newline="") as file:
                self.rows = [row for row in csv.reader(file) if row != FIELDS]
        self.write()
        print(f"{'work':14} {'batch':>5} {'threads':>7} {'xguide ms':>10}  {'peer':22} {'peer ms':>10} "
              f"{'ratio':>6}  difference of loss, gradient")

    def add(self, work, batch, threads, mine, peer, version, other, note="", counts=True):
        progress()
        print(f"{work:14} {batch:5} {threads:7} {mine:10.3f}  {peer:22} {other:10.3f} {other / mine:6.2f}"
              f"  {note}{'' if counts else '  DIFFERENT: not counted'}", flush=True)
        row = [work, str(batch), str(threads), f"{mine:.4f}", peer, version, f"{other:.4f}",
               f"{other / mine:.3f}"]
        self.rows = [old for old in self.rows if key(old) != key(row)] + ([row] if counts else [])
        self.write()

    def write(self):
        """The whole file, in the order of the list of workloads, never half of it."""
        order = {work: i for i, work in enumerate(self.works)}
        self.rows.sort(key=lambda r: (order.get(r[0], len(order)), key(r)))
        fresh = self.path.with_suffix(".part")
        with open(fresh, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([FIELDS] + self.rows)
        fresh.replace(self.path)

    def fail(self, work, batch, threads, peer, why):
        progress()
        print(f"{work:14} {batch:5} {threads:7} {'':10}  {peer:22} failed: {why}", flush=True)

    def best(self):
        print(f"\nthe best peer of each\n{'work':14} {'batch':>5} {'threads':>7} {'ratio':>6}  peer")
        groups = {}
        for row in self.rows:
            groups.setdefault(tuple(row[:3]), []).append(row)
        for about, rows in groups.items():
            row = min(rows, key=lambda r: float(r[7]))
            print(f"{about[0]:14} {about[1]:>5} {about[2]:>7} {float(row[7]):6.2f}  {row[4]} {row[5]}")


def measure(args, table, work, batch, threads, cores, done):
    """All rows of a workload; `done` tells how far the run is."""
    build = pathlib.Path(args.build)
    inputs = build / f"peers_{work}_{batch}.safetensors"
    settings = environment(threads, build)
    ours = Child([build / "bench", "--serve", work, str(batch), str(threads), str(inputs)], cores, {},
                 build / "peers_xguide.log")
    try:
        ours.ready(60)
        expected = [float(v) for v in ours.ask("check", 900)]
        for name, command in peers_of(work, build, args.quick):
            if args.peer and name not in args.peer.split(","):
                continue
            progress(f"{work}, batch {batch}, {threads} thread{'s'[:threads - 1]}: {name}; {done}")
            command = [*command, work, str(batch), str(threads), inputs]
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
    task = ["mlp.train", "32", "1", inputs]
    ours, log = [build / "bench", "--serve", *task], build / "peers_start.log"
    for name, command in peers_of("mlp.train", build, True)[:2]:
        theirs = [*command, *task]
        try:
            times = [(first_step(ours, cores, {}, log), first_step(theirs, cores, settings, log))
                     for _ in range(5)]
            table.add("start", 32, 1, statistics.median(t[0][1] for t in times), name, times[0][1][0],
                      statistics.median(t[1][1] for t in times), "seconds x 1000")
        except Failed as why:
            table.fail("start", 32, 1, name, why)
    inputs.unlink(missing_ok=True)


def for_graphics(name):
    return any(word in name for word in ("nvidia", "cuda", "nvshmem", "triton"))


def installed_bytes(package, seen):
    """Files of a package and of all that it requires; nothing that is for graphics processors only."""
    if package in seen or for_graphics(package):
        return 0
    seen.add(package)
    try:
        about = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return 0
    total = 0
    for file in about.files or []:
        path = about.locate_file(file)
        total += path.stat().st_size if path.is_file() and not for_graphics(path.name) else 0
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


def workloads(build):
    """(name, arithmetic for one picture in GF, batches) of each, as build/bench lists them."""
    lines = subprocess.run([build / "bench", "--list"], check=True, capture_output=True, text=True).stdout
    return [(work, float(gf), [int(batch) for batch in batches])
            for work, gf, *batches in (line.split() for line in lines.splitlines())]


def plan(args, works, cores):
    """(workload, batch, threads, cost) of all that is to be measured. Costs are as if the arithmetic took a
    second for each unit, and starting and compiling sixty: for the time that is left."""
    return [(work, batch, threads, 60 + gf * batch / threads)
            for work, gf, batches in works if not args.filter or args.filter in work
            for batch in ([args.batch] if args.batch else batches)
            for threads in ([args.threads] if args.threads else (1, 2)) if threads <= cores]


def human(seconds):
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def options():
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
    return parser, parser.parse_args()


def main():
    parser, args = options()
    allowed, build = sorted(os.sched_getaffinity(0)), pathlib.Path(args.build)
    if not (build / "bench").exists():
        parser.error(f"{build}/bench is not there: make {build}/bench builds it")
    if args.threads and not 0 < args.threads <= len(allowed):
        parser.error(f"--threads takes 1 to {len(allowed)}, as many as there are processors")
    works = workloads(build)
    jobs = plan(args, works, len(allowed))
    others = [word for word in ("start", "disk") if not args.filter or args.filter in word]
    if not jobs and not others:
        parser.error(f"nothing to measure: {build}/bench --list names the workloads")
    table = Table(build / "peers.csv", [work for work, _, _ in works], args.keep)
    started, cost = time.monotonic(), 0
    for i, (work, batch, threads, own) in enumerate(jobs):
        gone = time.monotonic() - started
        left = f", about {human(gone / cost * (sum(job[3] for job in jobs) - cost))} left" if cost else ""
        measure(args, table, work, batch, threads, allowed[:threads],
                f"{i} of {len(jobs)} done in {human(gone)}{left}")
        cost += own
    if "start" in others:
        starts(args, table, allowed[:1])
    if "disk" in others:
        disk(args, table)
    table.best()
    if not (build / "peers_kann").exists():
        print("\nkann, a small C library, is in no package index: KANN=folder of its sources adds it")
    print(f"written to {build}/peers.csv")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        progress()
        sys.exit("peers.py: stopped; the table has what was measured, and --keep leaves it there")
