"""Checks the golden files from the files alone, with code that shares nothing with make_golden.py.

Hash element by element, bicubic tap by tap, grid and fold by loops, Grad-CAM by closed forms, LRP rule by rule."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

from golden_nets import architecture, hashed

EPS = 1e-6


def read(name):
    with safe_open(Path(__file__).parent / f"{name}.safetensors", "pt") as file:
        metadata = {k: v if k == "network" else json.loads(v) for k, v in file.metadata().items()}
        return {k: file.get_tensor(k) for k in file.keys()}, metadata


def element(key, i):
    """u(key, i), one at a time in Python integers."""
    mask, seed = 2**64 - 1, 0xCBF29CE484222325
    for byte in key.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & mask
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 40) / 2**23 - 1


class Net:
    """Folded float64 weights by key, and the graph of VGG or ResNet written out."""

    def __init__(self, name, tensors, gains):
        self.name, self.w = name, {}
        shapes = {k: v.shape for k, v in architecture(name).state_dict().items()}
        raw = {k: hashed(k, s, gains[k]).double() if k in gains else tensors.get(k) for k, s in shapes.items()}
        for key in (k[:-7] for k in gains if k.endswith(".weight") and len(shapes[k]) > 1):
            weight = raw[f"{key}.weight"]
            bias = raw.get(f"{key}.bias", torch.zeros(len(weight), dtype=torch.float64))
            norm = self.norm_of(key)
            if f"{norm}.running_var" in raw:
                scale = raw[f"{norm}.weight"] / (raw[f"{norm}.running_var"].double() + 1e-5).sqrt()
                weight = weight * scale.view(-1, 1, 1, 1)
                bias = (bias - raw[f"{norm}.running_mean"].double()) * scale + raw[f"{norm}.bias"]
            self.w[key] = weight, bias

    @staticmethod
    def norm_of(key):
        head, last = key.rpartition(".")[::2]
        return f"{head}.{int(last) + 1}" if last.isdigit() else f"{head}.{last.replace('conv', 'bn')}".lstrip(".")

    def forward(self, x):
        """Logits; `tape` holds (kind, inputs, key or arguments) in order, `features` the Grad-CAM activation."""
        self.tape = []
        return self.vgg(x) if self.name.startswith("vgg") else self.resnet(x)

    def conv(self, x, key, stride=1, pad=0):
        self.tape.append(("conv", x, (key, stride, pad)))
        return F.conv2d(x, self.w[key][0], self.w[key][1], stride, pad)

    def linear(self, x, key):
        self.tape.append(("linear", x, key))
        return x @ self.w[key][0].T + self.w[key][1]

    def max_pool(self, x, k, stride, pad):
        self.tape.append(("max", x, (k, stride, pad)))
        return F.max_pool2d(x, k, stride, pad)

    def pool(self, x, size):
        self.tape.append(("mean", x, size))
        return F.adaptive_avg_pool2d(x, size).flatten(1)

    def vgg(self, x):
        plan = {"vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
                "vgg11_bn": "64 M 128 M 256 256 M 512 512 M 512 512 M"}[self.name].split()
        index = 0
        for entry in plan:
            if entry == "M":
                self.features, x, index = x, self.max_pool(x, 2, 2, 0), index + 1
            else:
                x, index = self.conv(x, f"features.{index}", 1, 1).relu(), index + (3 if "bn" in self.name else 2)
        x = self.pool(x, 7)
        for key in ("classifier.0", "classifier.3"):
            x = self.linear(x, key).relu()
        return self.linear(x, "classifier.6")

    def resnet(self, x):
        x = self.max_pool(self.conv(x, "conv1", 2, 3).relu(), 3, 2, 1)
        bottleneck = self.name == "resnet50"
        for layer, count in enumerate((3, 4, 6, 3) if bottleneck else (2, 2, 2, 2), 1):
            for block in range(count):
                base, stride = f"layer{layer}.{block}", 2 if block == 0 and layer > 1 else 1
                steps = [(1, 0), (stride, 1), (1, 0)] if bottleneck else [(stride, 1), (1, 1)]
                self.tape.append(("fork", None, None))
                y = x
                for i, (s, pad) in enumerate(steps, 1):
                    y = self.conv(y, f"{base}.conv{i}", s, pad)
                    y = y.relu() if i < len(steps) else y
                self.tape.append(("branch", None, None))
                skip = self.conv(x, f"{base}.downsample.0", stride) if f"{base}.downsample.0" in self.w else x
                self.tape.append(("add", y, skip))
                x = (y + skip).relu()
        self.features = x
        return self.linear(self.pool(x, 1), "fc")

    def grad_cam(self, x, k):
        """Closed forms: no backward pass."""
        logits = self.forward(x)
        if self.name.startswith("vgg"):
            masks = [(t[1] > 0).double() for t in self.tape if t[0] == "linear"]
            g = self.w["classifier.6"][0][k] * masks[2]
            g = (g @ self.w["classifier.3"][0]) * masks[1]
            alpha = (g @ self.w["classifier.0"][0].double()).view(len(x), -1, 49).sum(2)
        else:
            alpha = self.w["fc"][0][k][None]
        alpha = alpha / self.features[0, 0].numel()
        return torch.einsum("nc,nchw->nhw", alpha.expand(len(x), -1), self.features), logits.softmax(1)[:, k]

    def lrp(self, x, k):
        """The tape backwards, one rule per entry; autograd is not used."""
        logits = self.forward(x)
        r, forks = torch.zeros_like(logits), []
        r[:, k] = logits[:, k]
        for kind, x, extra in reversed(self.tape):
            if kind == "linear":
                w, b = self.w[extra]
                r = x * (divs(r, x @ w.T + b) @ w)
            elif kind == "conv":
                r = self.z_plus(x, r, *extra)
            elif kind == "max":
                r = unpool(x, r, *extra)
            elif kind == "mean":
                r = norm_pool(x, r.view(*x.shape[:2], extra, extra))
            elif kind == "add":
                forks.append([x * divs(r, x + extra)])
                r = extra * divs(r, x + extra)
            elif kind == "branch":
                forks[-1].append(r)
                r = forks[-1][0]
            elif kind == "fork":
                r = r + forks.pop()[1]
        return r.sum(1), logits.softmax(1)[:, k]

    def z_plus(self, x, r, key, stride, pad):
        w, b = self.w[key]
        back = lambda s, v: F.conv_transpose2d(s, v, None, stride, pad, [  # noqa: E731
            x.shape[d] - ((s.shape[d] - 1) * stride - 2 * pad + v.shape[d]) for d in (2, 3)])
        up, down, xp, xn = w.clamp(min=0), w.clamp(max=0), x.clamp(min=0), x.clamp(max=0)
        s = divs(r, F.conv2d(xp, up, b.clamp(min=0), stride, pad) + F.conv2d(xn, down, None, stride, pad))
        return xp * back(s, up) + xn * back(s, down)


def divs(a, b):
    return a / (b + EPS * torch.where(b < 0, -1.0, 1.0).double())


def unpool(x, r, k, stride, pad):
    _, winner = F.max_pool2d(x, k, stride, pad, return_indices=True)
    return torch.zeros_like(x).flatten(2).scatter_add(2, winner.flatten(2), r.flatten(2)).view_as(x)


def norm_pool(x, r):
    out, (h, w), (oh, ow) = torch.zeros_like(x), x.shape[2:], r.shape[2:]
    for i in range(oh):
        for j in range(ow):
            y = slice(i * h // oh, -(-(i + 1) * h // oh))
            z = slice(j * w // ow, -(-(j + 1) * w // ow))
            mean = x[:, :, y, z].mean((2, 3))
            area = (y.stop - y.start) * (z.stop - z.start)
            out[:, :, y, z] += x[:, :, y, z] * (divs(r[:, :, i, j], mean) / area)[..., None, None]
    return out


def cubic(t):
    a, t = -0.75, abs(t)
    return ((a + 2) * t - (a + 3)) * t * t + 1 if t <= 1 else (((t - 5) * t + 8) * t - 4) * a if t < 2 else 0.0


def bicubic_matrix(length, out, step):
    """(out, length) weights; taps clamp at the patch's own edge."""
    m = np.zeros((out, length))
    for d in range(out):
        s = (d + 0.5) * step - 0.5
        for tap in range(math.floor(s) - 1, math.floor(s) + 3):
            m[d, min(max(tap, 0), length - 1)] += cubic(s - tap)
    return m


