"""
Title: The SAM family, and what each member costs
Author: the keras_dlkit developers
Date created: 2026/11/22
Last modified: 2026/11/22
Description: Six optimizers on wrong labels: accuracy, cost, and the valley.
Accelerator: None

`SAM` takes two gradients a step. Its relatives change what the second one is
used for (`GSAM`), where it is taken (`FriendlySAM`), or do with fewer of them:
`LookSAM` takes it on one step of five, `MomentumSAM` never does. This script
trains the same small network with each, on digits of which a share of the
training labels is wrong, and shows the accuracy on right labels beside the
gradients that it took. Then it walks away from the weights that each one found,
in random directions, and shows how fast the loss rises: the flat valley that
they look for, seen from inside.

The radius is that of `quickstart.py`; that of `MomentumSAM`, which must be
larger, was fixed on the validation images. Expect all five above the plain
optimizer, the two cheap ones among them.

```bash
python examples/sharpness_aware.py
python examples/sharpness_aware.py --data fashion_mnist --seeds 1
```
"""

import argparse
import pathlib
import time
from typing import NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure
from quickstart import BATCH_SIZE
from quickstart import build_network
from quickstart import markdown
from quickstart import split
from quickstart import spread
from quickstart import with_wrong_labels

import keras_dlkit as dlkit

"""
## Optimizers

Each wraps an ordinary one. `attach` gives the network the training step that
takes the second gradient; `fit` stays as it is.
"""


class Method(NamedTuple):
    wrap: object
    gradients: float  # a step
    color: str  # distinct for all kinds of colour vision (Okabe and Ito)


METHODS = {
    "plain": Method(lambda inner: inner, 1, "#555555"),
    "SAM": Method(
        lambda inner: dlkit.optimizers.SAM(inner, rho=0.1), 2, "#0072B2"
    ),
    "GSAM": Method(
        lambda inner: dlkit.optimizers.GSAM(inner, rho=0.1, alpha=0.4),
        2,
        "#56B4E9",
    ),
    "FriendlySAM": Method(
        lambda inner: dlkit.optimizers.FriendlySAM(inner, rho=0.1),
        2,
        "#009E73",
    ),
    "LookSAM": Method(
        lambda inner: dlkit.optimizers.LookSAM(inner, rho=0.1, every_steps=5),
        1.2,
        "#E69F00",
    ),
    "MomentumSAM": Method(
        lambda inner: dlkit.optimizers.MomentumSAM(inner, rho=1.0),
        1,
        "#D55E00",
    ),
}


def build_model(method, input_shape, classes, steps):
    model = dlkit.attach(build_network(input_shape, classes))
    inner = keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.1, steps),
        momentum=0.9,
        weight_decay=5e-4,
    )
    model.compile(
        optimizer=METHODS[method].wrap(inner),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


"""
## The valley

How much the loss rises on the way along a random direction. The direction has,
for each filter, the length of the filter (Li et al., 2018): networks of
different scale can be compared.
"""

STEPS_AWAY = np.linspace(-1, 1, 13)


def random_direction(weights, random):
    direction = []
    for weight in weights:
        noise = random.normal(size=weight.shape)
        axes = tuple(range(weight.ndim - 1))
        if weight.ndim < 2:  # biases and norms stay
            direction.append(np.zeros_like(weight))
            continue
        length = np.sqrt((weight**2).sum(axes) / (noise**2).sum(axes))
        direction.append(noise * length)
    return direction


def valley(model, data, seed, directions=3):
    """The loss on right labels, for each of `STEPS_AWAY`."""
    random = np.random.default_rng(seed)
    variables = model.trainable_variables
    found = [keras.ops.convert_to_numpy(v) for v in variables]
    losses = np.zeros((directions, len(STEPS_AWAY)))
    for row in range(directions):
        direction = random_direction(found, random)
        for column, step in enumerate(STEPS_AWAY):
            for variable, w, d in zip(variables, found, direction):
                variable.assign(w + step * d)
            losses[row, column] = model.evaluate(
                *data, batch_size=1000, verbose=0, return_dict=True
            )["loss"]
    for variable, w in zip(variables, found):
        variable.assign(w)
    return losses.mean(axis=0)


"""
## Training
"""


class Run(NamedTuple):
    method: str
    accuracy: float
    valley: np.ndarray
    seconds: float


def train(method, data, options, seed):
    keras.utils.set_random_seed(seed)
    images, targets = data.train
    targets = with_wrong_labels(targets, options.noise, seed)
    steps = options.epochs * -(-len(images) // BATCH_SIZE)
    model = build_model(method, images.shape[1:], targets.shape[1], steps)
    start = time.perf_counter()
    model.fit(
        images, targets, batch_size=BATCH_SIZE, epochs=options.epochs, verbose=0
    )
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(*data.test, batch_size=1000, verbose=0)
    return Run(method, 100 * accuracy, valley(model, data.train, seed), seconds)


def train_all(data, options):
    runs = []
    for seed in range(options.seeds):
        for method in METHODS:
            run = train(method, data, options, seed)
            runs.append(run)
            print(
                f"{method}, seed {seed}: {run.accuracy:.1f}% in "
                f"{run.seconds:.1f} s",
                flush=True,
            )
    return runs


"""
## Results
"""


def report(runs, options):
    rows = [("optimizer", "gradients a step", "test accuracy", "seconds")]
    for name, method in METHODS.items():
        chosen = [r for r in runs if r.method == name]
        rows.append(
            (
                name,
                f"{method.gradients:g}",
                spread([r.accuracy for r in chosen]),
                f"{np.mean([r.seconds for r in chosen]):.1f}",
            )
        )
    return f"""{markdown(rows)}

Percent, over {options.seeds} seeds, {options.noise:.0%} of the training labels
wrong, {options.epochs} epochs for all. Seconds: a fit, compilation included.
"""


def plot(runs):
    figure = Figure(figsize=(10, 4.5), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, method in METHODS.items():
        chosen = [r for r in runs if r.method == name]
        accuracies = [r.accuracy for r in chosen]
        left.scatter(
            [method.gradients] * len(chosen),
            accuracies,
            color=method.color,
            alpha=0.35,
        )
        left.scatter(
            method.gradients,
            np.mean(accuracies),
            color=method.color,
            marker="_",
            s=400,
            label=name,
        )
        right.plot(
            STEPS_AWAY,
            np.mean([r.valley for r in chosen], axis=0),
            color=method.color,
            label=name,
        )
    left.set(
        title="A dot for each seed, a line at the mean",
        xlabel="gradients a step",
        ylabel="test accuracy (%)",
    )
    right.set(
        title="Loss on right labels, away from the weights",
        xlabel="distance, in lengths of the filters",
        ylabel="cross-entropy",
    )
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


"""
## Run it
"""


def parse(arguments):
    parser = argparse.ArgumentParser(
        description="Digits with wrong labels, by the SAM family.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", default="digits", help="as in quickstart.py")
    parser.add_argument("--train-size", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/sharpness_aware")
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    data = split(options.data, options.train_size)
    runs = train_all(data, options)
    results = report(runs, options)
    print(f"\n{results}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text(results, encoding="utf-8")
    plot(runs).savefig(options.out / "sharpness_aware.png")
    print(f"the table and the picture are in {options.out}")


if __name__ == "__main__":
    main()
