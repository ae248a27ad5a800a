"""What the SAM family gains on Fashion-MNIST, beside what it costs.

KERAS_BACKEND=jax python benchmarks/sam_accuracy.py

Every optimizer gets the same number of gradients, for which the plain one
trains twice as many epochs as SAM, and then the same number of epochs. Nothing
is tuned: the settings are those of the papers, or of their authors' codes. Each
fit is written to a file as it ends: a run that was stopped goes on after the
last one, and `--table` prints what there is so far.
"""

import argparse
import json
import math
import pathlib
import time

import keras
import numpy as np
from _timing import print_head
from _timing import print_row
from _training import machine

import keras_dlkit as dlkit

BATCH_SIZE = 64
# Name: the optimizer around the inner one, and the gradients a step.
METHODS = {
    "plain": (None, {}, 1.0),
    "SAM": ("SAM", {"rho": 0.05}, 2.0),
    "ASAM": ("SAM", {"rho": 0.5, "adaptive": "weights"}, 2.0),
    "GSAM": ("GSAM", {"rho": 0.05, "alpha": 0.4}, 2.0),
    "FriendlySAM": ("FriendlySAM", {"rho": 0.05}, 2.0),
    "LookSAM": ("LookSAM", {"rho": 0.05, "alpha": 0.2}, 1.2),
    "LookSAM, alpha=0.7": ("LookSAM", {"rho": 0.05, "alpha": 0.7}, 1.2),
    "MomentumSAM": ("MomentumSAM", {"rho": 0.3}, 1.0),
}
# What is another with another inner optimizer.
SETTINGS = {("AdamW", "MomentumSAM"): {"rho": 1.0}}
INNER = {
    "SGD": lambda rate: keras.optimizers.SGD(
        rate(0.1), momentum=0.9, weight_decay=5e-4
    ),
    "AdamW": lambda rate: keras.optimizers.AdamW(rate(1e-3), weight_decay=0.05),
}


def load(train_size):
    (x, y), (test_x, test_y) = keras.datasets.fashion_mnist.load_data()
    order = np.random.default_rng(0).permutation(len(x))[:train_size]

    def prepared(images):
        return (images[..., None] / 255.0).astype("float32")

    return (prepared(x[order]), y[order]), (prepared(test_x), test_y)


def network(width):
    layers = [keras.Input((28, 28, 1))]
    for filters in (width, 2 * width, 4 * width):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    return keras.Sequential(
        [
            *layers,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )


def settings_of(inner, method):
    _, settings, _ = METHODS[method]
    return SETTINGS.get((inner, method), settings)


def optimizer_of(inner, method, steps):
    optimizer = INNER[inner](
        lambda rate: keras.optimizers.schedules.CosineDecay(rate, steps)
    )
    wrapper, _, _ = METHODS[method]
    if wrapper is None:
        return optimizer
    return getattr(dlkit.optimizers, wrapper)(
        optimizer, **settings_of(inner, method)
    )


def fit(run, data, width):
    inner, method, epochs, seed = run
    keras.utils.set_random_seed(seed)
    train, test = data
    steps = epochs * math.ceil(len(train[0]) / BATCH_SIZE)
    model = dlkit.attach(network(width))
    model.compile(
        optimizer_of(inner, method, steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    start = time.perf_counter()
    model.fit(*train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(*test, batch_size=1000, verbose=0)
    return {"accuracy": 100 * accuracy, "seconds": seconds}


class Results:
    """The fits made so far, a line each in a file."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.path = arguments.out / f"{keras.config.backend()}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.accuracies = {
            json.dumps(result["key"]): result["accuracy"]
            for result in map(json.loads, lines)
        }

    def key(self, run):
        inner, method, *_ = run
        a = self.arguments
        return [*run, settings_of(inner, method), a.train_size, a.width]

    def get(self, run):
        return self.accuracies.get(json.dumps(self.key(run)))

    def add(self, run, result):
        key = self.key(run)
        self.accuracies[json.dumps(key)] = result["accuracy"]
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, **result}) + "\n")


def same_gradients(method, epochs):
    """The epochs with as many gradients as SAM takes in `epochs`."""
    _, _, gradients = METHODS[method]
    return round(2 * epochs / gradients)


def runs_to_make(arguments):
    # The seeds come last: what was stopped early has rows to compare.
    for seed in range(arguments.seeds):
        for inner in arguments.inner:
            for method in METHODS:
                same = same_gradients(method, arguments.epochs)
                for epochs in sorted({arguments.epochs, same}):
                    yield inner, method, epochs, seed


def make_runs(results, arguments):
    data = load(arguments.train_size)
    for run in runs_to_make(arguments):
        if results.get(run) is None:
            results.add(run, fit(run, data, arguments.width))
            print(*run, f"{results.get(run):.2f}", flush=True)


def cell(results, inner, method, epochs_of, arguments):
    """Mean and spread over the seeds, and the gain over the plain optimizer."""

    def accuracies(name):
        epochs = epochs_of(name, arguments.epochs)
        return [
            results.get((inner, name, epochs, seed))
            for seed in range(arguments.seeds)
        ]

    pairs = [
        (own, plain)
        for own, plain in zip(accuracies(method), accuracies("plain"))
        if own is not None and plain is not None
    ]
    if len(pairs) < 2:
        return f"{len(pairs)} of {arguments.seeds} seeds"
    own, plain = np.transpose(pairs)
    text = f"{own.mean():.2f} ± {own.std(ddof=1):.2f}"
    if method != "plain":
        gain = own - plain
        text += f" ({gain.mean():+.2f} ± {gain.std(ddof=1):.2f})"
    missing = arguments.seeds - len(pairs)
    return text + (f", {missing} seeds to come" if missing else "")


def print_table(results, arguments):
    epochs = arguments.epochs
    print(
        f"\n{machine()}; {arguments.train_size} training images, "
        f"{arguments.seeds} seeds, width {arguments.width}, batch "
        f"{BATCH_SIZE}. Accuracy in %, mean and standard deviation; in "
        "brackets the gain over the plain optimizer, seed by seed.\n"
    )
    print_head(
        "optimizer",
        "gradients a step",
        f"the gradients of {2 * epochs} plain epochs",
        f"{epochs} epochs",
    )
    for inner in arguments.inner:
        for method, (_, _, gradients) in METHODS.items():
            print_row(
                f"{method}, {inner}",
                f"{gradients:g}",
                cell(results, inner, method, same_gradients, arguments),
                cell(results, inner, method, lambda _, own: own, arguments),
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    # A multiple of 3: the gradients of LookSAM come out even.
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--train-size", type=int, default=4000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--inner", nargs="+", default=["SGD"], choices=INNER)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/sam_accuracy")
    )
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    results = Results(arguments)
    if not arguments.table:
        make_runs(results, arguments)
    print_table(results, arguments)


if __name__ == "__main__":
    main()
