#!/usr/bin/env python3
"""Makes the golden vectors of tests/test_golden.c with PyTorch in float64.

    pip install torch numpy           (a CPU build is enough)
    python3 tools/golden.py           writes tests/vectors/*.safetensors, in seconds

Everything is F64, at most four axes; scalars and labels have shape [k]. Names read like paths:

conv_net.safetensors, bcos_net.safetensors: a small classifier, once with batch statistics and once
with running statistics. MODE is "train" or "eval"; NAME is a parameter under its PyTorch name.
    x, label, mask              input [n,3,h,w], classes [n], boxes [n,1,h,w] (1 inside)
    lambda, logit_bias          weight of the explanation loss; constant added to B-cos logits
    param/NAME                  weights and running statistics before the step
    MODE/logits, MODE/class_loss    [n,k]; cross-entropy (conv) or BCE with logits, mean (B-cos)
    MODE/input_grad             d sum_i logits[i,label_i] / dx (B-cos: of the six coded channels)
    MODE/ixg_map                sum_c x_c input_grad_c
    MODE/map                    B-cos only: contributions, dynamic weights held constant
    MODE/energy                 sum_i 1 - sum(M A+)/sum(A+), A = ixg_map (conv) or map (B-cos)
    MODE/grad/NAME              d (class_loss + lambda energy) / d parameter
    MODE/grad_energy/NAME       d energy / d parameter
    MODE/running/NAME           train: running statistics after one forward, momentum 0.1
  conv_net only, Grad-CAM at the output of layer1, and RRR*:
    MODE/cam                    relu(sum_c alpha_c u_c), before any post-processing
    MODE/cam_loss               sum_i mean |M - upsample(A+/max A+)|
    MODE/grad_cam/NAME          d cam_loss / d parameter
    MODE/grad_cam_stop/NAME     the same with alpha held constant: the usual short cut
    MODE/rrr, MODE/grad_rrr/NAME    sum (1-M) (A/max|A|)^2, A = ixg_map, the maximum not detached
  bcos_net only:
    MODE/grad_detached/NAME     as MODE/grad, the convolutions' dynamic weights detached everywhere
                                (not the method: a proof that detaching changes the gradient)

third_order.safetensors: f = sum_i logits[i,label_i] of a smooth net with batch statistics.
    x, label, param/NAME, f, dx_f
    q, dx_q, grad_q/NAME        q = ||df/dx||^2 and its gradients
    r, grad_r/NAME              r = ||dq/dx||^2 and its gradient: third derivatives of f

optim.safetensors: five steps of each optimiser, RULE as listed in OPTIMISERS below.
    w, grad                     start [m]; gradients of the steps [5,m]
    RULE/w                      parameters after each step [5,m]

The script refuses to write vectors that would be fragile. All parameter gradients agree with
finite differences; no ReLU, maximum, clamp or absolute value stands close to its kink; and float32
arithmetic keeps every tensor well within the 1e-5 that the float build is tested with. (The seeds
below were searched for wide margins.)
"""

import json
import math
import os
import struct

import numpy
import torch
import torch.nn.functional as F

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "vectors")
MARGIN = 1e-4          # smallest distance to a kink, relative to the largest value there
FD_TOLERANCE = 1e-6    # gradients against finite differences
FLOAT_ROOM = 3e-6      # float32 against float64, max|a-b| / max|b|

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


# ---- files ---------------------------------------------------------------------------------------

