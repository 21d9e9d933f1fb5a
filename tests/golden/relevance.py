"""Rules of relevance straight from methods.md: excitation backprop (5), set A (10.4), RAP (12) and RSP (13).

Slow on purpose: nothing is shared with the engine, and every sum or maximum is over one sample. Convolutions have the
weights that they were trained with: batch norms are operations of their own, and identities here."""

import torch
from torch import nn

from walk import apply, div0, div9, pool_transposed, transposed, whole


def z_box(op, x, r):
    """z^B with the sample's own smallest and largest value as bounds."""
    w, low, high = op.module.weight, whole(x, "amin").expand_as(x), whole(x, "amax").expand_as(x)
    up, down = w.clamp(min=0), w.clamp(max=0)
    s = div9(r, apply(op, w, x) - apply(op, up, low) - apply(op, down, high))
    return x * transposed(op, w, s, x) - low * transposed(op, up, s, x) - high * transposed(op, down, s, x)


class SetA:
    """The alpha-beta code of RAP, AGF and UCAG: every product has a denominator of its own, biases are ignored."""
    div = staticmethod(div0)
    input_conv = staticmethod(z_box)

    def __init__(self, alpha=1):
        self.alpha = alpha

    def linear(self, op, x, r):
        up, down, xp, xn = op.module.weight.clamp(min=0), op.module.weight.clamp(max=0), x.clamp(min=0), x.clamp(max=0)
        share = lambda v, w: v * transposed(op, w, self.div(r, apply(op, w, v)), v)  # noqa: E731
        active = share(xp, up) + share(xn, down)
        return active if self.alpha == 1 else \
            self.alpha * active - (self.alpha - 1) * (share(xp, down) + share(xn, up))

    conv = linear

    def norm(self, _op, _x, r):
        return r

    relu = norm

    def pool(self, op, x, r):
        return x * pool_transposed(op, x, self.div(r, op.module(x)))

    def add(self, _op, a, b, r):
        s = self.div(r, a + b)
        return a * s, b * s


class Excitation(SetA):
    """MWP: winning probabilities flow through positive weights. `negated` turns the weights of layer `head` round."""

    def __init__(self, negated=None):
        self.negated = negated

    def linear(self, op, x, r):
        w = (-op.module.weight if op.value == self.negated else op.module.weight).clamp(min=0)
        return x * transposed(op, w, r / (apply(op, w, x) + 1e-20), x)

    conv = linear

    def relu(self, _op, x, r):
        return r * (x > 0)

    def pool(self, op, x, r):
        if isinstance(op.module, nn.MaxPool2d):
            return pool_transposed(op, x, r)
        return x * pool_transposed(op, x, r / (op.module(x) + 1e-20))


class Rap(SetA):
    """Relative attributing propagation. `original`: the repository's own rule for 1x1 convolutions, not AGF's."""

    def __init__(self, original):
        self.original = original

    def linear(self, op, x, r):
        assert x.min() >= 0
        touched, up, down = r != 0, op.module.weight.clamp(min=0), -op.module.weight.clamp(max=0)
        back = lambda w, s: transposed(op, w, s * touched, x)  # noqa: E731
        p, q = apply(op, up, x) * touched, apply(op, down, x) * touched
        plus, minus = r.clamp(min=0), r.clamp(max=0)
        c = back(up, div0(plus, p)) + back(down, (q != 0) * div0(plus, p + q)) + back(down, (q != 0) * div0(minus, p + q))
        c = x * (c + (back(down, div0(minus, q)) if op.kind == "conv" else back(up, div0(minus, p))))
        return shifted(c, whole(c, "sum") - whole(r, "sum"))

    def conv(self, op, x, r):
        if op.module.kernel_size != (1, 1) or self.original:
            return self.linear(op, x, r)
        w = op.module.weight.abs()
        return x.abs() * transposed(op, w, div9(r, apply(op, w, x.abs()) * (r != 0)), x)


def shifted(c, surplus):
    """Takes `surplus` evenly from all values that are not zero."""
    return c - (c != 0) * surplus / whole(c, "count_nonzero").clamp(min=1)


class Rsp(SetA):
    """Relative sectional propagation: weights are correlations of the input with the relevance, sample by sample."""

    def conv(self, op, x, r):
        return torch.cat([self.of_one(op, x[i:i + 1].clamp(min=0), r[i:i + 1]) for i in range(len(x))])

    def of_one(self, op, x, r):
        def side(part):
            v = nn.grad.conv2d_weight(x, op.module.weight.shape, part, op.module.stride, op.module.padding)
            return transposed(op, v, div0(part, apply(op, v, x) * (part != 0)), x)
        c = x * (side(r.clamp(min=0)) - side((-r).clamp(min=0)))
        return c if op.module.kernel_size == (1, 1) else shifted(2 * c, whole(r, "sum"))

    def pool(self, op, x, r):
        x = x + 1e-9
        return x * pool_transposed(op, x, div0(r, op.module(x)))

    def add(self, op, a, b, r):
        return super().add(op, a.clamp(min=0) + 1e-9, b.clamp(min=0) + 1e-9, r)
