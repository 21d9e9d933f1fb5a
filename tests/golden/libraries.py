"""Methods by the libraries that have them as specified: zennit, captum and pytorch-grad-cam, around (net, x, k)."""

import warnings

import torch
from captum.attr import Deconvolution, GuidedBackprop, InputXGradient, IntegratedGradients, Saliency
from pytorch_grad_cam import GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from zennit import composites
from zennit.composites import SpecialFirstLayerMapComposite, layer_map_base
from zennit.rules import Epsilon, WSquare, ZPlus
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
from zennit.types import Convolution

from definitions import at, run

STEPS = 32


def captum(attribute, reduce):
    """`attribute`: (network, x, k) -> (N, 3, H, W)."""
    def method(net, x, k):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = attribute(net.model, x.clone().requires_grad_(True), k).detach()
        with torch.no_grad():
            return reduce(values), net.model(x).softmax(1)[:, k]
    return method


def largest(d):
    return d.abs().amax(1, keepdim=True)


def channels(d):
    return d.sum(1, keepdim=True)


def integrated(model, x, k):
    return IntegratedGradients(model).attribute(
        x, torch.zeros_like(x), target=k, n_steps=STEPS, method="gausslegendre", internal_batch_size=8)


gradient = captum(lambda model, x, k: Saliency(model).attribute(x, target=k, abs=False), largest)
guided = captum(lambda model, x, k: GuidedBackprop(model).attribute(x, target=k), largest)
deconv = captum(lambda model, x, k: Deconvolution(model).attribute(x, target=k), largest)
input_x_gradient = captum(lambda model, x, k: InputXGradient(model).attribute(x, target=k), channels)
integrated_gradients = captum(integrated, channels)


# pytorch-grad-cam: its weights or its raw map, before it rectifies and normalises.

def of_weights(cam):
    def method(net, x, k):
        values, p = run(net, x, k)
        a, g = at(net, values, net.layer, k)
        weights = torch.from_numpy(cam.get_cam_weights(None, None, None, None, a.numpy(), g.numpy()))
        return (weights[:, :, None, None] * a).sum(1, keepdim=True), p
    return method


def of_image(cam):
    def method(net, x, k):
        values, p = run(net, x, k)
        a, g = at(net, values, net.layer, k)
        return torch.from_numpy(cam.get_cam_image(None, None, None, None, a.numpy(), g.numpy(), False))[:, None], p
    return method


grad_cam_plus_plus, xgrad_cam = of_weights(GradCAMPlusPlus), of_weights(XGradCAM)
layer_cam, hires_cam = of_image(LayerCAM), of_image(HiResCAM)


# zennit: on the network with folded batch norms, from the logit's value.

def zennit(composite):
    """`composite`: (net, dtype, canonizers) -> zennit's composite."""
    def method(net, x, k):
        canonizers = [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]
        x = x.clone().requires_grad_(True)
        with composite(net, x.dtype, canonizers).context(net.folded) as modified:
            logits = modified(x)
            start = torch.zeros_like(logits)
            start[:, k] = logits.detach()[:, k]
            relevance, = torch.autograd.grad(logits, x, start)
        return channels(relevance.detach()), logits.detach().softmax(1)[:, k]
    return method


def named(name):
    return zennit(lambda _net, _dtype, canonizers: getattr(composites, name)(canonizers=canonizers))


def gamma_box(net, dtype, canonizers):
    low, high = (torch.tensor([(v - m) / s for m, s in zip(net.mean, net.std)], dtype=dtype).view(1, 3, 1, 1) for v in (0, 1))
    return composites.EpsilonGammaBox(low, high, canonizers=canonizers)


def first_w2(_net, _dtype, canonizers):
    """`zero_params`: zennit would add the squared bias to the denominator, methods.md 10.1 does not."""
    layers = layer_map_base() + [(Convolution, ZPlus()), (torch.nn.Linear, Epsilon())]
    return SpecialFirstLayerMapComposite(layers, [(Convolution, WSquare(zero_params=["bias"]))], canonizers)


lrp_epsilon_gamma_box, lrp_first_w2 = zennit(gamma_box), zennit(first_w2)
