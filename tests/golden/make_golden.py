"""Writes the golden files: networks (logits and maps) and resize (resamplers alone). Usage: make_golden.py [name...]"""

import copy
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import ucag_ref as ref
from golden_nets import LAYERS, MEAN, STD, calibrated, fold_batch_norm, golden_images, load, normalise, photo

HERE = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "zennit", "numpy", "pillow", "safetensors", "scikit-image")


class Twin(NamedTuple):
    """One way to do the whole job in float32. The stored distance is the largest over all of them."""
    threads: int
    batch: int                     # patches per call
    fold_in: torch.dtype           # precision in which batch norm is folded
    layout: torch.memory_format
    fused: bool                    # normalisation as one multiplication and one addition
    onednn: bool                   # else im2col and sgemm
    noise: int = 0                 # seed of noise on every convolution's output; 0 for none


TWINS = [Twin(1, 1, torch.float64, torch.contiguous_format, False, True),
         Twin(2, 4, torch.float32, torch.contiguous_format, True, True),
         Twin(2, 9, torch.float32, torch.channels_last, False, True),
         Twin(2, 3, torch.float64, torch.contiguous_format, True, False)]
# Another order of summation moves a convolution's output by about a millionth, and near ties in max pooling then go the
# other way. One patch of vgg16 has such a tie where it counts: a few draws of noise show what that does to its map.
NOISE = 2.0 ** -20
NOISY = {"vgg16": [Twin(2, 9, torch.float64, torch.contiguous_format, False, True, noise) for noise in range(1, 5)]}
# (Width, height) of Pillow's bilinear resize: source crop and target.
RESIZES = [((97, 61), (45, 33)), ((97, 61), (96, 60)), ((160, 120), (7, 5)), ((250, 190), (31, 224)), ((31, 23), (77, 64)),
           ((40, 90), (101, 37)), ((64, 48), (64, 31)), ((64, 48), (33, 48)), ((50, 40), (1, 40)), ((50, 40), (50, 1)),
           ((1, 37), (9, 12)), ((37, 1), (12, 9)), ((3, 2), (1, 1)), ((135, 113), (267, 224)), ((200, 150), (199, 151))]
# Unfold alone, on u8 values as they are: mode, (width, height), n, rho, alpha.
UNFOLDS = [("paper", (19, 17), 2, 0.555, 2.6), ("paper", (23, 20), 3, 0.555, 1.37), ("paper", (13, 16), 2, 0.75, 3.1),
           ("release", (29, 17), 4, None, 2.6), ("release", (23, 18), 3, None, 2.6)]


