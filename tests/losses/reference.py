"""Two regressions on one linear layer, in float64, with their gradients."""

import keras
import numpy as np
from keras import layers

RATE = 0.05
ROWS, STEPS = 8, 6


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS * STEPS, 4))
    a = x[:, :1] - 2.0 * x[:, 1:2] + 0.3 * rng.normal(size=(len(x), 1))
    b = 3.0 * x[:, 2:3] - x[:, :1] + 0.9 * rng.normal(size=(len(x), 1))
    return [v.astype("float32") for v in (x, a, b)]


def network():
    keras.utils.set_random_seed(1)
    x = keras.Input((4,))
    h = layers.Dense(3, use_bias=False, kernel_regularizer="l2")(x)
    outputs = {
        name: layers.Dense(1, use_bias=False, name=name)(h) for name in "ab"
    }
    return keras.Model(x, outputs)


class Reference:
    """Plain SGD on `sum(w * L)` plus the L2 of the first kernel.

    `method` has `weigh(losses, gradients)`, and what it likes of `after(losses
    before, losses after)` and `epoch()`.
    """

    def __init__(self, weights, method):
        self.weights = [np.asarray(w, "float64") for w in weights]
        self.method = method
        self.logged = []

    def losses(self, x, targets):
        kernel, *heads = self.weights
        return np.array(
            [
                np.mean((x @ kernel @ head - y) ** 2)
                for head, y in zip(heads, targets)
            ]
        )

    def gradients(self, x, targets):
        """A flat vector for each task."""
        kernel, *heads = self.weights
        rows = []
        for index, (head, y) in enumerate(zip(heads, targets)):
            error = 2.0 * (x @ kernel @ head - y) / y.size
            parts = [np.zeros_like(w) for w in self.weights]
            parts[0] = x.T @ error @ head.T
            parts[1 + index] = (x @ kernel).T @ error
            rows.append(np.concatenate([p.ravel() for p in parts]))
        return np.array(rows)

    def step(self, x, *targets):
        losses, gradients = self.losses(x, targets), self.gradients(x, targets)
        w = self.method.weigh(losses, gradients)
        self.logged.append(w)
        flat = w @ gradients
        start = 0
        moved = []
        for index, weight in enumerate(self.weights):
            g = flat[start : start + weight.size].reshape(weight.shape)
            start += weight.size
            if index == 0:
                g = g + 2 * 0.01 * weight
            moved.append(weight - RATE * g)
        self.weights = moved
        if hasattr(self.method, "after"):
            self.method.after(losses, self.losses(x, targets))

    def fit(self, epochs, x, *targets):
        for _ in range(epochs):
            if hasattr(self.method, "epoch"):
                self.method.epoch()
            for start in range(0, len(x), ROWS):
                rows = slice(start, start + ROWS)
                self.step(x[rows], *[t[rows] for t in targets])


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()
