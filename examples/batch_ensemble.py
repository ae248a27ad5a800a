"""
Title: An ensemble for the price of a network
Author: the keras_dlkit developers
Date created: 2026/11/25
Last modified: 2026/11/25
Description: One network, BatchEnsemble and separate networks on digits.
Accelerator: None

Four networks know more than one, and where they disagree they tell that they do
not know; but they are four times the weights. `BatchEnsemble` makes an ensemble
of any network in one line: its members share the kernels, and the rest, small
vectors, is their own.

Here the three are trained on the digits 0 to 7, the same number of epochs each,
and compared on test images: how often they are right, how likely they found the
right answer, and whether their confidence tells the digits 8 and 9, which they
have never seen, from the others.

Expect the one network last, the separate networks first and BatchEnsemble close
to these, all by little: the digits are easy. With `"split"` each member sees a
quarter of a batch, and the step costs about as much as that of one network; a
member then trains on a quarter of the rows in the same epochs.

```bash
python examples/batch_ensemble.py
python examples/batch_ensemble.py --seeds 1 --epochs 10
```
"""

import argparse
import pathlib
import time
from typing import NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure
from quickstart import markdown
from quickstart import spread
from sklearn.datasets import load_digits

import keras_dlkit as dlkit

BATCH_SIZE = 64
MEMBERS = 4
UNKNOWN = (8, 9)


"""
## Data

The digits of scikit-learn. Half of the known ones are for the test.
"""


class Data(NamedTuple):
    train: tuple  # images and labels, of the known digits
    test: tuple
    unknown: np.ndarray  # images


def load():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = (digits.images[order, ..., None] / 16.0).astype("float32")
    y = digits.target[order]
    unknown = np.isin(y, UNKNOWN)
    known_x, known_y = x[~unknown], y[~unknown]
    half = len(known_y) // 2
    return Data(
        (known_x[:half], known_y[:half]),
        (known_x[half:], known_y[half:]),
        x[unknown],
    )


"""
## Models

The network is plain Keras. `BatchEnsemble` is a model like any other: compiled,
fitted, saved. Its fast weights learn at half the rate.
"""


def build_network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10 - len(UNKNOWN)),
        ]
    )


def build_ensemble(member_batches, seed):
    return dlkit.models.BatchEnsemble(
        build_network(),
        MEMBERS,
        member_batches=member_batches,
        fast_learning_rate=0.5,
        seed=seed,
    )


METHODS = {
    "one network": lambda seed: [build_network()],
    'BatchEnsemble, "split"': lambda seed: [build_ensemble("split", seed)],
    'BatchEnsemble, "tile"': lambda seed: [build_ensemble("tile", seed)],
    "four networks": lambda seed: [build_network() for _ in range(MEMBERS)],
}


def fit(models, data, epochs):
    steps = epochs * -(-len(data.train[0]) // BATCH_SIZE)
    for model in models:
        model.compile(
            keras.optimizers.Adam(
                keras.optimizers.schedules.CosineDecay(3e-3, steps)
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(*data.train, BATCH_SIZE, epochs, verbose=0)


"""
## Results

What a method says is the average of the probabilities, of separate networks
here, of the members in `predict`.
"""


class Result(NamedTuple):
    accuracy: float  # per cent
    likelihood: float  # negative, logarithmic, in nats
    detection: float  # AUROC of known against unknown, per cent
    parameters: int
    seconds: float
    known: np.ndarray  # confidences
    unknown: np.ndarray


def probabilities(models, images):
    logits = np.stack(
        [model.predict(images, batch_size=1000, verbose=0) for model in models]
    )
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits)).mean(axis=0)


def measure(models, data, seconds):
    images, labels = data.test
    found = probabilities(models, images)
    known = found.max(axis=1)
    unknown = probabilities(models, data.unknown).max(axis=1)
    report = dlkit.metrics.detection_report(
        np.repeat([1, 0], [len(known), len(unknown)]),
        np.concatenate([known, unknown]),
    )
    right = found[np.arange(len(labels)), labels]
    return Result(
        100 * np.mean(found.argmax(axis=1) == labels),
        -np.mean(np.log(np.maximum(right, 1e-12))),
        100 * report["auroc"],
        sum(model.count_params() for model in models),
        seconds,
        known,
        unknown,
    )


def report(results):
    head = ("method", "accuracy", "NLL, % of a nat", "AUROC of 8 and 9")
    rows = [(*head, "parameters", "seconds")]
    for name, runs in results.items():
        rows.append(
            (
                name,
                spread([run.accuracy for run in runs]),
                spread([100 * run.likelihood for run in runs]),
                spread([run.detection for run in runs]),
                f"{runs[0].parameters:,}",
                f"{np.mean([run.seconds for run in runs]):.1f}",
            )
        )
    return markdown(rows)


def plot(results):
    """How sure each method is of what it knows, and of what it does not."""
    figure = Figure(figsize=(10, 3), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    bins = np.linspace(0, 1, 21)
    for axes, (name, runs) in zip(panels, results.items()):
        for part, color in (("known", "#0072B2"), ("unknown", "#E69F00")):
            values = np.concatenate([getattr(run, part) for run in runs])
            weights = np.full(len(values), 1 / len(values))
            axes.hist(
                values,
                bins,
                weights=weights,
                alpha=0.6,
                color=color,
                label=part,
            )
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("confidence")
    panels[0].set_ylabel("share of the images")
    panels[0].legend()
    return figure


"""
## Run
"""


def parse(arguments):
    parser = argparse.ArgumentParser(description="BatchEnsemble on digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--only", nargs="*", choices=METHODS, default=list(METHODS)
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/batch_ensemble")
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    arguments = parse(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load()
    results = {}
    for name in arguments.only:
        for seed in range(arguments.seeds):
            keras.utils.set_random_seed(seed)
            models = METHODS[name](seed)
            start = time.perf_counter()
            fit(models, data, arguments.epochs)
            seconds = time.perf_counter() - start
            result = measure(models, data, seconds)
            results.setdefault(name, []).append(result)
            print(f"{name}, seed {seed}: {seconds:.1f} s", flush=True)
    print(report(results))
    print(
        f"On {len(data.test[0])} test images of known digits and "
        f"{len(data.unknown)} of unknown ones, mean and standard deviation "
        f"over {arguments.seeds} seeds. Seconds: a fit, compilation included."
    )
    path = arguments.out / "batch_ensemble.png"
    plot(results).savefig(path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
