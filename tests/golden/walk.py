"""A network written out as a list of operations, all its values, and one walk down it for every method of relevance."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

KINDS = {nn.Conv2d: "conv", nn.Linear: "linear", nn.BatchNorm2d: "norm", nn.ReLU: "relu", nn.MaxPool2d: "pool",
         nn.AdaptiveAvgPool2d: "pool"}


class Op(NamedTuple):
    """One operation; its own number is the number of the value that it gives. Value 0 is the picture."""
    kind: str
    inputs: tuple
    module: nn.Module | None
    value: int


class Tape:
    """Batch norms stay operations of their own, so convolutions have the weights that they were trained with."""

    def __init__(self, model):
        self.ops, self.names = [Op("input", (), None, 0)], {}
        last = self.resnet(model) if hasattr(model, "layer1") else self.vgg(model)
        self.logits, self.head = last, self.ops[last].inputs[0]
        self.readers = [sum(i in op.inputs for op in self.ops) for i in range(len(self.ops))]

    def add(self, name, module, *inputs, kind=None):
        self.ops.append(Op(kind or KINDS[type(module)], inputs, module, len(self.ops)))
        self.names[name] = len(self.ops) - 1
        return self.names[name]

    def vgg(self, model):
        x = 0
        for key, module in model.features.named_children():
            x = self.add(f"features.{key}", module, x)
        x = self.add("flatten", None, self.add("avgpool", model.avgpool, x), kind="flatten")
        if isinstance(model.classifier, nn.Linear):
            return self.add("classifier", model.classifier, x)
        for key, module in model.classifier.named_children():
            if not isinstance(module, nn.Dropout):
                x = self.add(f"classifier.{key}", module, x)
        return x

    def resnet(self, model):
        x = self.add("relu", model.relu, self.add("bn1", model.bn1, self.add("conv1", model.conv1, 0)))
        x = self.add("maxpool", model.maxpool, x)
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            for key, block in model.get_submodule(layer).named_children():
                base, y, skip = f"{layer}.{key}", x, x
                count = 3 if hasattr(block, "conv3") else 2
                for i in range(1, count + 1):
                    y = self.add(f"{base}.conv{i}", block.get_submodule(f"conv{i}"), y)
                    y = self.add(f"{base}.bn{i}", block.get_submodule(f"bn{i}"), y)
                    y = self.add(f"{base}.relu{i}", block.relu, y) if i < count else y
                if block.downsample is not None:
                    skip = self.add(f"{base}.downsample.0", block.downsample[0], x)
                    skip = self.add(f"{base}.downsample.1", block.downsample[1], skip)
                x = self.add(base, block.relu, self.add(f"{base}.add", None, y, skip, kind="add"))
            self.names[layer] = x
        x = self.add("flatten", None, self.add("avgpool", model.avgpool, x), kind="flatten")
        return self.add("fc", model.fc, x)

    def forward(self, x):
        """All values by number, with the graph of autograd."""
        values = [x.detach().clone().requires_grad_(True)]
        for op in self.ops[1:]:
            inputs = [values[i] for i in op.inputs]
            if op.kind in ("add", "flatten"):
                values.append(inputs[0] + inputs[1] if op.kind == "add" else inputs[0].flatten(1))
            else:
                values.append(op.module(*inputs))
        return values

    def walk(self, values, rules, start, relevance, stop=0):
        """Relevance of value `stop` when value `start` has `relevance`. Readers of one value add up."""
        found = {start: relevance}
        for op in reversed(self.ops[stop + 1:start + 1]):
            if op.value not in found:
                continue
            r, inputs = found.pop(op.value), [values[i].detach() for i in op.inputs]
            if op.kind == "conv" and op.inputs == (0,):
                parts = rules.input_conv(op, inputs[0], r)
            elif op.kind == "flatten":
                parts = r.view_as(inputs[0])
            else:
                parts = getattr(rules, op.kind)(op, *inputs, r)
            for i, part in zip(op.inputs, parts if isinstance(parts, tuple) else (parts,)):
                found[i] = found[i] + part if i in found else part
        return found[stop]


# Linear operations without bias (`w * x` in methods.md) and their transposes (`JT_w[s]`).

def apply(op, w, x):
    if op.kind == "linear":
        return F.linear(x, w)
    return F.conv2d(x, w, None, op.module.stride, op.module.padding)


def transposed(op, w, s, x):
    if op.kind == "linear":
        return s @ w
    return nn.grad.conv2d_input(x.shape, w, s, op.module.stride, op.module.padding)


def pool_transposed(op, x, s):
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(op.module(x), x, s)[0]


# Divisions of methods.md 1.2, and reductions over everything but the batch.

def div0(a, b):
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def div9(a, b):
    shifted = b + 1e-9
    return torch.where(b == 0, 0.0, a / torch.where(shifted == 0, 1e-9, shifted))


def whole(x, reduce):
    """`reduce` (amax, amin, sum, count_nonzero) over all axes but the first, which stay as ones."""
    flat = getattr(x.flatten(1), reduce)(1)
    return flat.view(-1, *[1] * (x.dim() - 1))
