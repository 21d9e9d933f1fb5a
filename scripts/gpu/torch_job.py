"""The job in PyTorch: an RGB frame on the device -> signed map of Grad-CAM with UCAG in mode `paper`, there too.

Batch norm is folded; unfold and fold are products with resampling matrices; the class is chosen on the device, so that
nothing waits for the host and the whole job can be captured. A convolution whose epilogue cuDNN fuses is an option."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

MEAN, STD, BN_EPS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1e-5
RHO, ALPHA = 0.555, 2.6
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
# Gradients below fp16's range are kept by scaling the seed; a power of two changes nothing else.
SEED_SCALE = 1024.0


# Geometry of mode `paper`, one axis at a time.


def axis(size, n):
    """Patch length, offsets, scaled length."""
    patch = math.floor(RHO * size + 1e-6)
    offsets = [math.floor(i * (size - patch) / (n - 1) + 0.5) for i in range(n)]
    return patch, offsets, math.floor(ALPHA * patch + 1e-6)


def cubic(t):
    a, t = -0.75, abs(t)
    return ((a + 2) * t - (a + 3)) * t * t + 1 if t <= 1 else (((t - 5) * t + 8) * t - 4) * a if t < 2 else 0.0


def unfold_matrix(size, n):
    """(n * scaled, size): each patch's bicubic samples, source step exactly 1/alpha, taps clamped to the patch."""
    patch, offsets, scaled = axis(size, n)
    m = np.zeros((n, scaled, size))
    for i, offset in enumerate(offsets):
        for d in range(scaled):
            s = (d + 0.5) / ALPHA - 0.5
            for tap in range(math.floor(s) - 1, math.floor(s) + 3):
                m[i, d, offset + min(max(tap, 0), patch - 1)] += cubic(s - tap)
    return m.reshape(n * scaled, size)


def fold_matrix(size, n, length):
    """(size, n * length): bilinear back to the patch's own size, placed at its offset."""
    patch, offsets, _ = axis(size, n)
    m = np.zeros((size, n, length))
    for i, offset in enumerate(offsets):
        for d in range(patch):
            s = max((d + 0.5) * length / patch - 0.5, 0.0)
            j = min(int(s), length - 1)
            m[offset + d, i, j] += 1 - (s - j)
            m[offset + d, i, min(j + 1, length - 1)] += s - j
    return m.reshape(size, n * length)


def counts(size, n):
    patch, offsets, _ = axis(size, n)
    return np.array([sum(o <= y < o + patch for o in offsets) for y in range(size)], np.float64)