def bilinear_matrix(length, out):
    m = np.zeros((out, length))
    for d in range(out):
        s = max((d + 0.5) * length / out - 0.5, 0)
        i = min(int(s), length - 1)
        m[d, i] += 1 - (s - i)
        m[d, min(i + 1, length - 1)] += s - i
    return m


def axes(mode, size, n, rho, alpha):
    """Per patch: (start, stop), then nominal length, scaled length, canvas length, source step by patch."""
    if mode == "paper":
        length = math.floor(rho * size + 1e-6)
        starts = [math.floor(i * (size - length) / (n - 1) + 0.5) for i in range(n)]
        return [(s, s + length) for s in starts], length, math.floor(alpha * length + 1e-6), size
    length = 124 * size // 224
    step = (size - length + 2) // (n - 1)
    return [(i * step, min(i * step + length, size)) for i in range(n)], length, int(length * alpha), length + (n - 1) * step


def unfold(x, mode, n, rho, alpha):
    """x (C, H, W) float64 -> [(y, x, patch)] and both axes."""
    rows, cols = (axes(mode, size, n, rho, alpha) for size in x.shape[1:])
    step = lambda length, out: 1 / alpha if mode == "paper" else length / out  # noqa: E731
    patches = []
    for y0, y1 in rows[0]:
        for x0, x1 in cols[0]:
            ly = bicubic_matrix(y1 - y0, rows[2], step(y1 - y0, rows[2]))
            lx = bicubic_matrix(x1 - x0, cols[2], step(x1 - x0, cols[2]))
            patches.append((y0, x0, ly @ x[:, y0:y1, x0:x1] @ lx.T))
    return patches, rows, cols


