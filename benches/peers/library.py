"""One process, one library of explanations, one method: prints one JSON object with the time of every sample.

Usage: library.py CACHE LIBRARY NETWORK PHOTO METHOD GRID SAMPLES THREADS MAP; grid 0 is the whole picture. Without arguments it prints
what methods each library has. They have our names and our settings. Weights are folded and frozen, so that no library spends time on
their gradients."""

import json
import sys
from pathlib import Path

import numpy as np

from ucag import MEAN, STD, chunks, softmax, timed, torch_network

LAYER = {"resnet18": "layer4", "resnet50": "layer4", "vgg16": "features.29"}
# The map is the largest absolute value of the colours; elsewhere their sum.
LARGEST = ("gradient", "guided", "deconv", "smoothgrad")
DRAWS, SIGMA, STEPS = 25, 0.15, 32
# Patches, draws or steps per call: the quickest of 1, 2 and 4; of ResNet-18 not tried.
BATCH = {"resnet18": 4, "resnet50": 4, "vgg16": 1}


class Library:
    """explain(x, k) -> maps (N, h, w) and logits (N, classes); k None means the first picture's own top class."""

    def __init__(self, cache, network, threads, method, folded=True):
        self.api, self.model = torch_network(cache, network, threads, folded)
        self.method, self.batch = method, BATCH[network]

    def classify(self, x):
        with self.api.inference_mode():
            return int(self.model(self.api.from_numpy(x)).argmax())

    def maps(self, x, k=None):
        maps, p = [], []
        for part in chunks(x, self.batch):
            values, logits = self.explain(self.api.from_numpy(part), k)
            maps.append(np.asarray(values))
            p.append(softmax(logits.detach().numpy())[:, top(logits, k)])
        return np.concatenate(maps), np.concatenate(p)

    def colourless(self, values):
        values = values.detach()
        return values.abs().amax(1) if self.method in LARGEST else values.sum(1)


def top(logits, k):
    return int(logits[0].argmax()) if k is None else k


class Captum(Library):
    """Has to be told the class: the top class of the whole picture costs one more forward pass."""

    @staticmethod
    def methods():
        from captum.attr import Deconvolution, GuidedBackprop, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency

        def of(kind):
            return lambda model, x, k, _batch: kind(model).attribute(x, target=k)

        def smooth(model, x, k, batch):
            sigma = SIGMA * (x.max() - x.min()).item()
            return NoiseTunnel(Saliency(model)).attribute(x, nt_samples=DRAWS, nt_samples_batch_size=batch, stdevs=sigma, target=k, abs=False)

        def integrated(model, x, k, batch):
            return IntegratedGradients(model).attribute(x, target=k, n_steps=STEPS, method="gausslegendre", internal_batch_size=batch)

        return {"gradient": of(Saliency), "guided": of(GuidedBackprop), "deconv": of(Deconvolution), "input-x-gradient": of(InputXGradient),
                "smoothgrad": smooth, "integrated-gradients": integrated}

    def __init__(self, cache, network, threads, method):
        super().__init__(cache, network, threads, method)
        self.attribute, self.averages = self.methods()[method], method in ("smoothgrad", "integrated-gradients")
        self.inner, self.batch = self.batch, 1 if self.averages else self.batch
        for module in self.model.modules():
            if isinstance(module, self.api.nn.ReLU):
                module.inplace = False
        self.passes = []
        self.model.register_forward_hook(lambda _model, _inputs, logits: self.passes.append(logits.detach()))

    def explain(self, x, k):
        """The first pass has the logits: it is never one of a changed picture."""
        self.passes.clear()
        if k is None or self.averages:
            with self.api.inference_mode():
                self.model(x)
        k = top(self.passes[0], None) if k is None else k
        return self.colourless(self.attribute(self.model, x, k, self.inner)), self.passes[0]