def write_safetensors(path, tensors):
    """Eight bytes of header length, a JSON header padded to 8, the numbers without gaps."""
    header, blobs, at = {}, [], 0
    for name, tensor in tensors.items():
        a = numpy.ascontiguousarray(tensor.detach().numpy(), dtype="<f8")   # 0-d becomes [1]
        assert a.ndim <= 4 and numpy.isfinite(a).all(), name
        header[name] = {"dtype": "F64", "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        blobs.append(a.tobytes())
        at += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    print(f"wrote {os.path.relpath(path)}: {len(tensors)} tensors, {at + len(text) + 8} bytes")


# ---- kinks ---------------------------------------------------------------------------------------

class Kinks:
    """Watches every quantity whose sign or order selects a branch."""

    def __init__(self):
        self.least, self.where = math.inf, ""

    def note(self, where, distance, scale):
        margin = (distance / scale).item()
        assert math.isfinite(margin), where
        if margin < self.least:
            self.least, self.where = margin, where

    def sign(self, where, t):
        """A branch on t > 0. Exact zeros are exact in every arithmetic."""
        a = t.detach().abs().flatten()
        self.note(where, a[a > 0].min(), a.max())

    def largest(self, where, t, dim):
        """A branch on which entry along dim is the largest; all-zero rows do not matter."""
        top = t.detach().topk(2, dim).values.movedim(dim, 0)
        gap = (top[0] - top[1])[top[0] != 0]
        self.note(where, gap.min(), t.detach().abs().nan_to_num(posinf=0).max())


# ---- shared pieces -------------------------------------------------------------------------------

def is_buffer(name):
    return "running_" in name


def leaves(param, dtype=None):
    """A copy to differentiate by: weights want gradients, running statistics do not."""
    return {k: v.detach().to(dtype or v.dtype).clone().requires_grad_(not is_buffer(k))
            for k, v in param.items()}


def grads(loss, p):
    """d loss / d every weight, by name; zeros where there is no path."""
    names = [k for k in p if not is_buffer(k)]
    got = torch.autograd.grad(loss, [p[k] for k in names], allow_unused=True, retain_graph=True)
    return {k: torch.zeros_like(p[k]) if g is None else g for k, g in zip(names, got)}


def energy(maps, mask, kinks):
    kinks.sign("energy", maps)
    positive = maps.clamp(min=0).flatten(1)
    return (1 - (mask.flatten(1) * positive).sum(1) / positive.sum(1)).sum()


def pick(logits, label):
    return logits[torch.arange(len(label)), label].sum()


def box_masks(n, h, w, boxes):
    mask = torch.zeros(n, 1, h, w)
    for i, (y0, y1, x0, x1) in enumerate(boxes):
        mask[i, 0, y0:y1, x0:x1] = 1
    return mask


def batch_norm_param(p, name, channels, rng):
    p[name + ".weight"] = 1 + 0.3 * torch.randn(channels, generator=rng)
    p[name + ".bias"] = 0.3 * torch.randn(channels, generator=rng)
    p[name + ".running_mean"] = 0.4 * torch.randn(channels, generator=rng)
    p[name + ".running_var"] = 0.5 + torch.rand(channels, generator=rng)


def weight(o, c, k, rng):
    return torch.randn(o, c, k, k, generator=rng) * math.sqrt(2 / (c * k * k))


# ---- 1. convolutions, batch norm, ReLU, a residual block -----------------------------------------

def conv_net_data():
    rng = torch.Generator().manual_seed(91)
    n, h, w = 3, 13, 11
    data = {
        "x": torch.randn(n, 3, h, w, generator=rng),
        "label": torch.tensor([2, 0, 4]),
        "mask": box_masks(n, h, w, [(2, 9, 1, 6), (0, 5, 4, 10), (5, 12, 3, 9)]),
        "lambda": torch.tensor([0.7]),
    }
    p = {"conv1.weight": weight(6, 3, 3, rng)}
    batch_norm_param(p, "bn1", 6, rng)
    p["layer1.0.conv1.weight"] = weight(8, 6, 3, rng)
    batch_norm_param(p, "layer1.0.bn1", 8, rng)
    p["layer1.0.conv2.weight"] = weight(8, 8, 3, rng)
    batch_norm_param(p, "layer1.0.bn2", 8, rng)
    p["layer1.0.downsample.0.weight"] = weight(8, 6, 1, rng)
    batch_norm_param(p, "layer1.0.downsample.1", 8, rng)
    p["fc.weight"] = torch.randn(5, 8, generator=rng) * 0.5
    p["fc.bias"] = torch.randn(5, generator=rng) * 0.5
    return data, p


def conv_net(p, x, train, kinks):
    """Logits, the output of layer1, and the running statistics afterwards."""
    running = {k: v.clone() for k, v in p.items() if is_buffer(k)}

    def norm(name, t):
        return F.batch_norm(t, running[name + ".running_mean"], running[name + ".running_var"],
                            p[name + ".weight"], p[name + ".bias"], train, 0.1, 1e-5)

    def relu(where, t):
        kinks.sign(where, t)
        return F.relu(t)

    def conv(name, t, stride, pad):
        return F.conv2d(t, p[name + ".weight"], None, stride, pad)

    y = relu("relu1", norm("bn1", conv("conv1", x, 1, 1)))
    padded = F.pad(y.detach(), (1, 1, 1, 1), value=-math.inf)
    kinks.largest("maxpool", padded.unfold(2, 3, 2).unfold(3, 3, 2).flatten(4), 4)
    y = F.max_pool2d(y, 3, 2, 1)
    z = relu("relu2", norm("layer1.0.bn1", conv("layer1.0.conv1", y, 2, 1)))
    z = norm("layer1.0.bn2", conv("layer1.0.conv2", z, 1, 1))
    side = norm("layer1.0.downsample.1", conv("layer1.0.downsample.0", y, 2, 0))
    u = relu("relu3", z + side)
    return F.linear(u.mean((2, 3)), p["fc.weight"], p["fc.bias"]), u, running


def grad_cam_loss(gu, u, mask, kinks):
    """The map at its layer, and the L1 loss of what is clamped, normalised and then up-sampled."""
    weighted = (gu.mean((2, 3), keepdim=True) * u).sum(1, keepdim=True)
    kinks.sign("cam", weighted)
    cam = F.relu(weighted)
    kinks.largest("cam maximum", cam.flatten(1), 1)
    assert cam.flatten(1).amax(1).min() > 0
    scaled = cam / cam.amax((1, 2, 3), keepdim=True)
    scaled = F.interpolate(scaled, mask.shape[2:], mode="bilinear", align_corners=False)
    distance = mask - scaled
    kinks.sign("cam loss", distance)
    return cam, distance.abs().mean((1, 2, 3)).sum()


def conv_net_losses(data, p, train, kinks):
    """All that is differentiable, as a dict; gradients are taken by the caller."""
    x = data["x"].detach().clone().requires_grad_()
    logits, u, running = conv_net(p, x, train, kinks)
    score = pick(logits, data["label"])
    gx, gu = torch.autograd.grad(score, [x, u], create_graph=True)
    maps = (x.detach() * gx).sum(1, keepdim=True)
    cam, cam_loss = grad_cam_loss(gu, u, data["mask"], kinks)
    kinks.largest("map maximum", maps.abs().flatten(1), 1)
    scaled = maps / maps.abs().amax((1, 2, 3), keepdim=True)
    e = energy(maps, data["mask"], kinks)
    class_loss = F.cross_entropy(logits, data["label"])
    return {"logits": logits, "class_loss": class_loss, "input_grad": gx, "ixg_map": maps,
            "energy": e, "rrr": ((1 - data["mask"]) * scaled ** 2).sum(),
            "cam": cam, "cam_loss": cam_loss,
            "cam_stop_loss": grad_cam_loss(gu.detach(), u, data["mask"], kinks)[1],
            "total": class_loss + data["lambda"][0] * e, "running": running}


def conv_net_mode(data, param, train, kinks):
    p = leaves(param)
    out = conv_net_losses(data, p, train, kinks)
    tensors = {k: out[k] for k in ("logits", "class_loss", "input_grad", "ixg_map", "energy", "rrr",
                                   "cam", "cam_loss")}
    for kind, loss in (("grad", "total"), ("grad_energy", "energy"), ("grad_rrr", "rrr"),
                       ("grad_cam", "cam_loss"), ("grad_cam_stop", "cam_stop_loss")):
        tensors.update({f"{kind}/{k}": v for k, v in grads(out[loss], p).items()})
    if train:
        tensors.update({f"running/{k}": v for k, v in out["running"].items()})
    return tensors


# ---- 2. B-cos ------------------------------------------------------------------------------------

def bcos_net_data():
    rng = torch.Generator().manual_seed(99)
    n, h, w = 3, 11, 13
    data = {
        "x": torch.rand(n, 3, h, w, generator=rng),
        "label": torch.tensor([1, 3, 0]),
        "mask": box_masks(n, h, w, [(1, 8, 2, 9), (4, 10, 0, 7), (2, 7, 5, 12)]),
        "lambda": torch.tensor([0.7]),
        "logit_bias": torch.tensor([-1.25]),
    }
    p = {}

    def layer(name, norm, o, c, k):
        p[name + ".weight"] = weight(o, c, k, rng)
        if norm:
            p[norm + ".weight"] = 1 + 0.3 * torch.randn(o, generator=rng)
            p[norm + ".running_var"] = 0.05 + 0.1 * torch.rand(o, generator=rng)

    layer("conv1", "bn1", 7, 6, 3)
    layer("layer1.0.conv1", "layer1.0.bn1", 8, 7, 3)
    layer("layer1.0.conv2", "layer1.0.bn2", 8, 8, 3)
    layer("layer1.0.downsample.0", "layer1.0.downsample.1", 8, 7, 1)
    layer("fc", None, 4, 8, 1)
    return data, p


def conv_transpose(g, kernel, stride, pad, shape, groups=1):
    """The transpose of conv2d(., kernel), back to a plane of this shape."""
    k = kernel.shape[2]
    extra = [shape[i] - ((g.shape[i] - 1) * stride - 2 * pad + k) for i in (2, 3)]
    return F.conv_transpose2d(g, kernel, None, stride, pad, extra, groups)


class BcosNet:
    """One forward pass. Every layer returns its output and the function that carries a cotangent
    back through its linear part, the dynamic weight d standing there as an ordinary factor: so d is
    constant to the explanation, and yet whoever differentiates the explanation differentiates d."""

    def __init__(self, p, data, train, kinks, detach=False):
        self.p, self.train, self.kinks, self.detach = p, train, kinks, detach
        self.running, self.dynamic = {}, []
        self.x = torch.cat([data["x"], 1 - data["x"]], 1).requires_grad_()
        y, back = self.forward(self.x)
        self.logits = y.mean((2, 3)) + data["logit_bias"]
        area = y.shape[2] * y.shape[3]
        seed = F.one_hot(data["label"], y.shape[1]).to(y.dtype)[:, :, None, None] / area
        self.contribution = (self.x.detach() * back(seed.expand_as(y))).sum(1, keepdim=True)

    def conv(self, name, x, stride, pad):
        w = self.p[name + ".weight"]
        unit = w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        lin = F.conv2d(x, unit, None, stride, pad)
        patch = F.conv2d(x * x, torch.ones_like(w[:1]), None, stride, pad)
        self.kinks.sign(name, lin)
        d = lin.abs() / (patch + 1e-6).sqrt()       # |cos|^(B-1) with B = 2
        if self.detach:
            d = d.detach()
        self.dynamic.append(d)
        return d * lin, lambda g: conv_transpose(d * g, unit, stride, pad, x.shape)

    def norm(self, name, x):
        """Uncentred: the variance is of centred values, but the output keeps its mean."""
        running = self.p[name + ".running_var"]
        var = x.var((0, 2, 3), correction=0) if self.train else running
        self.running[name + ".running_var"] = (0.9 * running + 0.1 * var).detach()
        d = 1 / (var + 1e-5).sqrt().view(1, -1, 1, 1)
        self.dynamic.append(d)
        gain = self.p[name + ".weight"].view(1, -1, 1, 1)
        return gain * d * x, lambda g: gain * d * g

    def pool(self, x):
        """Average pooling 3x3, stride 2, padding 1 that counts in the divisor."""
        c = x.shape[1]
        kernel = torch.full((c, 1, 3, 3), 1 / 9, dtype=x.dtype)
        y = F.avg_pool2d(x, 3, 2, 1)
        return y, lambda g: conv_transpose(g, kernel, 2, 1, x.shape, groups=c)

    def forward(self, x):
        y, b1 = self.conv("conv1", x, 1, 1)
        y, b2 = self.norm("bn1", y)
        y, b3 = self.pool(y)
        z, m1 = self.conv("layer1.0.conv1", y, 2, 1)
        z, m2 = self.norm("layer1.0.bn1", z)
        z, m3 = self.conv("layer1.0.conv2", z, 1, 1)
        z, m4 = self.norm("layer1.0.bn2", z)
        y, s1 = self.conv("layer1.0.downsample.0", y, 2, 0)
        y, s2 = self.norm("layer1.0.downsample.1", y)
        y, b4 = self.conv("fc", z + y, 1, 0)

        def back(g):
            g = b4(g)
            return b1(b2(b3(m1(m2(m3(m4(g)))) + s1(s2(g)))))
        return y, back


def bcos_net_losses(data, p, train, kinks, detach=False):
    net = BcosNet(p, data, train, kinks, detach)
    label = data["label"]
    target = F.one_hot(label, net.logits.shape[1]).to(net.logits.dtype)
    class_loss = F.binary_cross_entropy_with_logits(net.logits, target)
    e = energy(net.contribution, data["mask"], kinks)
    gx, = torch.autograd.grad(pick(net.logits, label), net.x, create_graph=True)
    return {"logits": net.logits, "class_loss": class_loss, "input_grad": gx,
            "ixg_map": (net.x.detach() * gx).sum(1, keepdim=True), "map": net.contribution,
            "energy": e, "total": class_loss + data["lambda"][0] * e, "running": net.running}


def bcos_net_mode(data, param, train, kinks):
    p = leaves(param)
    out = bcos_net_losses(data, p, train, kinks)
    tensors = {k: out[k] for k in ("logits", "class_loss", "input_grad", "ixg_map", "map",
                                   "energy")}
    tensors.update({f"grad/{k}": v for k, v in grads(out["total"], p).items()})
    tensors.update({f"grad_energy/{k}": v for k, v in grads(out["energy"], p).items()})
    variant = bcos_net_losses(data, p, train, kinks, detach=True)
    tensors.update({f"grad_detached/{k}": v for k, v in grads(variant["total"], p).items()})
    if train:
        tensors.update({f"running/{k}": v for k, v in out["running"].items()})
    return tensors


def check_bcos_explanation(data, param, train):
    """The explanation made by hand equals the gradient of the net replayed on a fresh input with
    its dynamic weights frozen; it is complete; and it is not the plain gradient."""
    p = leaves(param)
    net = BcosNet(p, data, train, Kinks())
    frozen = iter(net.dynamic)

    class Replay(BcosNet):
        def __init__(self):
            pass

        def conv(self, name, x, stride, pad):
            w = p[name + ".weight"]
            unit = w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            return next(frozen) * F.conv2d(x, unit, None, stride, pad), None

        def norm(self, name, x):
            return p[name + ".weight"].view(1, -1, 1, 1) * next(frozen) * x, None

    fresh = net.x.detach().clone().requires_grad_()
    score = pick(Replay().forward(fresh)[0].mean((2, 3)), data["label"])
    w, = torch.autograd.grad(score, fresh, create_graph=True)
    again = (fresh.detach() * w).sum(1, keepdim=True)
    assert relative(again, net.contribution) < 1e-13
    ours = grads(energy(net.contribution, data["mask"], Kinks()), p)
    theirs = grads(energy(again, data["mask"], Kinks()), p)
    assert all(relative(ours[k], theirs[k]) < 1e-12 for k in ours)
    picked = net.logits[torch.arange(len(data["label"])), data["label"]] - data["logit_bias"]
    assert relative(net.contribution.sum((1, 2, 3)), picked) < 1e-13
    plain, = torch.autograd.grad(pick(net.logits, data["label"]), net.x, create_graph=True)
    assert relative((net.x * plain).sum(1, keepdim=True), net.contribution) > 1e-2


# ---- 3. third derivatives ------------------------------------------------------------------------

def third_order_data():
    rng = torch.Generator().manual_seed(5)
    data = {"x": torch.randn(2, 3, 9, 11, generator=rng), "label": torch.tensor([1, 2])}
    p = {"conv1.weight": weight(4, 3, 3, rng)}
    p["bn1.weight"] = 1 + 0.3 * torch.randn(4, generator=rng)
    p["bn1.bias"] = 0.3 * torch.randn(4, generator=rng)
    p["bn1.running_mean"], p["bn1.running_var"] = torch.zeros(4), torch.ones(4)   # not read
    p["conv2.weight"] = weight(5, 4, 3, rng)
    p["fc.weight"] = torch.randn(3, 5 * 5 * 6, generator=rng) * 0.1
    p["fc.bias"] = torch.randn(3, generator=rng) * 0.5
    return data, p


def third_order(data, p):
    """conv 3x3, batch norm from primitives (third derivatives of fused ones are not to be trusted),
    softplus, conv 3x3 stride 2, tanh, dense."""
    x = data["x"].detach().clone().requires_grad_()
    y = F.conv2d(x, p["conv1.weight"], None, 1, 1)
    centred = y - y.mean((0, 2, 3), keepdim=True)
    y = centred * ((centred * centred).mean((0, 2, 3), keepdim=True) + 1e-5) ** -0.5
    y = y * p["bn1.weight"].view(1, -1, 1, 1) + p["bn1.bias"].view(1, -1, 1, 1)
    y = torch.log1p(torch.exp(-y.abs())) + y.clamp(min=0)
    y = torch.tanh(F.conv2d(y, p["conv2.weight"], None, 2, 1))
    f = pick(y.flatten(1) @ p["fc.weight"].T + p["fc.bias"], data["label"])
    dx_f, = torch.autograd.grad(f, x, create_graph=True)
    q = (dx_f * dx_f).sum()
    dx_q, = torch.autograd.grad(q, x, create_graph=True)
    return {"f": f, "dx_f": dx_f, "q": q, "dx_q": dx_q, "r": (dx_q * dx_q).sum()}


def third_order_tensors(data, param):
    p = leaves(param)
    out = third_order(data, p)
    tensors = dict(out)
    tensors.update({f"grad_q/{k}": v for k, v in grads(out["q"], p).items()})
    tensors.update({f"grad_r/{k}": v for k, v in grads(out["r"], p).items()})
    return tensors


# ---- 4. optimisers -------------------------------------------------------------------------------

OPTIMISERS = {
    "sgd": lambda w: torch.optim.SGD(w, lr=0.1),
    "sgd_momentum": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9),
    "sgd_momentum_decay": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.05),
    "sgd_nesterov": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True),
    "sgd_nesterov_decay": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True,
                                                    weight_decay=0.05),
    "adam": lambda w: torch.optim.Adam(w, lr=0.01),
    "adam_decay": lambda w: torch.optim.Adam(w, lr=0.01, betas=(0.8, 0.95), eps=1e-6,
                                             weight_decay=0.05),
    "adamw": lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.05),
}


