"""What the SAM family gains on Fashion-MNIST, beside what it costs.

KERAS_BACKEND=jax python benchmarks/sam_accuracy.py

Every optimizer gets the same number of epochs, and then the same number of
gradients: the plain one trains twice as long as SAM. Nothing is tuned: the
settings are those of the papers. Each fit is written to a file as it ends, and
a run that was stopped goes on after the last one.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np
from _timing import print_head
from _timing import print_row
from _training import machine

import keras_dlkit as dlkit

BATCH_SIZE = 64
# Name: the optimizer around the inner one, gradients a step.
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


def fit(inner, method, epochs, seed, data, arguments):
    keras.utils.set_random_seed(seed)
    train, test = data
    steps = epochs * -(-len(train[0]) // BATCH_SIZE)
    optimizer = INNER[inner](
        lambda rate: keras.optimizers.schedules.CosineDecay(rate, steps)
    )
    wrapper, settings, _ = METHODS[method]
    if wrapper:
        optimizer = getattr(dlkit.optimizers, wrapper)(optimizer, **settings)
    model = dlkit.attach(network(arguments.width))
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    start = time.perf_counter()
    model.fit(*train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(*test, batch_size=1000, verbose=0)
    return {"accuracy": 100 * accuracy, "seconds": seconds}


def runs_to_make(arguments):
    for seed in range(arguments.seeds):
        for inner in arguments.inner:
            for method, (_, _, gradients) in METHODS.items():
                same = round(2 * arguments.epochs / gradients)
                for epochs in sorted({arguments.epochs, same}):
                    yield inner, method, epochs, seed


def key_of(run, arguments):
    return [*run, arguments.train_size, arguments.width]


def make_runs(arguments):
    path = arguments.out / f"{keras.config.backend()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    results = {json.dumps(r["key"]): r for r in map(json.loads, lines)}
    data = load(arguments.train_size)
    for run in runs_to_make(arguments):
        key = key_of(run, arguments)
        if json.dumps(key) in results:
            continue
        result = {"key": key, **fit(*run, data, arguments)}
        results[json.dumps(key)] = result
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(*run, f"{result['accuracy']:.2f}", flush=True)
    return results


def cell(results, inner, method, epochs, arguments):
    accuracies = [
        results[json.dumps(key_of((inner, method, epochs, seed), arguments))][
            "accuracy"
        ]
        for seed in range(arguments.seeds)
    ]
    return f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-size", type=int, default=4000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--inner", nargs="+", default=["SGD"], choices=INNER)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/sam_accuracy")
    )
    arguments = parser.parse_args()
    results = make_runs(arguments)
    print(
        f"\n{machine()}; {arguments.train_size} training images, "
        f"{arguments.seeds} seeds, width {arguments.width}, "
        f"batch {BATCH_SIZE}\n"
    )
    print_head(
        "optimizer",
        "gradients a step",
        f"accuracy, {arguments.epochs} epochs",
        f"accuracy, the gradients of {2 * arguments.epochs} plain epochs",
    )
    for inner in arguments.inner:
        for method, (_, _, gradients) in METHODS.items():
            same = round(2 * arguments.epochs / gradients)
            print_row(
                f"{method}, {inner}",
                f"{gradients:g}",
                cell(results, inner, method, arguments.epochs, arguments),
                cell(results, inner, method, same, arguments),
            )


if __name__ == "__main__":
    main()