def versions():
    return {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def distance(got, want):
    """Largest difference over the range and L2 difference over the L2 norm."""
    d = got.double() - want
    return {"max": (d.abs().max() / (want.max() - want.min())).item(), "l2": (d.norm() / want.norm()).item()}


def worst(distances):
    return {key: max(d[key] for d in distances) for key in ("max", "l2")}


def twins(name, base):
    """The float32 networks, folded, with torch set up for each."""
    for twin in TWINS + NOISY.get(name, []):
        torch.set_num_threads(twin.threads)
        with torch.backends.mkldnn.flags(enabled=twin.onednn):
            net = fold_batch_norm(copy.deepcopy(base).to(twin.fold_in)).float().to(memory_format=twin.layout)
            if twin.noise:
                add_noise(net, twin.noise)
            yield twin, net, lambda image: normalise(image, torch.float32, twin.fused).contiguous(memory_format=twin.layout)
    torch.set_num_threads(2)


def add_noise(net, seed):
    generator = torch.Generator().manual_seed(seed)
    def moved(_module, _input, output):
        return output * (1 + NOISE * (2 * torch.rand(output.shape, generator=generator) - 1))
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(moved)


def make_network(name):
    gains, stats = calibrated(name)
    base = load(name, gains, stats)
    exact = fold_batch_norm(copy.deepcopy(base).double())
    layer, images = LAYERS[name], golden_images()
    jobs = [("small", method, mode, 3) for method in ref.METHODS for mode in ("plain", "paper", "release")]
    if name == "resnet50":
        jobs += [("square", "grad-cam", mode, 6) for mode in ("paper", "release")]
    used = sorted({job[0] for job in jobs})
    tensors = dict(stats) | {f"image/{i}": torch.from_numpy(images[i]) for i in used}
    classes, logit_info = {}, {}
    for image in used:
        with torch.inference_mode():
            logits = exact(normalise(images[image]))[0]
            single = worst([distance(net(ready(images[image]))[0], logits) for _, net, ready in twins(name, base)])
        tensors[f"logits/{image}"] = logits.clone()
        classes[image] = int(logits.argmax())
        logit_info[image] = {"class": classes[image], "p": logits.softmax(0)[classes[image]].item()} | single

    cases, truths = [], []
    torch.set_num_threads(2)
    for image, method, mode, n in jobs:
        truth, p = ref.explain(exact, layer, normalise(images[image]), classes[image], method, mode, n)
        truths.append(truth)
        cases.append({"tensor": f"map/{image}/{method}/{mode}", "image": image, "method": method, "mode": mode,
                      "grid": 1 if mode == "plain" else n, "rho": {"paper": ref.RHO}.get(mode),
                      "alpha": None if mode == "plain" else ref.ALPHA, "class": classes[image],
                      "layer": layer if method == "grad-cam" else "input", "p": [p.min().item(), p.max().item()]})
        tensors[cases[-1]["tensor"]] = truth.float().contiguous()
    measured = [[] for _ in jobs]
    for twin, net, ready in twins(name, base):
        for job, (image, method, mode, n) in enumerate(jobs):
            got, _ = ref.explain(net, layer, ready(images[image]), classes[image], method, mode, n, twin.batch)
            measured[job].append(distance(got, truths[job]))
    for case, distances in zip(cases, measured):
        case |= worst(distances)
        print(name, json.dumps(case), "all:", [f"{d['max']:.1e}" for d in distances], flush=True)
    print(name, json.dumps(logit_info), flush=True)
    write(name, tensors, {"network": name, "gains": gains, "cases": cases, "logits": logit_info,
                          "input": {"mean": MEAN, "std": STD}, "versions": versions()})


def make_resize():
    tensors, resizes, unfolds = {}, [], []
    source = photo("coffee")
    for i, (size, target) in enumerate(RESIZES):
        crop = source.crop((130 + i, 60 + i, 130 + i + size[0], 60 + i + size[1]))
        tensors[f"in/{i}"] = torch.from_numpy(np.array(crop))
        tensors[f"out/{i}"] = torch.from_numpy(np.array(crop.resize(target, Image.Resampling.BILINEAR, reducing_gap=None)))
        resizes.append({"in": f"in/{i}", "out": f"out/{i}"})
    for i, (mode, (width, height), n, rho, alpha) in enumerate(UNFOLDS):
        crop = np.array(source.crop((250, 90, 250 + width, 90 + height)))
        x = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].double()
        out, patch, ys, xs, canvas = ref.unfold(x, mode, n, rho, alpha)
        tensors |= {f"unfold/in/{i}": torch.from_numpy(crop), f"unfold/out/{i}": out.contiguous()}
        unfolds.append({"in": f"unfold/in/{i}", "out": f"unfold/out/{i}", "mode": mode, "grid": n, "rho": rho, "alpha": alpha,
                        "patch": patch, "scaled": tuple(out.shape[2:]), "rows": ys, "columns": xs, "canvas": canvas})
        print(json.dumps(unfolds[-1]))
    write("resize", tensors, {"resize": resizes, "unfold": unfolds, "versions": versions()})


def write(name, tensors, metadata):
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    path = HERE / f"{name}.safetensors"
    save_file(tensors, path, metadata=text)
    path.chmod(0o644)
    print(path.name, path.stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or [*LAYERS, "resize"]:
        make_resize() if chosen == "resize" else make_network(chosen)
