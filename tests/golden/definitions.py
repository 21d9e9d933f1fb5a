"""Methods straight from methods.md, where no library has them as specified: (net, x, k) -> maps (N, 1, h, w), p (N).

torch-cam's Grad-CAM++ of form T is one of those: its masked division acts on a copy and changes nothing."""

import torch
import torch.nn.functional as F

from agf import agf as agf_map
from relevance import Excitation, Rap, Rsp, SetA
from ucag_ref import bilinear
from walk import whole


def run(net, x, k):
    """All values, and the probabilities of class k."""
    values = net.tape.forward(x)
    return values, values[-1].detach().softmax(1)[:, k]


def at(net, values, name, k):
    """A and G of one layer."""
    a = values[net.tape.names[name]]
    g, = torch.autograd.grad(values[-1][:, k].sum(), a, retain_graph=True)
    return a.detach(), g


def one(values, k):
    """One at class k."""
    start = torch.zeros_like(values[-1].detach())
    start[:, k] = 1
    return start


def minmax(m):
    low, high = whole(m, "amin"), whole(m, "amax")
    return torch.where(high > low, (m - low) / torch.where(high > low, high - low, 1.0), 0.0)


# At a layer (6, 8).

def of_layer(formula):
    def method(net, x, k):
        values, p = run(net, x, k)
        return formula(*at(net, values, net.layer, k)), p
    return method


def of_earlier_layer(formula):
    return lambda net, x, k: of_layer(formula)(net._replace(layer=net.earlier), x, k)


def third_order_sum(a, g):
    """Grad-CAM++ of form T: one third-order term a channel."""
    d = 2 * g**2 + (a * g**3).sum((2, 3), keepdim=True)
    alpha = g**2 / torch.where(d == 0, 1.0, d + torch.where(d < 0, -1e-7, 1e-7))
    return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1, keepdim=True)


def wgrad_cam(a, g):
    return ((a * g).mean((2, 3), keepdim=True) * a).sum(1, keepdim=True)


NORM_GRAD = {"identity": lambda a, g: a.norm(dim=1, keepdim=True) * g.norm(dim=1, keepdim=True),
             "bias": lambda a, g: g.norm(dim=1, keepdim=True),
             "scaling": lambda a, g: (a * g).norm(dim=1, keepdim=True),
             "selective": lambda a, g: (a * g).relu().norm(dim=1, keepdim=True)}


def fused_layer_cam(net, x, k):
    """Layer-CAM of several layers: each stretched to [0, 1] and through a tanh, the largest of all at every place."""
    values, p = run(net, x, k)
    maps = []
    for name in net.fused:
        a, g = at(net, values, name, k)
        maps.append(torch.tanh(2 * minmax((g.relu() * a).sum(1, keepdim=True))))
    size = max(m.shape[2:] for m in maps)
    return torch.stack([bilinear(m, size) for m in maps]).amax(0), p


def cameras(net, x, k):
    """Means over eight resolutions of A and of G, each resized to the picture's size first."""
    size, sums, p = x.shape[2:], [0, 0], None
    for r in range(8):
        to = [round(s * (224 + 100 * r) / 224) for s in size]
        values, p_r = run(net, F.interpolate(x, size=to, mode="bicubic", align_corners=False) if r else x, k)
        sums = [total + bilinear(v, size) for total, v in zip(sums, at(net, values, net.layer, k))]
        p = p_r if r == 0 else p
    s = (sums[0] / 8 * sums[1] / 8).sum(1, keepdim=True).relu()
    low = whole(s, "amin")
    return (s - low) / whole(s - low, "amax"), p


# FullGrad (9).

