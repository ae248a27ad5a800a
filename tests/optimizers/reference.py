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


class SGD:
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


class Adam:
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


def train(
    w,
    batches,
    optimizer,
    rho,
    *,
    every_steps=1,
    start_step=0,
    micro_batches=1,
    **kwargs,
):
    """Runs SAM over the batches. Returns weights, the net, clean losses."""
    net, losses = Net(), []
    for step, batch in enumerate(batches, start=1):
        rows = len(batch[0])
        radius = rho(step - 1) if callable(rho) else rho
        total, loss = [np.zeros_like(v) for v in w], 0.0
        for i in range(micro_batches):
            start, end = (k * rows // micro_batches for k in (i, i + 1))
            part = [t[start:end] for t in batch]
            share = (end - start) / rows
            loss += share * net.loss(w, *part)
            g = net.gradient(w, *part)
            if step > start_step and step % every_steps == 0:
                e = perturbation(g, w, radius, **kwargs)
                g = net.gradient([a + b for a, b in zip(w, e)], *part)
            net.update(w, part[0])
            total = [t + share * v for t, v in zip(total, g)]
        losses.append(loss)
        w = optimizer.apply(w, total)
    return w, net, losses
