"""The workloads of build/bench in PyTorch: tools/peers.py runs this, one process for each row.

    peers_torch.py VARIANT WORK BATCH THREADS FILE

Variants: eager; channels-last (eager, pictures stored NHWC); infopt (torch.jit.freeze and
optimize_for_inference); compile (torch.compile; for inference with frozen weights).

How it is tuned, for the processor: as many threads as asked, set before any work; an allocator that keeps
its pages, and large ones (GLIBC_TUNABLES, THP_MEM_ALLOC_ENABLE, set by peers.py); inference_mode; fused
SGD; no gradients of what needs none; batch norm folded into convolutions where it is constant (integrated
gradients); masks and labels prepared outside the timed step. Whatever can be compiled is compiled whole,
guided steps by torch.func inside of torch.compile, since a compiled function cannot be differentiated
twice from outside. A slope between two points instead of the second derivative, which takes fewer
operations, is not among them: ReLUs switch between any two points, and the gradient's norm was off by a
tenth (ResNet-50) and more.
"""
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import peers_common as common


# ---- models, with torchvision's names ------------------------------------------------------------

class Block(nn.Module):
    def __init__(self, inputs, width, stride, deep):
        super().__init__()
        outputs = width * 4 if deep else width
        plan = [(1, 1, width), (3, stride, width), (1, 1, outputs)] if deep else \
               [(3, stride, width), (3, 1, width)]
        self.layers, last = len(plan), inputs
        for i, (kernel, step, channels) in enumerate(plan, 1):
            setattr(self, f"conv{i}", nn.Conv2d(last, channels, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(channels))
            last = channels
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                                            nn.BatchNorm2d(outputs))
        self.deep = deep

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.deep:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, blocks, deep, classes, small):
        super().__init__()
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(3, 64, kernel, stride, kernel // 2, bias=False)
        self.bn1, self.small, inputs = nn.BatchNorm2d(64), small, 64
        for i, count in enumerate(blocks):
            stage = []
            for j in range(count):
                stage.append(Block(inputs, 64 << i, 2 if i > 0 and j == 0 else 1, deep))
                inputs = (64 << i) * (4 if deep else 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(inputs, classes)

    def features(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if not self.small:
            x = F.max_pool2d(x, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def classify(self, maps):
        return self.fc(maps.mean((2, 3)))

    def forward(self, x):
        return self.classify(self.features(x))


class Small(nn.Module):
    """Three 3x3 convolutions, each with ReLU and 2x2 max pooling; `m` is the mapping layer."""
    def __init__(self, mapped):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 1, 1)
        self.conv3, self.fc = nn.Conv2d(32, 64, 3, 1, 1), nn.Linear(4096, 10)
        self.m = nn.Linear(10, 10) if mapped else nn.Identity()

    def base(self, x):
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return self.fc(x.flatten(1))

    def forward(self, x):
        return self.m(self.base(x))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc = nn.Linear(784, 512), nn.Linear(512, 512), nn.Linear(512, 10)

    def forward(self, x):
        return self.fc(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))

    def bounds(self, centre, radius):
        """Logits at the centre of a box, and how far they may lie from there."""
        centre, radius = centre.flatten(1), radius.flatten(1)
        for layer in (self.fc1, self.fc2, self.fc):
            centre, radius = layer(centre), F.linear(radius, layer.weight.abs())
            if layer is not self.fc:
                lo, hi = F.relu(centre - radius), F.relu(centre + radius)
                centre, radius = (hi + lo) / 2, (hi - lo) / 2
        return centre - radius, centre + radius


def build(work, weights):
    family = work.split(".")[0]
    net = {"r50": lambda: ResNet(*common.RESNET50), "r18": lambda: ResNet(*common.RESNET18),
           "small": lambda: Small(work == "small.mapkl"), "mlp": Mlp}[family]()
    state = net.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = torch.from_numpy(weights[name].copy()).reshape(value.shape)
    net.load_state_dict(state)
    return net


# ---- losses --------------------------------------------------------------------------------------

def energy(maps, mask):
    """How much of a map's positive part lies outside the mask; summed over the batch."""
    positive = F.relu(maps)
    if positive.shape[2:] != mask.shape[2:]:
        positive = F.interpolate(positive, size=mask.shape[2:], mode="bilinear", align_corners=False)
    inside = (positive * mask).sum((1, 2, 3))
    whole = positive.sum((1, 2, 3))
    return (1 - torch.where(whole < 1e-7, inside, inside / whole)).sum()


def loss_of(work, net, x, mask, label, grad):
    """The loss of one step. grad(f, at) is the gradient of a scalar function, differentiable again, with
    what f returns beside it: ((value, rest), gradient)."""
    kind = work.split(".")[1]

    def scored(call, value):
        def score(at):
            logits = call(at)
            return value(logits), logits
        return score

    def picked(logits):
        return logits.gather(1, label[:, None]).sum()

    if kind == "guided":
        (_, logits), slope = grad(scored(net, picked), x)
        return F.cross_entropy(logits, label) + common.ENERGY * energy((x * slope).sum(1, True), mask)
    if kind == "gradcam":
        maps = net("features", x)
        (_, logits), slope = grad(scored(lambda at: net("classify", at), picked), maps)
        cam = F.relu((slope.mean((2, 3), True) * maps).sum(1, True))
        return F.cross_entropy(logits, label) + common.ENERGY * energy(cam, mask)
    if kind == "gradreg":
        (_, logits), slope = grad(scored(net, lambda z: F.log_softmax(z, 1).sum()), x)
        return F.cross_entropy(logits, label) + common.REGULAR * (slope * mask).square().sum()
    if kind == "pgd":
        reach, worst = common.RADIUS * mask, x
        for _ in range(common.PGD_STEPS):
            _, slope = grad(scored(net, lambda z: F.cross_entropy(z, label)), worst, False)
            worst = torch.clamp(worst + reach / 4 * slope.sign(), x - reach, x + reach).detach()
        return F.cross_entropy(net(x), label) + F.cross_entropy(net(worst), label)
    if kind == "ibp":
        logits, (lo, hi) = net(x), net("bounds", x, common.RADIUS / 10 * mask)
        own = F.one_hot(label, 10)
        return F.cross_entropy(logits, label) + F.cross_entropy(torch.where(own > 0, lo, hi), label)
    return F.cross_entropy(net(x), label)


# ---- steps ---------------------------------------------------------------------------------------

def eager_grad(f, at, twice=True):
    """The gradient as autograd gives it."""
    if at.grad_fn is None:
        at = at.detach().requires_grad_()
    value, rest = f(at)
    return (value, rest), torch.autograd.grad(value, at, create_graph=twice)[0]


def caller(net):
    """Calls a module, or one of its methods by name."""
    return lambda *a: getattr(net, a[0])(*a[1:]) if isinstance(a[0], str) else net(*a)


def optimiser(parameters):
    return torch.optim.SGD(parameters, lr=common.LR, momentum=common.MOMENTUM, fused=True)


def train_turn(work, net, x, mask, label, compiled):
    net.train()
    first, optim, call = next(net.parameters()), optimiser(list(net.parameters())), caller(net)
    step, second = loss_of, second_loss
    if compiled and work.split(".")[1] not in ("train", "mapkl"):
        return compiled_turn(work, net, optim, x, mask, label)
    if compiled:
        step, second = torch.compile(step), torch.compile(second)
    again = optimiser(net.m.parameters()) if work == "small.mapkl" else None

    def turn():
        optim.zero_grad(set_to_none=True)
        loss = step(work, call, x, mask, label, eager_grad)
        loss.backward()
        optim.step()
        if again:
            again.zero_grad(set_to_none=True)
            more = second(net, x, mask)
            more.backward()
            again.step()
            loss = loss.detach() + more.detach()
        return loss, lambda: first.grad.norm()
    return turn


def second_loss(net, x, mask):
    """KL between what the network says of the relevant part and what the mapping layer says of all."""
    with torch.no_grad():
        goal = F.log_softmax(net.base(x * mask), 1)
        logits = net.base(x)
    return F.kl_div(F.log_softmax(net.m(logits), 1), goal, reduction="batchmean", log_target=True)


def compiled_turn(work, net, optim, x, mask, label):
    """Loss and gradients in one graph: both derivatives are taken by torch.func while it is traced."""
    for module in net.modules():           # a traced gradient must not change anything: running statistics
        if isinstance(module, nn.BatchNorm2d):              # are not kept, which is in the peer's favour
            module.running_mean = module.running_var = module.num_batches_tracked = None
    parameters = dict(net.named_parameters())
    first = next(iter(parameters.values()))

    def traced_grad(f, at, twice=True):
        slope, (value, rest) = torch.func.grad(lambda a: (lambda v: (v[0], v))(f(a)), has_aux=True)(at)
        return (value, rest), slope

    def loss(values):
        def call(*a):
            name, a = (a[0], a[1:]) if isinstance(a[0], str) else ("forward", a)
            inner = {"net." + k: v for k, v in values.items()}
            return torch.func.functional_call(Method(net, name), inner, a)
        return loss_of(work, call, x, mask, label, traced_grad)

    both = torch.compile(torch.func.grad_and_value(loss))

    def turn():
        slopes, value = both({k: v.detach() for k, v in parameters.items()})
        for name, parameter in parameters.items():
            parameter.grad = slopes[name]
        optim.step()
        return value, lambda: first.grad.norm()
    return turn


class Method(nn.Module):
    """A module whose forward is another one's method."""
    def __init__(self, net, name):
        super().__init__()
        self.net, self.name = net, name

    def forward(self, *a):
        return getattr(self.net, self.name)(*a)


# ---- inference, explanations ---------------------------------------------------------------------

def for_inference(net, variant, x):
    net.eval()
    if variant == "infopt":
        with torch.no_grad():
            return torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(net, x)))
    if variant == "compile":
        import torch._inductor.config as inductor
        inductor.freezing = True
        return torch.compile(net)
    return net