def ucag(raw, x, mode, n, rho, alpha, post):
    patches, rows, cols = unfold(x, mode, n, rho, alpha)
    maps, p = zip(*(raw(torch.from_numpy(patch)[None]) for *_, patch in patches))
    weight = np.exp([float(v) for v in p])
    total, count = np.zeros((rows[3], cols[3])), np.full((rows[3], cols[3]), 0.0 if mode == "paper" else 1.0)
    for (y, z, _), m, w in zip(patches, maps, weight if mode == "paper" else weight / weight.max()):
        m = m[0].numpy()
        total[y:y + rows[1], z:z + cols[1]] += bilinear_matrix(len(m), rows[1]) @ m @ bilinear_matrix(m.shape[1], cols[1]).T * w
        count[y:y + rows[1], z:z + cols[1]] += 1
    m = bilinear_matrix(rows[3], x.shape[1]) @ (total / count) @ bilinear_matrix(cols[3], x.shape[2]).T
    if post:
        m = np.maximum(m, 0)
        m = np.pad((m - m.min()) / (m.max() - m.min()), 2, mode="reflect")
        taps = np.exp(-np.arange(-2, 3) ** 2 / 18)
        m = np.apply_along_axis(np.convolve, 0, m, taps / taps.sum(), "valid")
        m = np.apply_along_axis(np.convolve, 1, m, taps / taps.sum(), "valid")
    return m


def check_network(name):
    tensors, meta = read(name)
    for key, exponent in meta["gains"].items():
        some = hashed(key, (1000,), exponent)
        assert all(some[i].item() == element(key, i) * 2.0**exponent for i in (0, 1, 2, 999)), key
    net, inputs = Net(name, tensors, meta["gains"]), meta["input"]
    for image in sorted({c["image"] for c in meta["cases"]}):
        x = tensors[f"image/{image}"].double().permute(2, 0, 1) / 255
        mean, std = (torch.tensor(inputs[k], dtype=torch.float64).view(3, 1, 1) for k in ("mean", "std"))
        x = (x - mean) / std
        print(name, "logits", image, f"{(net.forward(x[None])[0] - tensors[f'logits/{image}']).abs().max().item():.1e}")
        for case in (c for c in meta["cases"] if c["image"] == image):
            job = net.grad_cam if case["method"] == "grad-cam" else net.lrp
            raw = lambda patch: job(patch, case["class"])  # noqa: E731
            if case["mode"] == "plain":
                m = raw(x[None])[0][0].numpy()
                m = bilinear_matrix(len(m), x.shape[1]) @ m @ bilinear_matrix(m.shape[1], x.shape[2]).T
            else:
                post = case["mode"] == "release" and case["method"] == "grad-cam"
                m = ucag(raw, x.numpy(), case["mode"], case["grid"], case["rho"], case["alpha"], post)
            want = tensors[case["tensor"]].double().numpy()
            error = abs(m - want).max() / np.ptp(want)
            print(name, case["tensor"], f"{error:.1e}", "ok" if error < 1e-6 else "DIFFERS", flush=True)


def check_resize():
    tensors, meta = read("resize")
    for case in meta["unfold"]:
        x = tensors[case["in"]].permute(2, 0, 1).double().numpy()
        patches, rows, cols = unfold(x, case["mode"], case["grid"], case["rho"], case["alpha"])
        assert [rows[1], cols[1]] == case["patch"] and [rows[3], cols[3]] == case["canvas"]
        error = abs(np.stack([p for *_, p in patches]) - tensors[case["out"]].numpy()).max()
        print("resize", case["out"], f"{error:.1e}", "ok" if error < 1e-9 else "DIFFERS")


if __name__ == "__main__":
    with torch.inference_mode():
        for chosen in sys.argv[1:] or ["resize", "resnet18", "resnet50", "vgg16", "vgg11_bn"]:
            check_resize() if chosen == "resize" else check_network(chosen)
