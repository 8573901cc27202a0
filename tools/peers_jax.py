"""The workloads of build/bench in JAX: tools/peers.py runs this, one process for each row.

    peers_jax.py VARIANT WORK BATCH THREADS FILE

Variant: jit. Everything of a step is one jitted function; weights and momenta are donated, so that it
updates them in place. Pictures are stored NHWC, as its convolutions for processors want them. Guidance is
the gradient of a gradient. The number of threads is that of the processors which peers.py pins it to.
"""
import functools
import sys

import jax
from jax import lax
from jax import numpy as jnp
import numpy

import peers_common as common

# ---- models: functions of weights by name, with torchvision's names -------------------------------

def conv(weights, name, x, stride=1):
    w = weights[name + ".weight"]
    pad = w.shape[0] // 2
    y = lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2,
                                 dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y if name + ".bias" not in weights else y + weights[name + ".bias"]


def pool(x, size, stride, pad):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1),
                             ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def norm(weights, name, x, state):
    """Batch norm. `state` is None for running statistics, else a dict that receives new ones."""
    if state is None:
        mean, var = weights[name + ".running_mean"], weights[name + ".running_var"]
    else:
        count = x.size // x.shape[3]
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        for what, now in (("mean", mean), ("var", var * count / (count - 1))):
            key = f"{name}.running_{what}"
            state[key] = lax.stop_gradient(0.9 * weights[key] + 0.1 * now)
    scale = weights[name + ".weight"] * lax.rsqrt(var + 1e-5)
    return x * scale + (weights[name + ".bias"] - mean * scale)


def resnet_features(weights, x, state, blocks, deep, small):
    x = jax.nn.relu(norm(weights, "bn1", conv(weights, "conv1", x, 1 if small else 2), state))
    if not small:
        x = pool(x, 3, 2, 1)
    for i, count in enumerate(blocks):
        for j in range(count):
            name, stride, y = f"layer{i + 1}.{j}.", 2 if i > 0 and j == 0 else 1, x
            steps = [1, stride, 1] if deep else [stride, 1]
            for k, step in enumerate(steps, 1):
                y = norm(weights, f"{name}bn{k}", conv(weights, f"{name}conv{k}", y, step), state)
                y = jax.nn.relu(y) if k < len(steps) else y
            if name + "downsample.0.weight" in weights:
                x = conv(weights, name + "downsample.0", x, stride)
                x = norm(weights, name + "downsample.1", x, state)
            x = jax.nn.relu(x + y)
    return x


def dense(weights, name, x):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def flat(x):
    """Pictures as rows, in the order channels, rows, columns."""
    return jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)


def small_net(weights, x):
    for i in (1, 2, 3):
        x = pool(jax.nn.relu(conv(weights, f"conv{i}", x)), 2, 2, 0)
    return dense(weights, "fc", flat(x))


def features(work, weights, x, state):
    blocks, deep, _, small = common.RESNET50 if work.startswith("r50") else common.RESNET18
    return resnet_features(weights, x, state, blocks, deep, small)


def classify(weights, maps):
    return dense(weights, "fc", maps.mean((1, 2)))


def net(work, weights, x, state):
    if work.startswith("r"):
        return classify(weights, features(work, weights, x, state))
    if work.startswith("small"):
        logits = small_net(weights, x)
        return dense(weights, "m", logits) if work == "small.mapkl" else logits
    x = flat(x)
    for layer in ("fc1", "fc2"):
        x = jax.nn.relu(dense(weights, layer, x))
    return dense(weights, "fc", x)


def mlp_bounds(weights, centre, radius):
    centre, radius = flat(centre), flat(radius)
    for layer in ("fc1", "fc2", "fc"):
        centre, radius = dense(weights, layer, centre), radius @ jnp.abs(weights[layer + ".weight"]).T
        if layer != "fc":
            lo, hi = jax.nn.relu(centre - radius), jax.nn.relu(centre + radius)
            centre, radius = (hi + lo) / 2, (hi - lo) / 2
    return centre - radius, centre + radius


# ---- losses --------------------------------------------------------------------------------------

