"""What the peers share: a reader of safetensors, and the loop that answers tools/peers.py.

A peer is a module with a function make(work, batch, weights, inputs) that returns a function `turn`: one
step of the workload, returning (loss, norm of the first weight's gradient), each a float or a function
that computes it. Weights and inputs are those that build/bench has written.
"""
import json
import math
import sys
import time

import numpy


def read_safetensors(path):
    """Every tensor of a file, by name: eight bytes of length, a header in JSON, numbers."""
    with open(path, "rb") as file:
        count = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(count))
        data = file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        if about["dtype"] != "F32":
            raise SystemExit(f"{path}: {name} is {about['dtype']}, not F32")
        begin, end = about["data_offsets"]
        tensors[name] = numpy.frombuffer(data[begin:end], numpy.float32).reshape(about["shape"])
    return tensors


def split_inputs(tensors):
    """(weights, inputs) of a file; of the inputs' names only the part behind "input."."""
    inputs = {n[6:]: t for n, t in tensors.items() if n.startswith("input.")}
    weights = {n: t for n, t in tensors.items() if not n.startswith("input.")}
    inputs["label"] = inputs["label"].reshape(-1).astype(numpy.int64)
    inputs["extra"] = inputs["extra"].reshape(-1)[:-1]
    return weights, inputs


# The constants of bench_works.c.
ENERGY, REGULAR, RADIUS, LR, MOMENTUM = 0.1, 1e-3, 0.3, 1e-4, 0.9
PGD_STEPS, IG_STEPS, IG_CHUNK = 7, 32, 8
LIME, LIME_CHUNK, CELLS, INSDEL, INSDEL_CHUNK = 1000, 100, 8, 100, 20
RESNET50 = ([3, 4, 6, 3], True, 1000, False)       # blocks, bottlenecks, classes, small pictures
RESNET18 = ([2, 2, 2, 2], False, 10, True)


def ig_shares(start):
    """Where the points of a chunk lie between zero and the picture."""
    return ((numpy.arange(IG_CHUNK) + start + 0.5) / IG_STEPS).astype(numpy.float32)


def shown_pixels(rank, side, start):
    """Masks [chunk, side, side] of insertion (first half of the pictures) and deletion."""
    which, half = numpy.arange(start, start + INSDEL_CHUNK), INSDEL // 2
    bound = (side * side * (which % half + 0.5) / half)[:, None]
    shown = (rank[None] < bound) == (which[:, None] < half)
    return shown.reshape(-1, side, side).astype(numpy.float32)


def number(value):
    value = value() if callable(value) else value
    return float(value.detach() if hasattr(value, "detach") else value)


def serve(turn, version):
    """Answers "check" with loss and norm, anything else with the milliseconds of a turn."""
    answer = sys.stdout
    print("ready", version, file=answer, flush=True)
    turns = 0
    for line in sys.stdin:
        start = time.perf_counter()
        if line.startswith("check"):
            loss, norm = turn()
            print(f"{number(loss):.9g} {number(norm):.9g}", file=answer, flush=True)
            continue
        if turns == 0:                  # "check" took a turn; this one tells how many a block holds
            turn()
            turns = math.floor(0.2 / (time.perf_counter() - start + 1e-9)) + 1
            start = time.perf_counter()
        for _ in range(turns):
            turn()
        print(f"{1e3 * (time.perf_counter() - start) / turns:.6f}", file=answer, flush=True)
