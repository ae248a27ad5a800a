"""
Title: MixUp, CutMix and a choice of the two
Author: the keras_dlkit developers
Date created: 2026/11/22
Last modified: 2026/11/22
Description: Four ways to train on few images, with pictures of what is mixed.
Accelerator: None

A small convolutional network learns from few images in four ways: plainly,
with `MixUp` (blends of pairs of images), with `CutMix` (a box of one image in
another), and with `RandomChoice`, which draws one of the two for each batch.
All else is the same for all: network, data, epochs, optimizer, learning rate.
The settings are those of the papers for small images, not tuned to this data;
the test images are looked at once, with the weights of the last epoch.

Labels are integers throughout: the parts make them one-hot, in training and
evaluation. Training accuracy is that of the dominant label of each mixed
image, so that it can be read.

Expect no gain on the digits: plain training is at 98% there, and what the
methods differ by is no more than what the seeds do. Mixing pays in long fits
of large networks, which would learn the images by heart, and with wrong labels
(see `quickstart.py`).

```bash
python examples/mixing.py
python examples/mixing.py --data fashion_mnist --epochs 30  # minutes
KERAS_BACKEND=jax python examples/mixing.py
```
"""

import argparse
import pathlib
import time
from typing import NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure
from quickstart import KERAS_DATASETS
from quickstart import build_network
from quickstart import load
from quickstart import markdown
from quickstart import spread

import keras_dlkit as dlkit

BATCH_SIZE = 32
# Distinct for all kinds of colour vision (Okabe and Ito).
COLORS = {
    "plain": "#555555",
    "MixUp": "#E69F00",
    "CutMix": "#0072B2",
    "RandomChoice": "#009E73",
}


"""
## Data

The 1,797 digits of 8 x 8 pixels that come with scikit-learn, of which few are
learned from, or a data set of Keras by its name.
"""


def take(name, train_size, test_size):
    """Images in [0, 1] and integer labels: to learn from, and of the test."""

    def some(images, labels, count):
        order = np.random.default_rng(0).permutation(len(labels))[:count]
        images = (images[order] / images.max()).astype("float32")
        if images.ndim == 3:
            images = images[..., None]
        return images, labels[order].ravel().astype("int32")

    train, test = load(name)
    return some(*train, train_size), some(*test, test_size)


"""
## Model

An ordinary network. What is mixed is a part that `attach` puts before its
training step; evaluation and prediction are as ever.
"""


def make_part(method, classes, seed=None):
    arguments = {"num_classes": classes, "dominant_metrics": True, "seed": seed}
    if method == "MixUp":
        return dlkit.layers.MixUp(1.0, **arguments)
    if method == "CutMix":
        return dlkit.layers.CutMix(1.0, **arguments)
    parts = [make_part(name, classes, seed) for name in ("MixUp", "CutMix")]
    return dlkit.layers.RandomChoice(parts, seed=seed)


def build_model(method, input_shape, classes, steps):
    model = build_network(input_shape, classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if method != "plain":
        model = dlkit.attach(model, make_part(method, classes))
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer=keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(0.1, steps),
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
        ),
        loss=loss,
        metrics=["accuracy"],
    )
    return model


"""
## Training
"""


class Run(NamedTuple):
    """One fit: accuracies in percent, the seconds with compilation."""

    method: str
    train_accuracies: list
    test_accuracy: float
    seconds: float


