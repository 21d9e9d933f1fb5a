"""Writes `methods-NET.safetensors`: reference maps of every method, plain and under UCAG. Usage: make_methods.py [name...]"""

import copy
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors import safe_open

import definitions as ours
import libraries as theirs
import ucag_ref as ucag
from golden_nets import LAYERS, MEAN, STD, fold_batch_norm, load, normalise, photo
from make_golden import Twin, add_noise, distance, versions, worst, write
from walk import Tape

HERE = Path(__file__).parent
EVERYDAY = HERE.parents[1] / "weights" / "vgg16-everyday.safetensors"
GRID, RHO, ALPHA = 2, 0.7, 1.4
IMAGE = "odd"
# Crop of the photograph, chosen so that no ReLU and no max pooling is near a tie; a hundred layers deep there always is one.
CROPS = {"resnet18": (102, 7, 448, 286), "resnet50": (72, 37, 391, 295), "vgg16": (63, 13, 419, 300),
         "vgg11_bn": (60, 24, 388, 289), "everyday": (72, 37, 391, 295)}
# float32 runs: one patch and four at a time, memory layouts, folding precisions, and noise of a millionth.
def noisy(seed):
    return Twin(1, 4, torch.float64, torch.contiguous_format, False, True, seed)


TWINS = [Twin(1, 1, torch.float64, torch.contiguous_format, False, True),
         Twin(1, 4, torch.float32, torch.channels_last, True, False), noisy(1), noisy(2), noisy(3)]
# More of them where the sum of two branches is near zero in some patch, and relevance is shared in proportion to them:
# seeds of noise, and the methods that it is for where not for all.
MORE = {"resnet18": (range(4, 9), None), "resnet50": (range(4, 16), ("agf", "rap"))}
# Thirty-two passes a patch: three runs say enough.
FEWER = {"integrated-gradients": 3}
POOLS = {"vgg16": (4, 9, 16, 23, 30), "vgg11_bn": (3, 7, 14, 21, 28), "everyday": (4, 9, 16, 23, 29)}


class Net(NamedTuple):
    """One network in one precision, and what methods ask about it."""
    model: torch.nn.Module
    folded: torch.nn.Module
    tape: Tape
    layer: str                     # of class activation maps: the last ReLU before the final pool
    earlier: str                   # output of the last stage but one, where MWP and cMWP are read
    fused: list                    # of Layer-CAM over several layers
    mean: tuple
    std: tuple


class Case(NamedTuple):
    method: str
    options: dict
    level: str                     # layer, earlier or input
    job: object
    source: str
    modes: tuple = ("plain", "paper")