def infer_turn(net, x):
    def turn():
        with torch.inference_mode():
            logits = net(x)
        return logits.norm(), logits.norm()
    return turn


def score_turn(net, label, chunks):
    """The mean probability of a label over chunks of pictures, which chunks() makes."""
    def turn():
        with torch.inference_mode():
            scores = torch.cat([F.softmax(net(part), 1)[:, label] for part in chunks()])
        return scores.mean(), scores.norm()
    return turn


def lime_chunks(x, extra):
    keep = torch.from_numpy(extra.copy()).reshape(common.LIME, 1, common.CELLS, common.CELLS)
    for part in keep.split(common.LIME_CHUNK):
        yield x[:1] * F.interpolate(part, size=x.shape[2:], mode="nearest")


def insdel_chunks(x, extra):
    side = x.shape[2]
    for start in range(0, common.INSDEL, common.INSDEL_CHUNK):
        yield x[:1] * torch.from_numpy(common.shown_pixels(extra, side, start))[:, None]


def fold(net):
    """Puts each batch norm with running statistics into the convolution before it."""
    for module in list(net.modules()):
        for i in (1, 2, 3):
            if hasattr(module, f"bn{i}"):
                fused = fuse_conv_bn_eval(getattr(module, f"conv{i}"), getattr(module, f"bn{i}"))
                setattr(module, f"conv{i}", fused)
                setattr(module, f"bn{i}", nn.Identity())
        if getattr(module, "downsample", None) is not None:
            module.downsample = fuse_conv_bn_eval(*module.downsample)


