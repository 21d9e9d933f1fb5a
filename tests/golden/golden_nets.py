"""The networks behind the golden files: hashed weights, chosen gains, measured batch-norm statistics."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.nn import BatchNorm2d, Conv2d, Identity, Linear, ReLU
from torch.nn.utils.fusion import fuse_conv_bn_eval

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Network -> target layer of Grad-CAM (its output after ReLU).
LAYERS = {"resnet18": "layer4", "resnet50": "layer4", "vgg16": "features.29", "vgg11_bn": "features.27"}
LOGIT_SPREAD = 3.5
GOLDEN, MIX1, MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & (2**64 - 1)
    return value


def hashed(key, shape, exponent):
    """Element i is u(key, i) * 2^exponent with u in [-1, 1) from splitmix64: exact in float32."""
    count, chunk = math.prod(shape), 1 << 24
    out = np.empty(count, np.float32)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        z = np.arange(start + 1, stop + 1, dtype=np.uint64)
        z *= np.uint64(GOLDEN)
        z += np.uint64(fnv1a(key))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX2)
        z ^= z >> np.uint64(31)
        signed = (z >> np.uint64(40)).astype(np.int32) - (1 << 23)
        out[start:stop] = signed.astype(np.float32) * np.float32(2.0 ** (exponent - 23))
    return torch.from_numpy(out.reshape(shape))


def photo(name):
    """One of the photographs that come with scikit-image (not imported, only read)."""
    folder = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    return Image.open(folder / f"{name}.png").convert("RGB")


def golden_images():
    """small: odd, not square, 113x135. square: 224x224. Both uint8 (H, W, 3)."""
    small = photo("chelsea").crop((70, 20, 430, 300)).resize((135, 113), Image.Resampling.BILINEAR)
    square = photo("coffee").crop((130, 0, 530, 400)).resize((224, 224), Image.Resampling.BILINEAR)
    return {"small": np.array(small), "square": np.array(square)}


def normalise(image, dtype=torch.float64, fused=False, mean=MEAN, std=STD):
    """uint8 (H, W, 3) -> normalised (1, 3, H, W), computed in `dtype`; `fused` as one multiplication and one addition."""
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(dtype)
    if fused:
        scale = [1 / (255 * s) for s in std]
        shift = [-m / s for m, s in zip(mean, std)]
        return x * torch.tensor(scale, dtype=dtype).view(1, 3, 1, 1) + torch.tensor(shift, dtype=dtype).view(1, 3, 1, 1)
    mean, std = (torch.tensor(v, dtype=dtype).view(1, 3, 1, 1) for v in (mean, std))
    return (x / 255 - mean) / std


def calibration_batch():
    """Eight crops of 160x160 from three photographs, at two scales."""
    boxes = [("chelsea", 0, 0, 160), ("chelsea", 100, 60, 224), ("chelsea", 220, 90, 160), ("coffee", 20, 40, 300),
             ("coffee", 250, 120, 160), ("coffee", 200, 0, 224), ("astronaut", 150, 20, 224), ("astronaut", 60, 230, 280)]
    crops = [photo(n).crop((x, y, x + s, y + s)).resize((160, 160), Image.Resampling.BILINEAR) for n, x, y, s in boxes]
    return torch.cat([normalise(np.array(crop)) for crop in crops])


def architecture(name):
    model = getattr(torchvision.models, name)(weights=None, init_weights=False) if name.startswith("vgg") else \
        getattr(torchvision.models, name)(weights=None)
    for module in model.modules():
        if isinstance(module, ReLU):
            module.inplace = False
    return model.eval().requires_grad_(False)


def calibrated(name):
    """Chooses the gains layer by layer on photographs and measures the batch-norm statistics in the same pass.

    Returns (gains, stats): exponents by key, float32 running means and variances by key."""
    model, gains = architecture(name).double(), {}
    head = [m for m in model.modules() if isinstance(m, Linear)][-1]

    def choose(key):
        def hook(module, inputs):
            op = torch.nn.functional.linear if isinstance(module, Linear) else module._conv_forward
            weight = hashed(f"{key}.weight", module.weight.shape, 0).double()
            y = op(inputs[0], weight, None)
            size = y.std(dim=1).mean() / LOGIT_SPREAD if module is head else y.square().mean().sqrt()
            exponent = -round(math.log2(size.item()))
            gains[f"{key}.weight"] = exponent
            module.weight.copy_(weight * 2.0**exponent)
            if module.bias is not None:
                gains[f"{key}.bias"] = -3
                module.bias.copy_(hashed(f"{key}.bias", module.bias.shape, -3))
        return hook

    for key, module in model.named_modules():
        if isinstance(module, (Conv2d, Linear)):
            module.register_forward_pre_hook(choose(key))
        elif isinstance(module, BatchNorm2d):
            gains |= {f"{key}.weight": 0, f"{key}.bias": -2}
            module.weight.copy_(hashed(f"{key}.weight", module.weight.shape, 0))
            module.bias.copy_(hashed(f"{key}.bias", module.bias.shape, -2))
            module.momentum = None
            module.train()
    with torch.inference_mode():
        model(calibration_batch())
    stats = {k: v.float().contiguous() for k, v in model.state_dict().items() if "running_" in k}
    return gains, stats


def load(name, gains, stats):
    """The network in float32 as any reader of the golden file would build it."""
    model = architecture(name)
    state = {k: hashed(k, v.shape, gains[k]) for k, v in model.state_dict().items() if k in gains}
    missing, unexpected = model.load_state_dict(state | stats, strict=False)
    assert not unexpected and all(k.endswith("num_batches_tracked") for k in missing), (missing, unexpected)
    return model


def fold_batch_norm(model):
    """Folds every batch norm, with its eps, into the convolution before it. In place, in the model's own precision."""
    modules = list(model.named_modules())
    for (conv_key, conv), (norm_key, norm) in zip(modules, modules[1:]):
        if isinstance(norm, BatchNorm2d):
            model.set_submodule(conv_key, fuse_conv_bn_eval(conv, norm))
            model.set_submodule(norm_key, Identity())
    assert not any(isinstance(m, BatchNorm2d) for m in model.modules())
    return model.eval().requires_grad_(False)