def cases(name, fused):
    """Every method with every published form."""
    layer = [("grad-cam++", {}, theirs.grad_cam_plus_plus, "pytorch-grad-cam"),
             ("grad-cam++", {"form": "t"}, ours.of_layer(ours.third_order_sum), "definition"),
             ("xgrad-cam", {}, theirs.xgrad_cam, "pytorch-grad-cam"),
             ("wgrad-cam", {}, ours.of_layer(ours.wgrad_cam), "definition"),
             ("layer-cam", {}, theirs.layer_cam, "pytorch-grad-cam"),
             ("layer-cam", {"layers": ",".join(fused)}, ours.fused_layer_cam, "definition"),
             ("hires-cam", {}, theirs.hires_cam, "pytorch-grad-cam"),
             *(("norm-grad", {"form": form} if form != "identity" else {}, ours.of_layer(formula), "definition")
               for form, formula in ours.NORM_GRAD.items() if form != "bias")]
    # The gradient of a pooled linear head is the same at all places of the last layer: a map of it would be flat.
    earlier = [("mwp", {}, ours.mwp, "definition"), ("cmwp", {}, ours.cmwp, "definition"),
               ("norm-grad", {"form": "bias"}, ours.of_earlier_layer(ours.NORM_GRAD["bias"]), "definition")]
    pixels = [("gradient", {}, theirs.gradient, "captum"),
              ("guided", {}, theirs.guided, "captum"),
              ("deconv", {}, theirs.deconv, "captum"),
              ("input-x-gradient", {}, theirs.input_x_gradient, "captum"),
              ("integrated-gradients", {}, theirs.integrated_gradients, "captum"),
              ("full-grad", {}, ours.full_grad, "definition"),
              ("lrp-epsilon-plus-flat", {}, theirs.named("EpsilonPlusFlat"), "zennit"),
              ("lrp-epsilon-alpha2-beta1", {}, theirs.named("EpsilonAlpha2Beta1"), "zennit"),
              ("lrp-epsilon-alpha2-beta1-flat", {}, theirs.named("EpsilonAlpha2Beta1Flat"), "zennit"),
              ("lrp-epsilon-gamma-box", {}, theirs.lrp_epsilon_gamma_box, "zennit"),
              ("lrp-composite", {"rules": "first=w2, conv=z-plus, linear=epsilon"}, theirs.lrp_first_w2, "zennit"),
              ("lrp", {}, ours.lrp, "definition"),
              ("lrp-ab", {}, ours.lrp_ab, "definition"),
              ("clrp", {}, ours.clrp, "definition"),
              ("sglrp", {}, ours.sglrp, "definition"),
              ("rap", {}, ours.rap, "definition"),
              ("rap", {"variant": "orig"}, ours.rap_original, "definition"),
              ("rsp", {}, ours.rsp, "definition"),
              ("agf", {}, ours.agf, "definition")]
    if name == "everyday":
        layer.insert(0, ("grad-cam", {}, lambda net, x, k: ucag.grad_cam(net.model, net.layer, x, k), "definition"))
        pixels.append(("lrp-epsilon-plus", {}, theirs.named("EpsilonPlus"), "zennit"))
    listed = [Case(m, o, "layer", job, source) for m, o, job, source in layer]
    listed += [Case(m, o, "layer" if m == "rsp" else "input", job, source) for m, o, job, source in pixels]
    listed += [Case(m, o, "earlier", job, source) for m, o, job, source in earlier]
    if name in ("resnet18", "vgg11_bn"):
        listed.append(Case("cameras", {}, "layer", ours.cameras, "definition", modes=("plain",)))
    return listed


def explain(net, x, k, job, mode, batch):
    """As `ucag_ref.explain`, at this file's grid."""
    size = x.shape[2:]
    if mode == "plain":
        m, p = job(net, x, k)
        return ucag.bilinear(m.detach(), size)[0, 0], p
    patches, patch, ys, xs, canvas = ucag.unfold(x, mode, GRID, RHO, ALPHA)
    maps, probs = zip(*(job(net, part, k) for part in patches.split(batch)))
    maps, p = ucag.bilinear(torch.cat(maps).detach(), patch), torch.cat(probs)
    return ucag.fold(maps * p.exp().view(-1, 1, 1, 1), patch, ys, xs, canvas, 0)[0, 0], p


def golden(name):
    """A network with hashed weights, float32, from its golden file."""
    with safe_open(HERE / f"{name}.safetensors", "pt") as file:
        gains = json.loads(file.metadata()["gains"])
        stats = {k: file.get_tensor(k) for k in file.keys() if "running_" in k}
    return load(name, gains, stats), MEAN, STD


def everyday():
    """The bundled network: VGG-16 to its last ReLU, the mean over all places and one linear layer."""
    with safe_open(EVERYDAY, "pt") as file:
        metadata, state = file.metadata(), {k: file.get_tensor(k).float() for k in file.keys()}
    model = torchvision.models.vgg16(weights=None, init_weights=False)
    model.features, model.avgpool = model.features[:30], torch.nn.AdaptiveAvgPool2d(1)
    model.classifier = torch.nn.Linear(512, len(state["classifier.bias"]))
    for module in model.features:
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    model.load_state_dict(state)
    return model.eval().requires_grad_(False), *(json.loads(metadata[f"ucag.{key}"]) for key in ("mean", "std"))