def full_grad(net, x, k):
    values, p = run(net, x, k)
    score = values[-1][:, k]
    gradients = torch.autograd.grad(score.sum(), values)
    psi = lambda t: t.abs() - whole(t.abs(), "amin")  # noqa: E731
    scaled = lambda t: psi(t) / (whole(psi(t), "amax") + 1e-6)  # noqa: E731
    terms = [values[0].detach() * gradients[0]]
    total, out = terms[0].flatten(1).sum(1), scaled(terms[0]).sum(1, keepdim=True)
    for op in net.tape.ops:
        if op.kind == "norm":
            m = op.module
            bias = m.bias - m.running_mean * m.weight / (m.running_var + m.eps).sqrt()
        else:
            bias = getattr(op.module, "bias", None)
        if bias is None:
            continue
        g = gradients[op.value]
        t = g * (bias.view(-1, 1, 1) if g.dim() == 4 else bias)
        total = total + t.flatten(1).sum(1)
        if g.dim() == 4:
            out = out + F.interpolate(scaled(t), size=x.shape[2:], mode="bilinear", align_corners=True).sum(1, keepdim=True)
    if x.dtype == torch.float64:
        assert ((total - score).abs() < 1e-9 * score.abs().clamp(min=1)).all(), "FullGrad is not complete"
    return out, p


# Excitation backprop (5).

def mwp(net, x, k):
    values, p = run(net, x, k)
    stop = net.tape.names[net.earlier]
    return net.tape.walk(values, Excitation(), net.tape.logits, one(values, k), stop).sum(1, keepdim=True), p


def cmwp(net, x, k):
    values, p = run(net, x, k)
    tape, stop = net.tape, net.tape.names[net.earlier]
    against = tape.walk(values, Excitation(negated=tape.logits), tape.logits, one(values, k), tape.head)
    winning = tape.walk(values, Excitation(), tape.logits, one(values, k), tape.head)
    return tape.walk(values, Excitation(), tape.head, winning - against, stop).sum(1, keepdim=True).relu(), p


# Relevance at the input (10.4, 11 to 14).

def of_logit(rules):
    """Starts from the logit's value."""
    def method(net, x, k):
        values, p = run(net, x, k)
        start = one(values, k) * values[-1].detach()
        return net.tape.walk(values, rules, net.tape.logits, start).sum(1, keepdim=True), p
    return method


def contrast(starts):
    """Relevance of the target less that of all others, scaled to the same total."""
    def method(net, x, k):
        values, p = run(net, x, k)
        target, others = (net.tape.walk(values, SetA(), net.tape.logits, s) for s in starts(values[-1].detach(), k))
        total = whole(others, "sum")
        scale = torch.where(total == 0, 0.0, whole(target, "sum") / torch.where(total == 0, 1.0, total))
        return (target - others * scale).sum(1, keepdim=True), p
    return method


def clrp_starts(logits, k):
    is_target = torch.arange(logits.shape[1]) == k
    y = logits[:, k:k + 1]
    return y * is_target, y / (logits.shape[1] - 1) * ~is_target


def sglrp_starts(logits, k):
    is_target, p = torch.arange(logits.shape[1]) == k, logits.softmax(1)
    p_k, rest = p[:, k:k + 1], (p * ~is_target).sum(1, keepdim=True)
    return (p_k * rest + 1e-8) * is_target, p_k * p * ~is_target


def rap_original(net, x, k):
    """The head of RAP's repository: products of the last layer, its bias shared among them, magnitudes of the same total."""
    values, p = run(net, x, k)
    head = net.tape.ops[net.tape.logits].module
    products = values[net.tape.head].detach() * head.weight[k]
    q = products * (1 + head.bias[k] / products.sum(1, keepdim=True))
    start = q.abs() / q.abs().sum(1, keepdim=True) * q.sum(1, keepdim=True)
    return net.tape.walk(values, Rap(original=True), net.tape.head, start).sum(1, keepdim=True), p


def rsp(net, x, k):
    values, p = run(net, x, k)
    a, g = at(net, values, net.layer, k)
    seed = g.mean((2, 3), keepdim=True) * a
    return net.tape.walk(values, Rsp(), net.tape.names[net.layer], seed / (whole(seed, "amax") + 1e-9)).sum(1, keepdim=True), p


def agf(net, x, k):
    values, p = run(net, x, k)
    return agf_map(net.tape, values, k), p


clrp, sglrp = contrast(clrp_starts), contrast(sglrp_starts)
lrp, lrp_ab, rap = of_logit(SetA()), of_logit(SetA(2)), of_logit(Rap(original=False))