def optim_tensors():
    rng = torch.Generator().manual_seed(6)
    start, sequence = torch.randn(7, generator=rng), torch.randn(5, 7, generator=rng)
    tensors = {"w": start, "grad": sequence}
    for name, make in OPTIMISERS.items():
        w = start.clone().requires_grad_()
        optimiser, rows = make([w]), []
        for g in sequence:
            w.grad = g.clone()
            optimiser.step()
            rows.append(w.detach().clone())
        tensors[name + "/w"] = torch.stack(rows)
    return tensors


# ---- checks --------------------------------------------------------------------------------------

def relative(a, b):
    """max|a-b| / max|b|: the measure of tests/test_golden.c as well."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


def finite_differences(what, loss, param, expected):
    """Each gradient along three random unit directions against five-point central differences."""
    rng, h, worst = torch.Generator().manual_seed(7), 2e-6, 0.0
    for name, g in expected.items():
        for _ in range(3):
            v = torch.randn(g.shape, generator=rng)
            v /= v.norm()

            def at(t):
                moved = dict(param)
                moved[name] = param[name] + t * v
                return loss(leaves(moved)).item()
            slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
            exact = (g * v).sum().item()
            error = abs(slope - exact) / max(abs(exact), 0.1 * g.norm().item(), 1e-3)
            worst = max(worst, error)
            assert error < FD_TOLERANCE, (what, name, slope, exact)
    print(f"  finite differences agree: {what}, worst {worst:.1e}")


def single(data):
    return {k: v.float() if v.is_floating_point() else v for k, v in data.items()}


def check_room(what, exact, rough):
    errors = {k: relative(rough[k].double(), exact[k]) for k in exact}
    assert all(map(math.isfinite, errors.values())), errors
    name = max(errors, key=errors.get)
    print(f"  float32 keeps {what} to {errors[name]:.1e} ({name})")
    assert errors[name] < FLOAT_ROOM, (name, errors[name])


def subset(tensors, kind):
    return {k[len(kind) + 1:]: v for k, v in tensors.items() if k.startswith(kind + "/")}


def make_net(name, make_data, mode_tensors, losses, kinds):
    """Both modes of one net, checked, as the tensors of its file. `kinds` lists the gradients that
    finite differences can confirm: what has something detached is the gradient of no function."""
    data, param = make_data()
    tensors = dict(data)
    tensors.update({"param/" + k: v for k, v in param.items()})
    for mode in ("train", "eval"):
        train, kinks = mode == "train", Kinks()
        got = mode_tensors(data, param, train, kinks)
        print(f"{name} {mode}: nearest kink {kinks.least:.1e} ({kinks.where})")
        assert kinks.least > MARGIN
        rough = mode_tensors(single(data), single(param), train, Kinks())
        check_room(mode, got, rough)
        for kind, loss in kinds:
            finite_differences(f"{mode} {kind}",
                               lambda p: losses(data, p, train, Kinks())[loss],
                               param, subset(got, kind))
        tensors.update({f"{mode}/{k}": v for k, v in got.items()})
    return tensors


def make_conv_net():
    return make_net("conv_net", conv_net_data, conv_net_mode, conv_net_losses,
                    [("grad", "total"), ("grad_energy", "energy"), ("grad_rrr", "rrr"),
                     ("grad_cam", "cam_loss")])


def make_bcos_net():
    tensors = make_net("bcos_net", bcos_net_data, bcos_net_mode, bcos_net_losses,
                       [("grad", "total"), ("grad_energy", "energy")])
    data, param = bcos_net_data()
    for mode in ("train", "eval"):
        check_bcos_explanation(data, param, mode == "train")
        for k in subset(tensors, mode + "/grad"):
            if k.startswith(("conv1", "layer1")):
                variant = tensors[f"{mode}/grad_detached/{k}"]
                changed = relative(variant, tensors[f"{mode}/grad/{k}"])
                assert changed > 1e-2, (mode, k, changed)
    return tensors


def make_third_order():
    data, param = third_order_data()
    got = third_order_tensors(data, param)
    print("third_order:")
    check_room("it", got, third_order_tensors(single(data), single(param)))
    for kind, value in (("grad_q", "q"), ("grad_r", "r")):
        finite_differences(kind, lambda p: third_order(data, p)[value], param, subset(got, kind))
    tensors = dict(data)
    tensors.update({"param/" + k: v for k, v in param.items()})
    tensors.update(got)
    return tensors


def main():
    os.makedirs(OUT, exist_ok=True)
    for name, make in (("conv_net", make_conv_net), ("bcos_net", make_bcos_net),
                       ("third_order", make_third_order), ("optim", optim_tensors)):
        write_safetensors(os.path.join(OUT, name + ".safetensors"), make())


if __name__ == "__main__":
    main()