def prepared(name, base, mean, std, twin=None):
    """In float64, or as one of the float32 twins."""
    if twin is None:
        model = copy.deepcopy(base).double()
        folded = fold_batch_norm(copy.deepcopy(model))
    else:
        model = copy.deepcopy(base).to(memory_format=twin.layout)
        folded = fold_batch_norm(copy.deepcopy(base).to(twin.fold_in)).float().to(memory_format=twin.layout)
        if twin.noise:
            add_noise(model, twin.noise)
            add_noise(folded, twin.noise)
    if name.startswith("resnet"):
        layer, earlier, fused = "layer4", "layer3", [f"layer{i}" for i in range(1, 5)]
    else:
        layer, fused = LAYERS.get(name, "features.29"), [f"features.{i}" for i in POOLS[name]]
        earlier = fused[3]
    return Net(model, folded, Tape(model), layer, earlier, fused, mean, std)


def make(name):
    base, mean, std = everyday() if name == "everyday" else golden(name)
    exact = prepared(name, base, mean, std)
    picture = np.array(photo("chelsea").crop(CROPS[name]).resize((83, 67), Image.Resampling.BILINEAR))
    x = normalise(picture, mean=mean, std=std)
    with torch.no_grad():
        k = int(exact.model(x).argmax())
    tensors, listed, jobs = {f"image/{IMAGE}": torch.from_numpy(picture)}, [], []
    for case in cases(name, exact.fused):
        for mode in case.modes:
            began = time.time()
            truth, p = explain(exact, x, k, case.job, mode, 2)
            options = "".join(f",{key}={value}" for key, value in case.options.items())
            tensor = f"map/{IMAGE}/{case.method}{options}/{mode}"
            tensors[tensor] = truth.float().contiguous()
            layer = {"layer": exact.layer, "earlier": exact.earlier, "input": "input"}[case.level]
            plain = mode == "plain"
            listed.append({"tensor": tensor, "image": IMAGE, "method": case.method, "set": case.options, "mode": mode,
                           "grid": 1 if plain else GRID, "rho": None if plain else RHO, "alpha": None if plain else ALPHA,
                           "class": k, "layer": layer, "p": [p.min().item(), p.max().item()], "from": case.source})
            jobs.append((case, mode, truth))
            print(name, tensor, f"{time.time() - began:.1f} s", f"{truth.min():.3g} .. {truth.max():.3g}", flush=True)
    measured = [[] for _ in jobs]
    seeds, heavy = MORE.get(name, ((), None))
    for i, twin in enumerate(TWINS + [noisy(seed) for seed in seeds]):
        with torch.backends.mkldnn.flags(enabled=twin.onednn):
            net = prepared(name, base, mean, std, twin)
            ready = normalise(picture, torch.float32, twin.fused, mean, std).contiguous(memory_format=twin.layout)
            for (case, mode, truth), distances in zip(jobs, measured):
                if i >= FEWER.get(case.method, 99) or i >= len(TWINS) and heavy and case.method not in heavy:
                    continue
                distances.append(distance(explain(net, ready, k, case.job, mode, twin.batch)[0], truth))
    for case, distances in zip(listed, measured):
        case |= worst(distances)
        print(name, case["tensor"], f"max {case['max']:.1e} l2 {case['l2']:.1e}", [f"{d['max']:.1e}" for d in distances],
              "ILL" if case["max"] > 5e-2 else "", flush=True)
    write(f"methods-{name}", tensors, {
        "network": "vgg16" if name == "everyday" else name, "cases": listed, "input": {"mean": mean, "std": std},
        "versions": versions() | {p: version(p) for p in ("captum", "grad-cam")}})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or [*LAYERS, "everyday"]:
        make(chosen)
