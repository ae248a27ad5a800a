"""What the SAM family gains on Fashion-MNIST, beside the gradients it takes.

KERAS_BACKEND=jax python benchmarks/sam_accuracy.py

Every optimizer gets the same number of gradients, for which the plain one
trains twice as many epochs as SAM, and then the same number of epochs. Nothing
is tuned: the settings are those of the papers, or of their authors' codes. Each
fit is written to a file as it ends: a run that was stopped goes on after the
last one, and `--table` prints what there is so far.
"""

import argparse
import math
import pathlib

import keras
import numpy as np
from _runs import Runs
from _runs import mean_and_spread
from _timing import print_head
from _timing import print_row
from _training import machine

import keras_dlkit as dlkit

BATCH_SIZE = 64
# Name: the optimizer around the inner one, and the gradients a step.
METHODS = {
    "plain": (None, {}, 1.0),
    "SAM": ("SAM", {"rho": 0.05}, 2.0),
    "SAM, every_steps=5": ("SAM", {"rho": 0.05, "every_steps": 5}, 1.2),
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


def load(train_size, side=28):
    (x, y), (test_x, test_y) = keras.datasets.fashion_mnist.load_data()
    order = np.random.default_rng(0).permutation(len(x))[:train_size]

    def prepared(images):
        images = images.reshape(-1, side, 28 // side, side, 28 // side)
        return (images.mean(axis=(2, 4))[..., None] / 255.0).astype("float32")

    return (prepared(x[order]), y[order]), (prepared(test_x), test_y)


def network(width, side=28):
    layers = [keras.Input((side, side, 1))]
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


def fit(run, data, arguments):
    inner, method, epochs, seed = run
    keras.utils.set_random_seed(seed)
    train, test = data
    steps = epochs * math.ceil(len(train[0]) / BATCH_SIZE)
    model = dlkit.attach(network(arguments.width, arguments.side))
    model.compile(
        optimizer_of(inner, method, steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(*train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    _, accuracy = model.evaluate(*test, batch_size=1000, verbose=0)
    return {"accuracy": 100 * accuracy}


def key_of(run, arguments):
    inner, method, *_ = run
    sizes = arguments.train_size, arguments.width, arguments.side
    return [*run, settings_of(inner, method), *sizes]


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


def make_runs(runs, arguments):
    data = load(arguments.train_size, arguments.side)
    for run in runs_to_make(arguments):
        runs.once(
            key_of(run, arguments),
            lambda: fit(run, data, arguments),  # noqa: B023
        )


def beside_plain(runs, inner, method, epochs_of, arguments):
    """Results of the seeds, in pairs with those of the plain optimizer."""

    def results(name):
        epochs = epochs_of(name, arguments.epochs)
        return [
            runs.get(key_of((inner, name, epochs, seed), arguments))
            for seed in range(arguments.seeds)
        ]

    pairs = zip(results(method), results("plain"))
    return [pair for pair in pairs if None not in pair]


def accuracy_cell(pairs, method, arguments):
    """Mean and spread over the seeds, and the gain over the plain optimizer."""
    if len(pairs) < 2:
        return f"{len(pairs)} of {arguments.seeds} seeds"
    own, plain = np.transpose(
        [[own["accuracy"], plain["accuracy"]] for own, plain in pairs]
    )
    text = mean_and_spread(own)
    if method != "plain":
        gain = own - plain
        text += f" ({gain.mean():+.2f} ± {gain.std(ddof=1):.2f})"
    missing = arguments.seeds - len(pairs)
    return text + (f", {missing} seeds to come" if missing else "")


def print_table(runs, arguments):
    epochs = arguments.epochs
    print(
        f"\n{machine()}; {arguments.train_size} training images, "
        f"{arguments.seeds} seeds, images of {arguments.side} x "
        f"{arguments.side}, width {arguments.width}, batch {BATCH_SIZE}. "
        "Accuracy in %, mean and standard deviation; in brackets the gain over "
        "the plain optimizer, seed by seed.\n"
    )
    print_head(
        "optimizer",
        "gradients a step",
        f"the gradients of {2 * epochs} plain epochs",
        f"{epochs} epochs",
    )
    for inner in arguments.inner:
        for method, (_, _, gradients) in METHODS.items():
            same, equal = (
                beside_plain(runs, inner, method, epochs_of, arguments)
                for epochs_of in (same_gradients, lambda _, own: own)
            )
            print_row(
                f"{method}, {inner}",
                f"{gradients:g}",
                accuracy_cell(same, method, arguments),
                accuracy_cell(equal, method, arguments),
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    # A multiple of 3: the gradients of every fifth step come out even.
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--train-size", type=int, default=4000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--side", type=int, default=14, help="of an image: 7, 14 or 28 pixels"
    )
    parser.add_argument(
        "--inner", nargs="+", default=list(INNER), choices=INNER
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/sam_accuracy")
    )
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    runs = Runs(arguments.out)
    if not arguments.table:
        make_runs(runs, arguments)
    print_table(runs, arguments)


if __name__ == "__main__":
    main()
