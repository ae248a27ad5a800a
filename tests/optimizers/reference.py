"""SAM in float64 NumPy, written from the papers, with numerical gradients.

A net of two dense layers with batch normalisation, L2, `add_loss` and a
dropout whose mask follows a counter, so that it can be known here. Gradients
are central differences of the loss: nothing but the forward pass is shared
with what is tested.
"""

import numpy as np

DECAY, L2, ACTIVITY, BN_EPSILON = 0.9, 0.01, 0.02, 1e-3
NAMES = ["kernel1", "gamma", "beta", "kernel2", "bias2"]
SHAPES = [(3, 4), (4,), (4,), (4, 2), (2,)]


def initial_weights(rng):
    return [0.5 * rng.normal(size=shape) for shape in SHAPES]


class Net:
    """The state that a forward pass reads and updates."""

    def __init__(self):
        self.counter = 0
        self.mean, self.variance = np.zeros(4), np.ones(4)

    def mask(self):
        return ((np.arange(4) + self.counter) % 3 != 0) * 1.5

    def hidden(self, w, x):
        return x @ w[0]

    def loss(self, w, x, y, sample_weight=None):
        h = self.hidden(w, x)
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + BN_EPSILON)
        h = np.tanh(h * w[1] + w[2]) * self.mask()
        error = ((h @ w[3] + w[4] - y) ** 2).mean(1)
        if sample_weight is not None:
            error = error * sample_weight
        return error.mean() + L2 * (w[0] ** 2).sum() + ACTIVITY * (h**2).mean()

    def update(self, w, x):
        """What a clean pass leaves behind."""
        h = self.hidden(w, x)
        self.mean = DECAY * self.mean + (1 - DECAY) * h.mean(0)
        self.variance = DECAY * self.variance + (1 - DECAY) * h.var(0)
        self.counter += 1

    def gradient(self, w, *batch, step=1e-5):
        gradients = []
        for i, weight in enumerate(w):
            g = np.zeros_like(weight)
            for index in np.ndindex(weight.shape):
                values = []
                for sign in (1, -1):
                    moved = [v.copy() for v in w]
                    moved[i][index] += sign * step
                    values.append(self.loss(moved, *batch))
                g[index] = (values[0] - values[1]) / (2 * step)
            gradients.append(g)
        return gradients


def perturbation(g, w, rho, adaptive=None, eta=0.01, selected=NAMES):
    scales = []
    for name, weight in zip(NAMES, w):
        if adaptive == "all":
            scales.append(np.abs(weight))
        elif adaptive == "weights" and not name.startswith("b"):
            scales.append(np.abs(weight) + eta)
        else:
            scales.append(np.ones_like(weight))
    chosen = [name in selected for name in NAMES]
    norm = np.sqrt(
        sum(((t * v) ** 2).sum() for t, v, c in zip(scales, g, chosen) if c)
    )
    return [
        c * rho * t**2 * v / (norm + 1e-12)
        for t, v, c in zip(scales, g, chosen)
    ]


class Momentum:
    """What MomentumSAM reads: the momentum, in the sense of the gradient."""

    sign, slot = 1, "m"

    def momentum_of(self, w):
        value = getattr(self, self.slot, None)
        zeros = [np.zeros_like(v) for v in w]
        return zeros if value is None else [self.sign * v for v in value]


class SGD(Momentum):
    sign, slot = -1, "velocity"

    def __init__(self, learning_rate, momentum=0.0):
        self.learning_rate, self.momentum = learning_rate, momentum
        self.velocity = None

    def apply(self, w, g):
        if self.velocity is None:
            self.velocity = [np.zeros_like(v) for v in w]
        self.velocity = [
            self.momentum * v - self.learning_rate * d
            for v, d in zip(self.velocity, g)
        ]
        return [a + v for a, v in zip(w, self.velocity)]


class Adam(Momentum):
    def __init__(self, learning_rate, weight_decay=0.0):
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.count = 0

    def apply(self, w, g, b1=0.9, b2=0.999, epsilon=1e-7):
        if not self.count:
            self.m = [np.zeros_like(v) for v in w]
            self.v = [np.zeros_like(v) for v in w]
        self.count += 1
        self.m = [b1 * m + (1 - b1) * d for m, d in zip(self.m, g)]
        self.v = [b2 * v + (1 - b2) * d**2 for v, d in zip(self.v, g)]
        rate = self.learning_rate * np.sqrt(1 - b2**self.count)
        rate /= 1 - b1**self.count
        w = [a * (1 - self.learning_rate * self.weight_decay) for a in w]
        return [
            a - rate * m / (np.sqrt(v) + epsilon)
            for a, m, v in zip(w, self.m, self.v)
        ]


