"""AGF straight from methods.md 14: a class map and the gradient of the head's score run down together."""

import math

import torch

from relevance import SetA, z_box
from walk import apply, div9, pool_transposed, transposed, whole


def head_score(logits, k):
    """(N): softmax, at the explained class, of logits damped by their distance from it."""
    y = logits[:, k:k + 1]
    d = logits - y
    u = y * torch.exp(-0.5 * (d / d.abs().amax(1, keepdim=True)) ** 2)
    return u.softmax(1)[:, k]


def factor(u, phi):
    """What is typical of places with positive class map, less what is typical of the negative ones: (N, 1, h, w)."""
    u, phi = torch.sigmoid(10 * div9(u, whole(u, "amax"))).flatten(2), phi.flatten(2)
    typical = [(u * side).sum(2) / side.sum(2).clamp(min=1) for side in (phi < 0, phi > 0)]
    q = torch.stack(typical, 2)
    w = torch.linalg.solve(q.mT @ q + torch.eye(2, dtype=u.dtype), q.mT @ u).relu()
    return w[:, 1:2] - w[:, 0:1]


def balanced(c, r):
    """c + r with the total of c: what r brings is taken evenly from all places where c is not zero."""
    return c + r - (c != 0) * whole(r, "sum") / whole(c, "count_nonzero").clamp(min=1)


class Agf(SetA):
    """`gradients`: of the head's score, at every value of `tape`.

    A value with several readers gets the sum; the mask there is that of the ReLU or pool that gives the value."""
    div = staticmethod(div9)
    input_conv = staticmethod(z_box)

    def __init__(self, tape, gradients):
        self.tape, self.gradients = tape, gradients

    def magnitude(self, op, x, r):
        w = op.module.weight.abs()
        return x.abs() * transposed(op, w, div9(r, apply(op, w, x.abs()) * (r != 0)) * (r != 0), x)

    def linear(self, op, x, r):
        c = self.magnitude(op, x, r)
        if self.tape.ops[op.inputs[0]].kind != "flatten":
            return c
        places = self.places(op)
        m = (x * transposed(op, op.module.weight, self.gradients[op.value], x)).view(len(x), -1, places)
        m = m.mean(1, keepdim=True).relu().expand(-1, len(x[0]) // places, -1).reshape_as(c) * (c != 0)
        return balanced(c, div9(m, whole(m, "amax")))

    def places(self, op):
        """Rows times columns of the map that this linear layer reads flattened."""
        size = self.tape.ops[self.tape.ops[op.inputs[0]].inputs[0]].module.output_size
        return math.prod(size) if isinstance(size, tuple) else size**2

    def conv(self, op, x, r):
        c = self.magnitude(op, x, r)
        if op.module.kernel_size == (1, 1):
            return c
        w, g, touched = op.module.weight, self.gradients[op.value], r != 0
        m = (x * transposed(op, w, g, x)).mean(1, keepdim=True).relu()
        m = div9(m, whole(m, "amax"))
        phi = c.mean(1, keepdim=True)
        fdx, fx = (factor(u, phi).relu().view_as(phi) for u in (transposed(op, w, touched * g, x), x))
        spread = apply(op, w.abs(), torch.ones_like(x)) * touched
        a = transposed(op, w.abs(), div9(r, spread) * touched, x)
        return balanced(c, ((fx + m) / (1 + torch.exp(-c)) + fdx + a) * (c != 0))

    def relu(self, _op, x, r):
        return r * (x > 0)

    def pool(self, op, x, r):
        return x * pool_transposed(op, x, div9(r, op.module(x) * (r != 0)))

    def add(self, _op, a, b, r):
        s = div9(r, (a + b) * (r != 0))
        return a * s, b * s


def agf(tape, values, k):
    """(N, 1, H, W), divided by the largest value over (3, H, W) before the sum over channels."""
    gradients = torch.autograd.grad(head_score(values[-1], k).sum(), values, retain_graph=True)
    phi = (values[tape.head] * gradients[tape.head]).detach()
    phi = tape.walk(values, Agf(tape, gradients), tape.head, phi)
    return (phi / whole(phi, "amax")).sum(1, keepdim=True)
