"""What minimum hyperspherical energy gains on Fashion-MNIST, and its cost.

KERAS_BACKEND=jax python benchmarks/mhe_accuracy.py

The paper's setting on a small network: half space and power 2 in the hidden
layers, full space and ten times the weight at the output, weight decay 5e-4 for
all; in the last row hidden layers have the compressive energy. The authors'
code has the weights 1 and 10, their logs 0.1 and 1; both are here. Nothing is
tuned. Each fit is written to a file as it ends: a run that was stopped goes on
after the last one, and `--table` prints what there is so far.
"""

import argparse
import math
import pathlib
import time
from functools import partial

import keras
import numpy as np
from _runs import Runs
from _runs import mean_and_spread
from _timing import print_head
from _timing import print_row
from _training import machine
from sam_accuracy import BATCH_SIZE
from sam_accuracy import INNER
from sam_accuracy import load
from sam_accuracy import network

import keras_dlkit as dlkit


def plain(model):
    return model


def energy(factor, power, model):
    """`factor` is that of hidden layers, ten times it that of the output."""
    hidden = dlkit.regularizers.HypersphericalEnergy(factor, power=power)
    name = model.layers[-1].name
    dlkit.regularizers.regularize(model, hidden, exclude=name)
    output_energy(10 * factor, power, model)
    return model


def compressive(factor, power, model):
    """The same, with the energy of projections in the hidden layers."""
    hidden = dlkit.regularizers.CompressiveEnergy(
        factor, power=power, exclude=model.layers[-1].name
    )
    output_energy(10 * factor, power, model)
    return dlkit.attach(model, hidden)


def output_energy(factor, power, model):
    full = dlkit.regularizers.HypersphericalEnergy(
        factor, power=power, half_space=False
    )
    name = model.layers[-1].name
    dlkit.regularizers.regularize(model, full, include=name)


METHODS = {
    "plain": plain,
    "half space, power 2, 1 and 10": partial(energy, 1.0, 2),
    "half space, power 2, 0.1 and 1": partial(energy, 0.1, 2),
    "half space, power 0, 1 and 10": partial(energy, 1.0, 0),
    "compressive, power 2, 1 and 10": partial(compressive, 1.0, 2),
}


def result(name, data, seed, arguments):
    keras.utils.set_random_seed(seed)
    (x, y), test = data
    steps = arguments.epochs * math.ceil(len(x) / BATCH_SIZE)
    model = METHODS[name](network(arguments.width))
    model.compile(
        INNER["SGD"](
            lambda rate: keras.optimizers.schedules.CosineDecay(rate, steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    start = time.perf_counter()
    model.fit(x, y, BATCH_SIZE, arguments.epochs, verbose=0)
    seconds = time.perf_counter() - start
    accuracy = model.evaluate(*test, batch_size=1000, verbose=0)[1]
    return {"accuracy": 100 * accuracy, "s": seconds}


def key(name, seed, arguments):
    return [name, seed, arguments.epochs, arguments.width, arguments.train_size]


def make_runs(runs, arguments):
    data = load(arguments.train_size)
    for seed in range(arguments.seeds):
        for name in METHODS:
            make = partial(result, name, data, seed, arguments)
            runs.once(key(name, seed, arguments), make)


def print_table(runs, arguments):
    print(
        f"\n{machine()}; {arguments.train_size} training images, "
        f"{arguments.epochs} epochs, width {arguments.width}, batch "
        f"{BATCH_SIZE}. Mean and standard deviation over the seeds; gain and "
        "time of the fit beside the plain one, seed by seed.\n"
    )
    print_head("energy", "seeds", "accuracy, %", "gain, points", "fit")
    for name in METHODS:
        pairs = [
            (runs[key(name, seed, arguments)], runs[plain])
            for seed in range(arguments.seeds)
            if key(name, seed, arguments) in runs
            and (plain := key("plain", seed, arguments)) in runs
        ]
        if len(pairs) < 2:
            print_row(name, len(pairs), "not run yet", "", "")
            continue
        accuracy = [own["accuracy"] for own, _ in pairs]
        gain = [own["accuracy"] - plain["accuracy"] for own, plain in pairs]
        ratio = np.median([own["s"] / plain["s"] for own, plain in pairs])
        print_row(
            name,
            len(pairs),
            mean_and_spread(accuracy),
            "" if name == "plain" else mean_and_spread(gain),
            f"{ratio:.2f}x",
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--train-size", type=int, default=4000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/mhe_accuracy")
    )
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    runs = Runs(arguments.out)
    if not arguments.table:
        make_runs(runs, arguments)
    print_table(runs, arguments)


if __name__ == "__main__":
    main()
