"""Parts alone and together in one `fit`, on Fashion-MNIST: gain and cost.

KERAS_BACKEND=jax python benchmarks/composed.py

One network with two outputs learns the class of an image, at half its size, and
where the middle of its ink is. Every row has the same network, data, inner
optimizer and number of epochs, with right labels and with a share of the
training labels made wrong; the labels of the test are right. Nothing is tuned:
the settings are those of the papers. The rounds of `LotteryTicket` have as many
epochs each as the other rows have in all. Each fit is written to a file as it
ends, and a run that was stopped goes on after the last one.
"""

import argparse
import pathlib
import time

import keras
import numpy as np
from _runs import Runs
from _runs import mean_and_spread
from _timing import print_head
from _timing import print_row
from _training import machine

import keras_dlkit as dlkit

BATCH_SIZE = 64
# With SGD at 0.05 the error of the second task begins by spoiling the network.
LEARNING_RATE = 3e-3
SIDE = 14
ROUNDS = 3
PARTS = {
    "plain": (),
    "SAM": ("SAM",),
    "MixUp": ("MixUp",),
    "CutMix": ("CutMix",),
    "UncertaintyWeighting": ("weights",),
    "HypersphericalEnergy": ("energy",),
    "LotteryTicket": ("ticket",),
    "SAM + MixUp": ("SAM", "MixUp"),
    "SAM + CutMix": ("SAM", "CutMix"),
    "SAM + MixUp + weights + energy": ("SAM", "MixUp", "weights", "energy"),
    "all of these + ticket": ("SAM", "MixUp", "weights", "energy", "ticket"),
}


def load(train_size):
    (x, y), (test_x, test_y) = keras.datasets.fashion_mnist.load_data()
    order = np.random.default_rng(0).permutation(len(x))[:train_size]
    return prepared(x[order], y[order]), prepared(test_x, test_y)


def prepared(images, labels):
    """Images of half the size; classes, one-hot, and the middle of the ink."""
    images = images.reshape(-1, SIDE, 2, SIDE, 2).mean(axis=(2, 4))
    images = (images[..., None] / 255.0).astype("float32")
    ink = images[..., 0] / images.sum(axis=(1, 2, 3))[:, None, None]
    place = np.linspace(-1, 1, SIDE)
    middle = np.stack([ink.sum(2) @ place, ink.sum(1) @ place], axis=1)
    targets = {
        "class": np.eye(10, dtype="float32")[labels],
        "middle": middle.astype("float32"),
    }
    return images, targets


def with_wrong_labels(targets, share, seed):
    """A share of the classes is another one, each as likely."""
    rng = np.random.default_rng([seed, 1])
    labels = targets["class"].argmax(axis=1)
    wrong = rng.random(len(labels)) < share
    shift = rng.integers(1, 10, size=len(labels))
    labels = np.where(wrong, (labels + shift) % 10, labels)
    return {**targets, "class": np.eye(10, dtype="float32")[labels]}


def network(width):
    x = inputs = keras.Input((SIDE, SIDE, 1))
    for filters in (width, 2 * width, 4 * width):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {
        "class": keras.layers.Dense(10, "softmax", name="class")(x),
        "middle": keras.layers.Dense(2, name="middle")(x),
    }
    return keras.Model(inputs, outputs)


def compiled(names, steps, width):
    net = network(width)
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps),
        weight_decay=5e-4,
    )
    if "SAM" in names:
        optimizer = dlkit.optimizers.SAM(optimizer, rho=0.05)
    if "energy" in names:
        energy = dlkit.regularizers.HypersphericalEnergy(0.1)
        dlkit.regularizers.regularize(net, energy, include="conv2d")
    parts = []
    if "MixUp" in names:
        parts.append(dlkit.layers.MixUp(0.2))
    if "CutMix" in names:
        parts.append(dlkit.layers.CutMix(1.0))
    if "weights" in names:
        kinds = {"class": "classification", "middle": "regression"}
        parts.append(dlkit.losses.UncertaintyWeighting(kinds))
    model = dlkit.attach(net, *parts)
    model.compile(
        optimizer,
        loss={"class": "categorical_crossentropy", "middle": "mse"},
        metrics={"class": ["accuracy"]},
    )
    return model


def fit(name, share, seed, data, arguments):
    keras.utils.set_random_seed(seed)
    (x, y), (test_x, test_y) = data
    names, epochs = PARTS[name], arguments.epochs
    steps_per_epoch = -(-len(x) // BATCH_SIZE)
    # Each round of tickets but the first begins where its second epoch did.
    last = epochs + ("ticket" in names)
    model = compiled(names, last * steps_per_epoch, arguments.width)
    callbacks = []
    if "ticket" in names:
        callbacks.append(
            dlkit.callbacks.LotteryTicket(
                ROUNDS, epochs, rewind=steps_per_epoch
            )
        )
        epochs *= ROUNDS
    start = time.perf_counter()
    model.fit(
        x,
        with_wrong_labels(y, share, seed),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        callbacks=callbacks,
        verbose=0,
    )
    seconds = time.perf_counter() - start
    predicted = model.predict(test_x, batch_size=1000, verbose=0)
    right = predicted["class"].argmax(1) == test_y["class"].argmax(1)
    gap = predicted["middle"] - test_y["middle"]
    return {
        "accuracy": 100 * float(right.mean()),
        "rmse": float(np.sqrt(np.mean(gap**2))),
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--train-size", type=int, default=4000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--wrong", type=float, default=0.4)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/composed")
    )
    arguments = parser.parse_args()
    data = load(arguments.train_size)
    runs = Runs(arguments.out)
    size = [arguments.epochs, arguments.train_size, arguments.width]

    def column(name, share, field):
        return [
            runs.once(
                [name, share, seed, *size],
                lambda: fit(name, share, seed, data, arguments),  # noqa: B023
            )[field]
            for seed in range(arguments.seeds)
        ]

    rows = [
        (
            name,
            mean_and_spread(column(name, 0.0, "accuracy")),
            mean_and_spread(column(name, arguments.wrong, "accuracy")),
            mean_and_spread(column(name, 0.0, "rmse"), 4),
            f"{np.median(column(name, 0.0, 'seconds')):.0f}",
        )
        for name in PARTS
    ]
    print(
        f"\n{machine()}; {arguments.train_size} training images, "
        f"{arguments.epochs} epochs, {arguments.seeds} seeds, width "
        f"{arguments.width}, batch {BATCH_SIZE}\n"
    )
    print_head(
        "parts",
        "accuracy, %",
        f"accuracy, {100 * arguments.wrong:.0f}% wrong labels",
        "error of the second task",
        "seconds a fit",
    )
    for row in rows:
        print_row(*row)


if __name__ == "__main__":
    main()
