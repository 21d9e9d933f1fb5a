"""What all workers share: UCAG in numpy (resampling as products with matrices), the torch network, and the loop that times an engine."""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
GRID, RHO, ALPHA = 6, 0.555, 2.6


def cubic(t):
    a, t = -0.75, abs(t)
    return ((a + 2) * t - (a + 3)) * t * t + 1 if t <= 1 else (((t - 5) * t + 8) * t - 4) * a if t < 2 else 0.0


def bicubic_matrix(length, out):
    m = np.zeros((out, length), np.float32)
    for d in range(out):
        s = (d + 0.5) / ALPHA - 0.5
        for tap in range(math.floor(s) - 1, math.floor(s) + 3):
            m[d, min(max(tap, 0), length - 1)] += cubic(s - tap)
    return m


def bilinear_matrix(length, out):
    m = np.zeros((out, length), np.float32)
    for d in range(out):
        s = max((d + 0.5) * length / out - 0.5, 0)
        i = min(int(s), length - 1)
        m[d, i] += 1 - (s - i)
        m[d, min(i + 1, length - 1)] += s - i
    return m


def axis(size, grid):
    patch = math.floor(RHO * size + 1e-6)
    return patch, [math.floor(i * (size - patch) / (grid - 1) + 0.5) for i in range(grid)], math.floor(ALPHA * patch + 1e-6)


def unfold(x, grid):
    (ph, ys, sh), (pw, xs, sw) = axis(x.shape[2], grid), axis(x.shape[3], grid)
    rows, columns = bicubic_matrix(ph, sh), bicubic_matrix(pw, sw).T.copy()
    return np.stack([rows @ x[0, :, y:y + ph, z:z + pw] @ columns for y in ys for z in xs])


def fold(maps, p, height, width, grid):
    (ph, ys, _), (pw, xs, _) = axis(height, grid), axis(width, grid)
    rows, columns = bilinear_matrix(maps.shape[1], ph), bilinear_matrix(maps.shape[2], pw).T.copy()
    total, count = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for m, w, (y, z) in zip(maps, np.exp(p), ((y, z) for y in ys for z in xs)):
        total[y:y + ph, z:z + pw] += w * (rows @ m @ columns)
        count[y:y + ph, z:z + pw] += 1
    return total / count


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def chunks(x, batch):
    return [x[i:i + batch] for i in range(0, len(x), batch)]


def torch_network(cache, network, threads, folded=True):
    """torchvision's network, frozen, with the cached weights."""
    import torch
    import torchvision
    from safetensors.torch import load_file
    torch.set_num_threads(threads)
    with torch.device("meta"):
        model = torchvision.models.get_model(network, weights=None)
    model.load_state_dict(load_file(cache / f"{network}.safetensors"), strict=False, assign=True)
    model.eval().requires_grad_(False)
    if folded:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "golden"))
        from golden_nets import fold_batch_norm
        model = fold_batch_norm(model)
    return torch, model


def explain(engine, image, grid):
    """uint8 (H, W, 3) -> float32 map (H, W). Grid 0 is the whole picture.

    engine.maps(x, k) -> raw maps (N, h, w) and probabilities (N,), k None meaning the first picture's own top class;
    engine.classify(x) -> that class."""
    x = ((image.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None].copy()
    height, width = image.shape[:2]
    if grid:
        k = engine.classify(x)
        return fold(*engine.maps(unfold(x, grid), k), height, width, grid)
    m = engine.maps(x)[0][0]
    return bilinear_matrix(len(m), height) @ m @ bilinear_matrix(m.shape[1], width).T


def timed(engine, photo, grid, samples, out):
    """Writes the map of `samples` warm runs after a cold one and prints their times."""
    image, times = np.array(Image.open(photo)), []
    for _ in range(1 + samples):
        start = time.perf_counter()
        result = explain(engine, image, grid)
        times.append(time.perf_counter() - start)
    np.save(out, result)
    print(json.dumps({"cold_s": times[0], "warm_s": times[1:]}))