class Zennit(Library):
    # These leave batch norms as they are, as our definitions do.
    UNFOLDED = ("mwp", "lrp", "lrp-ab")

    @staticmethod
    def methods():
        """Method -> attributor of (model, x)."""
        from zennit import composites as c
        from zennit.attribution import Gradient, SmoothGrad
        from zennit.rules import WSquare
        from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
        canonizers = [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]

        def of(kind, *args, **options):
            return lambda model, x: Gradient(model, kind(*args, **options))

        def relevance(kind, *args, **options):
            return of(kind, *args, canonizers=canonizers, **options)

        def alpha_beta(alpha):
            def attributor(model, x):
                first = [(c.Convolution, c.ZBox(x.min(), x.max(), zero_params="bias"))]
                layers = c.layer_map_base() + [(c.Linear, c.AlphaBeta(alpha, alpha - 1, zero_params="bias"))]
                return Gradient(model, c.SpecialFirstLayerMapComposite(layers, first, canonizers))
            return attributor

        def box(model, x):
            low, high = (x.new_tensor((v - MEAN) / STD).view(1, 3, 1, 1) for v in (0, 1))
            return Gradient(model, c.EpsilonGammaBox(low, high, canonizers=canonizers))

        w2 = (c.layer_map_base() + [(c.Convolution, c.ZPlus()), (c.Linear, c.Epsilon())], [(c.Convolution, WSquare(zero_params="bias"))])
        return {"gradient": lambda model, x: Gradient(model),
                "smoothgrad": lambda model, x: SmoothGrad(model, noise_level=SIGMA, n_iter=DRAWS),
                "guided": of(c.GuidedBackprop), "deconv": of(c.DeconvNet),
                "mwp": relevance(c.ExcitationBackprop, layer_map=[(c.BatchNorm, c.Pass())], zero_params="bias"),
                "lrp-epsilon-plus": relevance(c.EpsilonPlus), "lrp-epsilon-plus-flat": relevance(c.EpsilonPlusFlat),
                "lrp-epsilon-alpha2-beta1": relevance(c.EpsilonAlpha2Beta1),
                "lrp-epsilon-alpha2-beta1-flat": relevance(c.EpsilonAlpha2Beta1Flat),
                "lrp-epsilon-gamma-box": box, "lrp-composite": relevance(c.SpecialFirstLayerMapComposite, *w2),
                "lrp": alpha_beta(1), "lrp-ab": alpha_beta(2)}

    def __init__(self, cache, network, threads, method="lrp-epsilon-plus"):
        super().__init__(cache, network, threads, method, folded=method not in self.UNFOLDED)
        self.attributor, self.head, self.tail = self.methods()[method], None, self.model
        self.batch = self.batch if method in LARGEST else 1
        if method == "mwp":
            self.split()

    def split(self):
        """At the output of the stage before the last, where excitation is read."""
        nn, parts = self.api.nn, [*self.model.children()]
        parts, at = (parts, 7) if len(parts) > 3 else ([*parts[0], *parts[1:]], 24)
        self.head, self.tail = nn.Sequential(*parts[:at]), nn.Sequential(*parts[at:-1], nn.Flatten(1), parts[-1])

    def explain(self, x, k):
        def start(logits):
            one = self.api.zeros_like(logits)
            one[:, top(logits, k)] = logits.detach()[:, top(logits, k)] if self.method.startswith("lrp") else 1
            return one

        if self.head:
            with self.api.no_grad():
                x = self.head(x)
        logits, relevance = self.attributor(self.tail, x)(x, start)
        return self.colourless(relevance), logits


class PytorchGradCam(Library):
    """The library's call; the raw map is taken before it is rectified. FullGrad has none."""

    @staticmethod
    def methods():
        from pytorch_grad_cam import FullGrad, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
        return {"grad-cam": GradCAM, "grad-cam++": GradCAMPlusPlus, "xgrad-cam": XGradCAM, "hires-cam": HiResCAM, "layer-cam": LayerCAM,
                "full-grad": FullGrad}

    def __init__(self, cache, network, threads, method="grad-cam", batch=None, prepared=True):
        super().__init__(cache, network, threads, method, folded=prepared)
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        self.model.requires_grad_(not prepared)
        self.target, self.batch = ClassifierOutputTarget, batch or (1 if method == "full-grad" else self.batch)

        class Raw(self.methods()[method]):
            def get_cam_image(self, *args, **kwargs):
                self.raw = super().get_cam_image(*args, **kwargs)
                return self.raw

        layers = [] if method == "full-grad" else [self.model.get_submodule(LAYER[network])]
        self.cam = Raw(model=self.model, target_layers=layers)

    def explain(self, x, k):
        result = self.cam(input_tensor=x.requires_grad_(True), targets=None if k is None else [self.target(k)] * len(x))
        return getattr(self.cam, "raw", result), self.cam.outputs


class TorchCam(Library):
    """Its own call, without its rectifier: UCAG folds raw maps."""

    @staticmethod
    def methods():
        """Without Grad-CAM++: the library divides a copy, and its map is another."""
        from torchcam.methods import GradCAM, LayerCAM, XGradCAM
        return {"grad-cam": GradCAM, "xgrad-cam": XGradCAM, "layer-cam": LayerCAM}

    def __init__(self, cache, network, threads, method):
        super().__init__(cache, network, threads, method)
        self.cam = self.methods()[method](self.model, LAYER[network])
        self.cam._relu = False

    def explain(self, x, k):
        scores = self.model(x.requires_grad_(True))
        return self.cam(top(scores, k), scores, normalized=False)[0], scores


LIBRARIES = {"captum": Captum, "zennit": Zennit, "pytorch-grad-cam": PytorchGradCam, "torchcam": TorchCam}


def main():
    if len(sys.argv) == 1:
        return print(json.dumps({name: [*library.methods()] for name, library in LIBRARIES.items()}))
    cache, name, network, photo, method, grid, samples, threads, out = sys.argv[1:]
    engine = LIBRARIES[name](Path(cache), network, int(threads), method)
    timed(engine, Path(cache) / f"{photo}.png", int(grid), int(samples), out)


if __name__ == "__main__":
    main()
