"""
Title: SAM and MixUp on handwritten digits
Author: the keras_dlkit developers
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Two additions to an ordinary `fit`, with right and wrong labels.
Accelerator: None

A small convolutional network learns to read digits in four ways: plainly, with
`SAM` (which looks for weights whose whole neighbourhood has a low loss), with
`MixUp` (which trains on blends of pairs of images), and with both. It does so
twice: once with the labels as they are, once with a share of the training
labels made wrong. Validation and test labels stay right.

Everything else is the same for all: network, data, number of epochs, inner
optimizer, learning rate. The settings come from the papers, or were fixed on
the validation images; the test images are looked at once, with the weights of
the last epoch.

Expect no difference with right labels, where all are near 99%, and a large one
with wrong labels. There the plain network gets about 20% of the test images
wrong, for it learns many of the wrong labels by heart; `SAM` halves that,
`MixUp` does better still and the two together best, on each of the backends.
Where a network has no time to learn by heart, as in a short run on a larger
data set, both can slow it down.

```bash
python examples/quickstart.py
python examples/quickstart.py --data fashion_mnist --seeds 1  # minutes
KERAS_BACKEND=jax python examples/quickstart.py
```
"""

import argparse
import gzip
import math
import pathlib
import struct
import time
from typing import NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from sklearn.datasets import load_digits

import keras_dlkit as dlkit

BATCH_SIZE = 64
KERAS_DATASETS = ("fashion_mnist", "mnist", "cifar10")
METHODS = ("plain", "SAM", "MixUp", "SAM + MixUp")
# Distinct for all kinds of colour vision (Okabe and Ito).
COLORS = ("#555555", "#0072B2", "#E69F00", "#009E73")


"""
## Data

The 1,797 digits of 8 x 8 pixels that come with scikit-learn, unless you name a
data set of Keras, or a folder of IDX files as MNIST is distributed.
"""


class Data(NamedTuple):
    """Pairs of images in [0, 1] and one-hot labels."""

    train: tuple
    validation: tuple
    test: tuple


"""
### Files of your own
"""


IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path):
    """Reads an array from an IDX file, plain or gzipped."""
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rb") as file:
        content = file.read()
    # Two zero bytes, the type, the rank; then the shape, then the values.
    zeros, kind, rank = struct.unpack_from(">HBB", content)
    if zeros or kind not in IDX_TYPES:
        raise ValueError(
            f"An IDX file must begin with 0, 0 and a type of {list(IDX_TYPES)}."
            f" Received: {path} with {list(content[:3])}"
        )
    shape = struct.unpack_from(f">{rank}I", content, offset=4)
    values = np.frombuffer(content, IDX_TYPES[kind], offset=4 + 4 * rank)
    if values.size != math.prod(shape):
        raise ValueError(
            f"{path} must hold {math.prod(shape)} values, of shape {shape}. "
            f"Received: {values.size}"
        )
    return values.reshape(shape)


def read_idx_folder(folder):
    def read(stem):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.exists():
                return read_idx(path)
        raise FileNotFoundError(
            f"`--data` must be `digits`, one of {KERAS_DATASETS}, or a folder "
            f"with the file {stem} or {stem}.gz. Received: {folder}"
        )

    return tuple(
        (read(f"{part}-images-idx3-ubyte"), read(f"{part}-labels-idx1-ubyte"))
        for part in ("train", "t10k")
    )


"""
### What is trained on, and what is not
"""


def load(name):
    """Images and labels to learn from, then those of the test."""
    if name in KERAS_DATASETS:
        return getattr(keras.datasets, name).load_data()
    if name != "digits":
        return read_idx_folder(pathlib.Path(name))
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order], digits.target[order]
    return (images[700:], labels[700:]), (images[:700], labels[:700])


