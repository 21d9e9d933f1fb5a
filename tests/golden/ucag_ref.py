"""UCAG around Grad-CAM (autograd) and LRP EpsilonPlus (zennit): modes `plain`, `paper` and `release`.

Every function keeps the precision of its inputs, so that one code gives the float64 maps and their float32 twins."""

import math

import torch
import torch.nn.functional as F
from zennit.composites import EpsilonPlus
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer

RHO, ALPHA, RELEASE_CROP, RELEASE_INPUT = 0.555, 2.6, 124, 224


# Raw maps of a batch: (N, 3, H, W) -> (N, 1, h, w) and probabilities of class k.

def grad_cam(model, layer, x, k):
    kept = []

    def cut(_module, _inputs, output):
        kept.append(output.detach().requires_grad_(True))
        return kept[-1]

    handle = model.get_submodule(layer).register_forward_hook(cut)
    logits = model(x)
    handle.remove()
    grad, = torch.autograd.grad(logits[:, k].sum(), kept[0])
    raw = (grad.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True)
    return raw.detach(), logits.detach().softmax(1)[:, k]


def lrp_epsilon_plus(model, _layer, x, k):
    """Batch norm must be folded already: zennit's own merge leaves eps in place."""
    composite = EpsilonPlus(canonizers=[ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()])
    x = x.clone().requires_grad_(True)
    with composite.context(model) as modified:
        logits = modified(x)
        start = torch.zeros_like(logits)
        start[:, k] = logits.detach()[:, k]
        relevance, = torch.autograd.grad(logits, x, start)
    return relevance.detach().sum(1, keepdim=True), logits.detach().softmax(1)[:, k]


METHODS = {"grad-cam": grad_cam, "lrp-epsilon-plus": lrp_epsilon_plus}


# Geometry, one axis at a time.

def paper_axis(size, n, rho=RHO, alpha=ALPHA):
    """(patch length, offsets, scaled length)."""
    patch = math.floor(rho * size + 1e-6)
    offsets = [math.floor(i * (size - patch) / (n - 1) + 0.5) for i in range(n)]
    assert max(b - a for a, b in zip(offsets, offsets[1:])) <= patch
    return patch, offsets, math.floor(alpha * patch + 1e-6)


def release_axis(size, n, alpha=ALPHA):
    """(patch length, offsets, scaled length, canvas length); the last patch may be shorter than the patch length."""
    patch = int(RELEASE_CROP * size / RELEASE_INPUT)
    step = (size - patch + 2) // (n - 1)
    return patch, [i * step for i in range(n)], int(patch * alpha), patch + (n - 1) * step


def scale_paper(patches, alpha, size):
    out = F.interpolate(patches, scale_factor=alpha, mode="bicubic", align_corners=False, recompute_scale_factor=False)
    assert out.shape[2:] == torch.Size(size), (out.shape, size)
    return out


def scale_release(patches, size):
    return F.interpolate(patches, size=size, mode="bicubic", align_corners=False)


def bilinear(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def unfold(x, mode, n, rho=RHO, alpha=ALPHA):
    """(1, C, H, W) -> (n*n, C, S_h, S_w), patch size, row offsets, column offsets, canvas size."""
    height, width = x.shape[2:]
    if mode == "paper":
        (ph, ys, sh), (pw, xs, sw) = paper_axis(height, n, rho, alpha), paper_axis(width, n, rho, alpha)
        canvas = height, width
    else:
        (ph, ys, sh, ch), (pw, xs, sw, cw) = release_axis(height, n, alpha), release_axis(width, n, alpha)
        canvas = ch, cw
    crops = [x[:, :, y:y + ph, z:z + pw] for y in ys for z in xs]
    if mode == "paper":
        scaled = [scale_paper(c, alpha, (sh, sw)) for c in crops]
    else:
        scaled = [scale_release(c, (sh, sw)) for c in crops]
    return torch.cat(scaled), (ph, pw), ys, xs, canvas


def fold(maps, patch, ys, xs, canvas, start):
    """Overlap-add of (n*n, 1, H', W') divided by `start` + the number of patches over each pixel."""
    total = maps.new_zeros(1, 1, *canvas)
    count = maps.new_full((1, 1, *canvas), start)
    for m, (y, x) in zip(maps, ((y, x) for y in ys for x in xs)):
        total[..., y:y + patch[0], x:x + patch[1]] += m
        count[..., y:y + patch[0], x:x + patch[1]] += 1
    return total / count


def gauss(x, k=5, sigma=3.0):
    i = torch.arange(k, dtype=torch.float64) - (k - 1) / 2
    taps = torch.exp(-i.square() / (2 * sigma**2))
    taps = (taps / taps.sum()).to(x.dtype)
    x = F.pad(x, [k // 2] * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, taps.view(1, 1, k, 1)), taps.view(1, 1, 1, k))


def release_cam(x):
    x = x.relu()
    low, high = x.min(), x.max()
    return gauss((x - low) / (high - low) if high > low else torch.zeros_like(x))


# The whole job.

def explain(model, layer, x, k, method, mode, n=3, batch=4):
    """Normalised (1, 3, H, W) -> map (H, W) and the patches' probabilities of class k."""
    raw, size = METHODS[method], x.shape[2:]
    if mode == "plain":
        m, p = raw(model, layer, x, k)
        return bilinear(m, size)[0, 0], p
    patches, patch, ys, xs, canvas = unfold(x, mode, n)
    maps, probs = zip(*(raw(model, layer, part, k) for part in patches.split(batch)))
    maps, p = bilinear(torch.cat(maps), patch), torch.cat(probs)
    weight = p.exp() if mode == "paper" else p.exp() / p.exp().max()
    m = fold(maps * weight.view(-1, 1, 1, 1), patch, ys, xs, canvas, 0 if mode == "paper" else 1)
    if tuple(m.shape[2:]) != tuple(size):
        m = bilinear(m, size)
    if mode == "release" and method == "grad-cam":
        m = release_cam(m)
    return m[0, 0], p