def cross_entropy(logits, label):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1).mean()


def picked(logits, label):
    return jnp.take_along_axis(logits, label[:, None], 1).sum()


def energy(maps, mask):
    positive = jax.nn.relu(maps)
    if positive.shape != mask.shape:
        positive = jax.image.resize(positive, mask.shape, "bilinear")
    inside, whole = (positive * mask).sum((1, 2, 3)), positive.sum((1, 2, 3))
    tiny = whole < 1e-7
    return (1 - jnp.where(tiny, inside, inside / jnp.where(tiny, 1, whole))).sum()


def loss_of(work, weights, x, mask, label):
    """(loss, new running statistics)."""
    kind, state = work.split(".")[1], {}
    run = functools.partial(net, work)

    def slope_of(score, at):
        """What score gives beside its value, and its gradient."""
        (_, (logits, new)), slope = jax.value_and_grad(score, has_aux=True)(at)
        state.update(new)
        return logits, slope

    def scored(call, value):
        def score(at):
            new = {}
            logits = call(weights, at, new)
            return value(logits), (logits, new)
        return score

    def own(logits):
        return picked(logits, label)

    if kind == "guided":
        logits, slope = slope_of(scored(run, own), x)
        maps = (x * slope).sum(3, keepdims=True)
        return cross_entropy(logits, label) + common.ENERGY * energy(maps, mask), state
    if kind == "gradcam":
        maps = features(work, weights, x, state)
        logits, slope = slope_of(scored(lambda w, at, _: classify(w, at), own), maps)
        cam = jax.nn.relu((slope.mean((1, 2), keepdims=True) * maps).sum(3, keepdims=True))
        return cross_entropy(logits, label) + common.ENERGY * energy(cam, mask), state
    if kind == "gradreg":
        logits, slope = slope_of(scored(run, lambda z: jax.nn.log_softmax(z).sum()), x)
        return cross_entropy(logits, label) + common.REGULAR * jnp.square(slope * mask).sum(), state
    if kind == "pgd":
        reach, worst = common.RADIUS * mask, x
        for _ in range(common.PGD_STEPS):
            slope = jax.grad(lambda at: cross_entropy(run(weights, at, state), label))(worst)
            worst = lax.stop_gradient(jnp.clip(worst + reach / 4 * jnp.sign(slope), x - reach, x + reach))
        return (cross_entropy(run(weights, x, state), label) +
                cross_entropy(run(weights, worst, state), label)), state
    if kind == "ibp":
        lo, hi = mlp_bounds(weights, x, common.RADIUS / 10 * mask)
        worst = jnp.where(jax.nn.one_hot(label, 10) > 0, lo, hi)
        return cross_entropy(run(weights, x, state), label) + cross_entropy(worst, label), state
    return cross_entropy(run(weights, x, state), label), state


def second_stage(weights, x, mask):
    goal = jax.nn.log_softmax(small_net(weights, x * mask))
    logits = small_net(weights, x)

    def kl(m):
        given = jax.nn.log_softmax(dense(m, "m", logits))
        return (jnp.exp(goal) * (goal - given)).sum() / x.shape[0]
    return jax.value_and_grad(kl)({k: weights[k] for k in ("m.weight", "m.bias")})


# ---- steps ---------------------------------------------------------------------------------------

def descend(weights, momenta, slopes):
    momenta = {k: common.MOMENTUM * momenta[k] + g for k, g in slopes.items()}
    return {k: weights[k] - common.LR * momenta[k] for k in slopes}, momenta