def split(name, train_size):
    """Four fifths to train on and one to validate; the test set apart."""
    (images, labels), (test_images, test_labels) = load(name)
    brightest, classes = images.max(), labels.max() + 1

    def prepared(images, labels):
        images = (images / brightest).astype("float32")
        if images.ndim == 3:
            images = images[..., None]
        return images, np.eye(classes, dtype="float32")[labels.ravel()]

    count = min(train_size, len(images) * 4 // 5)
    if count < BATCH_SIZE:
        raise ValueError(
            f"A batch has {BATCH_SIZE} images, and {name!r} has {len(images)} "
            "to train and to validate on: take a larger data set."
        )
    count -= count % BATCH_SIZE  # a smaller last batch is compiled on its own
    order = np.random.default_rng(1).permutation(len(images))
    train, validation = order[:count], order[count : count + count // 4]
    return Data(
        prepared(images[train], labels[train]),
        prepared(images[validation], labels[validation]),
        prepared(test_images, test_labels),
    )


"""
### Wrong labels
"""


def with_wrong_labels(targets, share, seed):
    """One-hot labels, a share of them moved to any of the other classes."""
    random = np.random.default_rng(seed)
    count, classes = targets.shape
    chosen = random.choice(count, round(share * count), replace=False)
    steps = random.integers(1, classes, size=len(chosen))
    labels = targets.argmax(axis=1)
    labels[chosen] = (labels[chosen] + steps) % classes
    return np.eye(classes, dtype=targets.dtype)[labels]


"""
## Model

An ordinary Keras network and an ordinary optimizer. `SAM` wraps the optimizer;
`attach` gives the network a training step that can take SAM's second gradient
and blend the batch. The radius and the strength are those of the papers for
small images: rho = 0.1 as Foret et al. use on wrong labels, and alpha = 1 as
Zhang et al. use on CIFAR-10.
"""


def build_network(input_shape, classes):
    layers = [keras.Input(input_shape)]
    side, filters = input_shape[0], 32
    while side > 3:
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            # A fit is some hundreds of steps: the default momentum of 0.99
            # would still remember the first ones.
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
        side, filters = side // 2, 64
    layers += [
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(classes),
    ]
    return keras.Sequential(layers)


def build_model(method, input_shape, classes, steps):
    model = build_network(input_shape, classes)
    optimizer = keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.1, steps),
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
    )
    if "SAM" in method:
        optimizer = dlkit.optimizers.SAM(optimizer, rho=0.1)
    if method != "plain":
        parts = [dlkit.layers.MixUp(alpha=1.0)] if "MixUp" in method else []
        model = dlkit.attach(model, *parts)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


"""
## Training
"""


class Run(NamedTuple):
    """One fit: accuracies in percent, the seconds with compilation."""

    method: str
    noise: float
    test_accuracy: float
    validation_accuracies: list
    seconds: float


def train(method, data, noise, seed, epochs, on_epoch_end):
    keras.utils.set_random_seed(seed)
    images, targets = data.train
    targets = with_wrong_labels(targets, noise, seed)
    steps = epochs * len(images) // BATCH_SIZE
    model = build_model(method, images.shape[1:], targets.shape[1], steps)
    start = time.perf_counter()
    history = model.fit(
        images,
        targets,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=data.validation,
        validation_batch_size=1000,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)],
        verbose=0,
    )
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(*data.test, batch_size=1000, verbose=0)
    curve = [100 * value for value in history.history["val_accuracy"]]
    return Run(method, noise, 100 * accuracy, curve, seconds)


def train_all(data, noise, seeds, epochs):
    """Every method on right and on wrong labels, seed after seed."""
    settings = [
        (method, share, seed)
        for seed in range(seeds)
        for share in (0.0, noise)
        for method in METHODS
    ]
    console = Console()
    runs = []
    with Progress(
        console=console, disable=not console.is_terminal, transient=True
    ) as progress:
        task = progress.add_task("", total=len(settings) * epochs)
        for method, share, seed in settings:
            label = f"{method}, {share:.0%} wrong labels, seed {seed}"
            progress.update(task, description=label)
            run = train(
                method,
                data,
                share,
                seed,
                epochs,
                on_epoch_end=lambda epoch, logs: progress.advance(task),
            )
            runs.append(run)
            if not console.is_terminal:
                print(
                    f"{len(runs)}/{len(settings)} {label}: {run.seconds:.1f} s",
                    flush=True,
                )
    return runs


"""
## Results

### A table
"""


def select(runs, method, noise):
    return [r for r in runs if r.method == method and r.noise == noise]


def spread(values):
    """The mean, with the standard deviation if there is one."""
    text = f"{np.mean(values):.1f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.1f}"


def report(runs, noise, seeds, test_size):
    """The table, and how to read it."""
    rows = [
        (
            "method",
            "test accuracy",
            f"error, {noise:.0%} wrong labels",
            "gradients",
            "seconds",
        )
    ]
    for method in METHODS:
        right = [r.test_accuracy for r in select(runs, method, 0.0)]
        wrong = [100 - r.test_accuracy for r in select(runs, method, noise)]
        seconds = np.mean([r.seconds for r in runs if r.method == method])
        gradients = "2" if "SAM" in method else "1"
        rows.append(
            (method, spread(right), spread(wrong), gradients, f"{seconds:.1f}")
        )
    fits = "one fit"
    if seeds > 1:
        fits = f"mean and standard deviation over {seeds} seeds"
    return f"""{markdown(rows)}

Percent of {test_size} test images, {fits}.
Labels are wrong in training only. Gradients: in one step, all methods taking
the same number of steps. Seconds: one fit, compilation included.
"""


def markdown(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
    )


"""
### Three pictures
"""


def titles(noise):
    return {
        0.0: "Trained with right labels",
        noise: f"Trained with {noise:.0%} wrong labels",
    }