def dot(a, b):
    return sum((x * y).sum() for x, y in zip(a, b))


def without(a, b):
    """a less its projection on b."""
    return [x - dot(a, b) / dot(b, b) * y for x, y in zip(a, b)]


class Sam:
    """The rules of a method: where to go, what to apply, what to keep."""

    def is_due(self, step, every_steps, start_step):
        return step > start_step and step % every_steps == 0

    def seek(self, g):
        return g

    def both(self, g, s):
        return s

    def one(self, g):
        return g

    def keep(self, g, v):
        """After a step: its gradient, and its s without g, or None."""


class Gsam(Sam):
    def __init__(self, alpha, minimize_fp=True):
        self.alpha, self.minimize_fp = alpha, minimize_fp

    def both(self, g, s):
        if self.minimize_fp:
            return [a - self.alpha * b for a, b in zip(s, without(g, s))]
        return [a + self.alpha * b for a, b in zip(g, without(s, g))]


class Friendly(Sam):
    def __init__(self, sigma, decay):
        self.sigma, self.decay, self.average = sigma, decay, None

    def seek(self, g):
        if self.average is None:
            return g
        return [a - self.sigma * m for a, m in zip(g, self.average)]

    def keep(self, g, v):
        old = g if self.average is None else self.average
        self.average = [
            self.decay * m + (1 - self.decay) * a for m, a in zip(old, g)
        ]


class Look(Sam):
    def __init__(self, alpha):
        self.alpha, self.v = alpha, None

    def is_due(self, step, every_steps, start_step):
        return step > start_step and (step - start_step - 1) % every_steps == 0

    def one(self, g):
        if self.v is None or not dot(self.v, self.v):
            return g
        factor = self.alpha * np.sqrt(dot(g, g) / dot(self.v, self.v))
        return [a + factor * b for a, b in zip(g, self.v)]

    def keep(self, g, v):
        self.v = self.v if v is None else v


def mean(parts, shares):
    return [sum(s * t for s, t in zip(shares, ts)) for ts in zip(*parts)]


def train(
    w,
    batches,
    optimizer,
    rho,
    *,
    method=None,
    every_steps=1,
    start_step=0,
    micro_batches=1,
    **kwargs,
):
    """Runs a method over the batches. Returns weights, the net, losses."""
    net, losses, method = Net(), [], method or Sam()
    for step, batch in enumerate(batches, start=1):
        rows = len(batch[0])
        radius = rho(step - 1) if callable(rho) else rho
        shares, loss, clean, applied, kept = [], 0.0, [], [], []
        for i in range(micro_batches):
            start, end = (k * rows // micro_batches for k in (i, i + 1))
            part = [t[start:end] for t in batch]
            shares.append((end - start) / rows)
            loss += shares[-1] * net.loss(w, *part)
            g = net.gradient(w, *part)
            clean.append(g)
            if method.is_due(step, every_steps, start_step):
                e = perturbation(method.seek(g), w, radius, **kwargs)
                s = net.gradient([a + b for a, b in zip(w, e)], *part)
                applied.append(method.both(g, s))
                kept.append(without(s, g))
            else:
                applied.append(method.one(g))
            net.update(w, part[0])
        method.keep(mean(clean, shares), mean(kept, shares) if kept else None)
        losses.append(loss)
        w = optimizer.apply(w, mean(applied, shares))
    return w, net, losses


def train_momentum_sam(w, batches, optimizer, rho, start_step=0, **kwargs):
    """One gradient a step, at the point that the momentum leads to."""
    net, losses = Net(), []
    for step, batch in enumerate(batches, start=1):
        v = optimizer.momentum_of(w)
        radius = rho(step - 1) if callable(rho) else rho
        e = perturbation(v, w, -radius * (step > start_step), **kwargs)
        point = [a + b for a, b in zip(w, e)]
        losses.append(net.loss(point, *batch))
        g = net.gradient(point, *batch)
        net.update(point, batch[0])
        w = optimizer.apply(w, g)
    return w, net, losses