def train(method, data, seed, epochs):
    keras.utils.set_random_seed(seed)
    (images, labels), test = data
    steps = epochs * -(-len(images) // BATCH_SIZE)
    classes = int(labels.max()) + 1
    model = build_model(method, images.shape[1:], classes, steps)
    start = time.perf_counter()
    history = model.fit(
        images, labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0
    )
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(*test, batch_size=500, verbose=0)
    curve = [100 * value for value in history.history["accuracy"]]
    return Run(method, curve, 100 * accuracy, seconds)


def train_all(data, seeds, epochs):
    runs = []
    for seed in range(seeds):
        for method in COLORS:
            runs.append(train(method, data, seed, epochs))
            print(
                f"{len(runs)}/{seeds * len(COLORS)} {method}, seed {seed}: "
                f"{runs[-1].seconds:.1f} s",
                flush=True,
            )
    return runs


"""
## Results: a table and two pictures
"""


def report(runs, seeds, train_size, test_size):
    rows = [("method", "test accuracy", "training accuracy", "seconds")]
    for method in COLORS:
        own = [run for run in runs if run.method == method]
        accuracies = spread([run.test_accuracy for run in own])
        last = spread([run.train_accuracies[-1] for run in own])
        seconds = np.mean([run.seconds for run in own])
        rows.append((method, accuracies, last, f"{seconds:.1f}"))
    return f"""{markdown(rows)}

Percent of {test_size} test images, and of {train_size} training images in the
last epoch, of which the dominant label counts where images are mixed. Mean and
standard deviation over the seeds ({seeds}). Seconds: one fit, compilation
included.
"""


def plot_accuracies(runs):
    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (method, color) in enumerate(COLORS.items()):
        own = [run for run in runs if run.method == method]
        values = [run.test_accuracy for run in own]
        mean = np.mean(values)
        left.scatter([place] * len(values), values, color=color, alpha=0.6)
        left.hlines(mean, place - 0.25, place + 0.25, color=color, lw=2)
        left.text(place + 0.3, mean, f"{mean:.1f}", color=color, va="center")
        curves = np.array([run.train_accuracies for run in own])
        epochs = np.arange(1, curves.shape[1] + 1)
        right.plot(epochs, curves.mean(0), color=color, label=method)
    left.set_xticks(range(len(COLORS)), COLORS)
    left.set_xlim(-0.5, len(COLORS) - 0.2)
    left.set_title("Test: a dot for each seed, a line at the mean")
    left.set_ylabel("accuracy (%)")
    right.set_title("Training, by the dominant label")
    right.set_xlabel("epoch")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def label_text(target):
    """The classes of a mixed image, with their shares."""
    order = np.argsort(target)[::-1][:2]
    return " + ".join(
        f"{target[label]:.2f} × {label}"
        for label in order
        if target[label] > 0.005
    )


def plot_mixed(images, labels, columns=8):
    """A row for each part: they can be called on any batch."""
    classes = int(labels.max()) + 1
    parts = {
        "CutOut": dlkit.layers.CutOut(0.5, seed=1),
        "MixUp": make_part("MixUp", classes, seed=1),
        "CutMix": make_part("CutMix", classes, seed=1),
    }
    figure = Figure(
        figsize=(1.5 * columns, 1.75 * (len(parts) + 1)),
        dpi=150,
        layout="constrained",
    )
    figure.suptitle("Mixed images, and their labels: share × class")
    grid = figure.subplots(len(parts) + 1, columns)
    # One image of each class first.
    first = np.unique(labels, return_index=True)[1]
    order = np.concatenate([first, np.delete(np.arange(len(labels)), first)])
    images, targets = images[order], np.eye(classes)[labels[order]]
    rows = {"as they are": (images, targets)}
    for name, part in parts.items():
        rows[name] = part((images, targets.astype("float32")))
    for axes_row, (name, (mixed, shares)) in zip(grid, rows.items()):
        axes_row[0].set_ylabel(name)
        for axes, image, target in zip(axes_row, mixed, shares):
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axes.set_title(label_text(target), fontsize=9)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#cccccc")
    return figure


"""
## Run it
"""


def parse(arguments):
    parser = argparse.ArgumentParser(
        description="Few images, with MixUp, CutMix, a choice, and none.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data", default="digits", choices=["digits", *KERAS_DATASETS]
    )
    parser.add_argument(
        "--train-size", type=int, default=320, help="images to learn from"
    )
    parser.add_argument(
        "--test-size", type=int, default=700, help="images of the test"
    )
    parser.add_argument("--seeds", type=int, default=3, help="fits of each")
    parser.add_argument("--epochs", type=int, default=40, help="of each fit")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/mixing"),
        help="folder for the table and the pictures",
    )
    options = parser.parse_args(arguments)
    for name in ("train_size", "test_size", "seeds", "epochs"):
        if getattr(options, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} must be at least 1. "
                f"Received: {getattr(options, name)}"
            )
    return options


def main(arguments=None):
    start = time.perf_counter()
    options = parse(arguments)
    data = take(options.data, options.train_size, options.test_size)
    runs = train_all(data, options.seeds, options.epochs)

    sizes = [len(images) for images, _ in data]
    results = report(runs, options.seeds, *sizes)
    print(f"\n{results}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text(results, encoding="utf-8")
    plot_accuracies(runs).savefig(options.out / "accuracies.png")
    plot_mixed(*data[0]).savefig(options.out / "mixed.png")
    print(
        f"{time.perf_counter() - start:.0f} s on {keras.backend.backend()}; "
        f"the table and two pictures are in {options.out}"
    )


if __name__ == "__main__":
    main()