def intgrad_turn(net, x, label):
    for parameter in net.parameters():
        parameter.requires_grad_(False)

    def turn():
        total = torch.zeros_like(x[:1])
        for start in range(0, common.IG_STEPS, common.IG_CHUNK):
            share = torch.from_numpy(common.ig_shares(start))[:, None, None, None]
            points = (share * x[:1]).requires_grad_()
            total += torch.autograd.grad(net(points)[:, label].sum(), points)[0].sum(0, True)
        result = (total * x[:1]).sum(1) / common.IG_STEPS
        return result.sum(), result.norm()
    return turn


def make(variant, work, weights, inputs):
    net = build(work, weights)
    x, mask = torch.from_numpy(inputs["x"].copy()), torch.from_numpy(inputs["mask"].copy())
    label, kind = torch.from_numpy(inputs["label"]), work.split(".")[1]
    if variant == "channels-last":
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    if kind == "intgrad":
        net.eval()
        fold(net)
        return intgrad_turn(torch.compile(net) if variant == "compile" else net, x, int(label[0]))
    if kind == "inf":
        return infer_turn(for_inference(net, variant, x), x)
    if kind in ("lime", "insdel"):
        chunks, size = (lime_chunks, common.LIME_CHUNK) if kind == "lime" else \
                       (insdel_chunks, common.INSDEL_CHUNK)
        net = for_inference(net, variant, x[:1].repeat(size, 1, 1, 1))
        return score_turn(net, int(label[0]), lambda: chunks(x, inputs["extra"]))
    return train_turn(work, net, x, mask, label, variant == "compile")


def main():
    variant, work, _, threads, path = sys.argv[1:]
    torch.set_num_threads(int(threads))
    weights, inputs = common.split_inputs(common.read_safetensors(path))
    common.serve(make(variant, work, weights, inputs), torch.__version__)


if __name__ == "__main__":
    main()