def train_turn(work, weights, x, mask, label):
    fixed = {k: v for k, v in weights.items() if ".running_" in k}
    free = {k: v for k, v in weights.items() if ".running_" not in k}
    first = "fc1.weight" if work.startswith("mlp") else "conv1.weight"

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def step(free, fixed, momenta, again, x, mask, label):
        (loss, new), slopes = jax.value_and_grad(
            lambda f: loss_of(work, {**f, **fixed}, x, mask, label), has_aux=True)(free)
        free, momenta = descend(free, momenta, slopes)
        if work == "small.mapkl":
            more, of_map = second_stage(free, x, mask)
            mapped, again = descend({k: free[k] for k in of_map}, again, of_map)
            free, loss = {**free, **mapped}, loss + more
        return free, {**fixed, **new}, momenta, again, loss

    hold = [free, fixed, {k: jnp.zeros_like(v) for k, v in free.items()},
            {k: jnp.zeros_like(free[k]) for k in ("m.weight", "m.bias") if k in free}]

    def turn():
        *hold[:], loss = step(*hold, x, mask, label)
        jax.block_until_ready(hold)
        return loss, lambda: jnp.linalg.norm(hold[2][first].ravel())    # after one step the gradient itself
    return turn


def infer_turn(work, weights, x):
    step = jax.jit(lambda x: net(work, weights, x, None))

    def turn():
        logits = step(x).block_until_ready()
        return (lambda: jnp.linalg.norm(logits.ravel())), (lambda: jnp.linalg.norm(logits.ravel()))
    return turn


def pictures(array):
    """Stored NHWC."""
    return jnp.asarray(numpy.moveaxis(array, 1, 3))


def score_turn(work, weights, x, label, masks):
    step = jax.jit(lambda x, mask: jax.nn.softmax(net(work, weights, x * mask, None))[:, label])

    def turn():
        scores = jnp.concatenate([step(x, part) for part in masks()]).block_until_ready()
        return (lambda: scores.mean()), (lambda: jnp.linalg.norm(scores))
    return turn


def intgrad_turn(work, weights, x, label):
    @jax.jit
    def part(share):
        points = share[:, None, None, None] * x
        return jax.grad(lambda at: net(work, weights, at, None)[:, label].sum())(points).sum(0, keepdims=True)

    def turn():
        total = sum(part(common.ig_shares(start)) for start in range(0, common.IG_STEPS, common.IG_CHUNK))
        result = ((total * x).sum(1) / common.IG_STEPS).block_until_ready()
        return (lambda: result.sum()), (lambda: jnp.linalg.norm(result.ravel()))
    return turn


def lime_masks(extra, side):
    keep = extra.reshape(-1, 1, common.CELLS, common.CELLS).repeat(side // common.CELLS, 2)
    keep = keep.repeat(side // common.CELLS, 3)
    for start in range(0, common.LIME, common.LIME_CHUNK):
        yield pictures(keep[start:start + common.LIME_CHUNK])


def insdel_masks(extra, side):
    for start in range(0, common.INSDEL, common.INSDEL_CHUNK):
        yield pictures(common.shown_pixels(extra, side, start)[:, None])


def weight_of(name, value):
    """As the functions above want it: matrices in two axes, filters HWIO."""
    if "running_" in name or name.endswith(".bias") or ("bn" in name or "downsample.1" in name):
        return jnp.asarray(value.reshape(-1))
    if name.split(".")[-2].startswith(("fc", "m")) and "conv" not in name:
        return jnp.asarray(value.reshape(value.shape[0], -1))
    return jnp.asarray(value.transpose(2, 3, 1, 0))


def make(work, weights, inputs):
    weights = {k: weight_of(k, v) for k, v in weights.items()}
    x, mask, label = pictures(inputs["x"]), pictures(inputs["mask"]), jnp.asarray(inputs["label"])
    kind, one, side = work.split(".")[1], int(inputs["label"][0]), inputs["x"].shape[2]
    if kind == "inf":
        return infer_turn(work, weights, x)
    if kind == "intgrad":
        return intgrad_turn(work, weights, x[:1], one)
    if kind in ("lime", "insdel"):
        masks = lime_masks if kind == "lime" else insdel_masks
        return score_turn(work, weights, x[:1], one, lambda: masks(inputs["extra"], side))
    return train_turn(work, weights, x, mask, label)


def main():
    _, work, _, _, path = sys.argv[1:]
    weights, inputs = common.split_inputs(common.read_safetensors(path))
    common.serve(make(work, weights, inputs), jax.__version__)


if __name__ == "__main__":
    main()