class Network:
    """ResNet or VGG-16: `features` up to the layer of Grad-CAM, `head` from there to the logits."""

    def __init__(self, path, dtype, device, fused=False):
        state, self.fused = load_file(path), fused
        self.vgg = "features.0.weight" in state
        norms = [key.removesuffix(".running_var") for key in state if key.endswith(".running_var")]
        for norm in norms:
            conv = norm[:-1] + "0" if norm.endswith("downsample.1") else norm.replace("bn", "conv")
            scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + BN_EPS).sqrt()
            state[f"{conv}.bias"] = state[f"{norm}.bias"].double() - scale * state[f"{norm}.running_mean"].double()
            state[f"{conv}.weight"] = state[f"{conv}.weight"].double() * scale.view(-1, 1, 1, 1)
        self.state = {}
        for key, value in state.items():
            if ".running_" not in key and key.rpartition(".")[0] not in norms:
                value = value.to(device, dtype)
                self.state[key] = value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
        if not self.vgg:
            self.blocks = BLOCKS["resnet50" if "layer1.0.conv3.weight" in state else "resnet18"]

    def conv(self, key, x, stride=1, pad=0, relu=True, add=None):
        weight, bias = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        # Fused kernels want 16-byte pixels, which the picture's three channels are not.
        if self.fused and relu and x.shape[1] % 8 == 0:
            geometry = (stride, stride), (pad, pad), (1, 1), 1
            if add is None:
                return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
            return torch.cudnn_convolution_add_relu(x, weight, add, 1.0, bias, *geometry)
        y = F.conv2d(x, weight, bias, stride, pad)
        if add is not None:
            y += add
        return y.relu_() if relu else y

    def linear(self, key, x):
        return F.linear(x, self.state[f"{key}.weight"], self.state[f"{key}.bias"])

    def features(self, x):
        if self.vgg:
            index = 0
            for entry in VGG16:
                x = F.max_pool2d(x, 2, 2) if entry == "M" else self.conv(f"features.{index}", x, pad=1)
                index += 1 if entry == "M" else 2
            return x
        x = F.max_pool2d(self.conv("conv1", x, 2, 3), 3, 2, 1)
        for stage, count in enumerate(self.blocks, 1):
            for block in range(count):
                x = self.block(f"layer{stage}.{block}", x, 2 if stage > 1 and block == 0 else 1)
        return x

    def block(self, base, x, stride):
        skip = (
            self.conv(f"{base}.downsample.0", x, stride, relu=False)
            if f"{base}.downsample.0.weight" in self.state
            else x
        )
        if f"{base}.conv3.weight" in self.state:
            y = self.conv(f"{base}.conv2", self.conv(f"{base}.conv1", x), stride, 1)
            return self.conv(f"{base}.conv3", y, add=skip)
        return self.conv(f"{base}.conv2", self.conv(f"{base}.conv1", x, stride, 1), pad=1, add=skip)

    def head(self, a):
        if not self.vgg:
            return self.linear("fc", a.mean((2, 3)))
        x = F.adaptive_avg_pool2d(F.max_pool2d(a, 2, 2), 7).flatten(1)
        return self.linear("classifier.6", self.linear("classifier.3", self.linear("classifier.0", x).relu()).relu())

    def grad_cam(self, x, k):
        """Raw maps (N, h, w) and probabilities (N,) of the class k, a tensor of one element."""
        a = self.features(x)
        if self.vgg:

            def score(a):
                logits = self.head(a)
                return logits.index_select(1, k).float().sum() * SEED_SCALE, logits

            gradient, logits = torch.func.grad(score, has_aux=True)(a)
            weights = gradient.float().mean((2, 3)) / SEED_SCALE
        else:
            logits = self.head(a)
            # The gradient of a pooled linear head is the class's row, spread evenly over the pixels.
            weights = self.state["fc.weight"].index_select(0, k).float() / (a.shape[2] * a.shape[3])
        maps = (a.float() * weights[:, :, None, None]).sum(1)
        return maps, logits.float().softmax(1).index_select(1, k)[:, 0]


class Job:
    """`explain(frame, classify(frame))`, both on the device; `chunk` patches go through the network at a time."""

    def __init__(self, network, size, grid, dtype, device):
        self.network, self.size, self.grid, self.dtype, self.chunk = network, size, grid, dtype, grid * grid
        scale, shift = [1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD)]
        self.scale, self.shift = (torch.tensor(v, device=device).view(3, 1, 1) for v in (scale, shift))
        samples = torch.from_numpy(unfold_matrix(size, grid)).to(device, dtype)
        self.rows, self.columns = samples, samples.t().contiguous()
        self.scaled = samples.shape[0] // grid
        with torch.no_grad():
            side = network.features(torch.zeros(1, 3, self.scaled, self.scaled, device=device, dtype=dtype)).shape[2]
        place = torch.from_numpy(fold_matrix(size, grid, side)).to(device, torch.float32)
        self.place, self.place_t = place, place.t().contiguous()
        count = counts(size, grid)
        self.share = torch.from_numpy(1 / np.outer(count, count)).to(device, torch.float32)

    def normalised(self, frame):
        return torch.addcmul(self.shift, frame.permute(2, 0, 1).float(), self.scale).to(self.dtype)

    def classify(self, frame):
        """The top class of the whole picture."""
        x = self.normalised(frame)[None].contiguous(memory_format=torch.channels_last)
        return self.network.head(self.network.features(x)).argmax(1)

    def unfold(self, frame):
        n, s = self.grid, self.scaled
        y = (self.rows @ self.normalised(frame) @ self.columns).view(3, n, s, n, s)
        return y.permute(1, 3, 2, 4, 0).reshape(n * n, s, s, 3).permute(0, 3, 1, 2)

    def fold(self, maps, p):
        n, (_, h, w) = self.grid, maps.shape
        maps = (maps * p.exp()[:, None, None]).view(n, n, h, w).permute(0, 2, 1, 3).reshape(n * h, n * w)
        return self.place @ maps @ self.place_t * self.share

    def explain(self, frame, k):
        parts = [self.network.grad_cam(x, k) for x in self.unfold(frame).split(self.chunk)]
        return self.fold(*(torch.cat(v) for v in zip(*parts)))