def two_panels(title, label):
    figure = Figure(figsize=(9, 4.5), dpi=150, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharey=True)
    panels[0].set_ylabel(label)
    for axes in panels:
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def plot_accuracies(runs, noise):
    figure, panels = two_panels(
        "Test accuracy: a dot for each seed, a line at the mean",
        "test accuracy (%)",
    )
    for axes, (share, title) in zip(panels, titles(noise).items()):
        for place, (method, color) in enumerate(zip(METHODS, COLORS)):
            values = [r.test_accuracy for r in select(runs, method, share)]
            mean = np.mean(values)
            axes.scatter([place] * len(values), values, color=color, alpha=0.6)
            axes.hlines(mean, place - 0.25, place + 0.25, color=color, lw=2)
            axes.text(
                place + 0.3, mean, f"{mean:.1f}", color=color, va="center"
            )
        axes.set_xticks(range(len(METHODS)), METHODS)
        axes.set_xlim(-0.5, len(METHODS) - 0.2)
        axes.set_title(title)
    return figure


def plot_curves(runs, noise):
    figure, panels = two_panels(
        "Validation accuracy: mean of the seeds, and from worst to best",
        "validation accuracy (%)",
    )
    lowest = 100
    for axes, (share, title) in zip(panels, titles(noise).items()):
        for method, color in zip(METHODS, COLORS):
            curves = np.array(
                [r.validation_accuracies for r in select(runs, method, share)]
            )
            epochs = np.arange(1, curves.shape[1] + 1)
            axes.fill_between(
                epochs, curves.min(0), curves.max(0), color=color, alpha=0.15
            )
            axes.plot(epochs, curves.mean(0), color=color, label=method)
            # The climb out of chance would take most of the picture.
            lowest = min(lowest, curves[:, len(epochs) // 6 :].min())
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(lowest - 3, 101)
    panels[0].legend(loc="lower right")
    return figure


def plot_blends(images, targets, rows=3, columns=6):
    """What the network sees with MixUp, which can be called on any batch."""
    mix = dlkit.layers.MixUp(alpha=1.0, seed=0)
    count = rows * columns
    images, targets = mix((images[:count], targets[:count]))
    images = keras.ops.convert_to_numpy(images)
    targets = keras.ops.convert_to_numpy(targets)
    figure = Figure(
        figsize=(1.5 * columns, 1.8 * rows), dpi=150, layout="constrained"
    )
    figure.suptitle("Blended images, and their labels: share × class")
    for axes, image, target in zip(
        figure.subplots(rows, columns).flat, images, targets
    ):
        shares = [
            f"{target[label]:.2f} × {label}"
            for label in np.argsort(target)[::-1][:2]
            if target[label] > 0.005
        ]
        axes.imshow(
            image, cmap="gray_r", vmin=0, vmax=1, interpolation="bicubic"
        )
        axes.set_title(" + ".join(shares), fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#cccccc")
    return figure


"""
## Run it
"""


def parse(arguments):
    parser = argparse.ArgumentParser(
        description="Digits with SAM, MixUp, both and neither.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        default="digits",
        help=f"digits, {', '.join(KERAS_DATASETS)} or a folder of IDX files",
    )
    parser.add_argument(
        "--train-size", type=int, default=2000, help="images, at most"
    )
    parser.add_argument(
        "--noise", type=float, default=0.4, help="share of wrong labels"
    )
    parser.add_argument("--seeds", type=int, default=3, help="fits of each")
    parser.add_argument("--epochs", type=int, default=20, help="of each fit")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/quickstart"),
        help="folder for the table and the pictures",
    )
    options = parser.parse_args(arguments)
    if options.train_size < BATCH_SIZE:
        parser.error(
            f"--train-size must be at least {BATCH_SIZE}, one batch. "
            f"Received: {options.train_size}"
        )
    if not 0 < options.noise < 1:
        parser.error(
            f"--noise must be between 0 and 1. Received: {options.noise}"
        )
    for name in ("seeds", "epochs"):
        if vars(options)[name] < 1:
            parser.error(
                f"--{name} must be at least 1. Received: {vars(options)[name]}"
            )
    return options


def main(arguments=None):
    start = time.perf_counter()
    options = parse(arguments)
    noise = options.noise
    data = split(options.data, options.train_size)
    runs = train_all(data, noise, options.seeds, options.epochs)

    results = report(runs, noise, options.seeds, len(data.test[0]))
    print(f"\n{results}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text(results, encoding="utf-8")
    plot_accuracies(runs, noise).savefig(options.out / "accuracies.png")
    plot_curves(runs, noise).savefig(options.out / "curves.png")
    plot_blends(*data.train).savefig(options.out / "blends.png")
    print(
        f"{time.perf_counter() - start:.0f} s on {keras.backend.backend()}; "
        f"the table and three pictures are in {options.out}"
    )


if __name__ == "__main__":
    main()
