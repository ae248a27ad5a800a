"""
Title: Three tasks in units of their own, weighed in six ways
Author: the keras_dlkit developers
Date created: 2026/11/24
Last modified: 2026/11/24
Description: Learned task weights beside equal ones and a search for weights.
Accelerator: None

One network looks at a turned and noisy handwritten digit and says three things:
which digit it is (a cross-entropy, in nats), by how many degrees it was turned
(a squared error of hundreds), and what the upright, clean image looks like (a
squared error of hundredths). Their sum is, in effect, the angle alone: the
others are lost in it. What weights should they have?

The usual answer is a search, here over nine pairs of weights on the validation
images. `UncertaintyWeighting` learns the weights during the one fit, and
`GeometricLossStrategy`, `FAMO` and `PCGrad` go other ways. The network, the
data, the number of steps and the optimizer are the same for all.

Expect the equal weights and PCGrad last on digits and images, and the learned
ones close to the search, at a tenth of its fits. The search has seen the
validation images, nothing has seen the test images.

```bash
python examples/multi_task.py
python examples/multi_task.py --seeds 1
```
"""

import argparse
import itertools
import time
from typing import NamedTuple

import keras
import numpy as np
from quickstart import markdown
from quickstart import spread
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

import keras_dlkit as dlkit

BATCH_SIZE = 64
LARGEST_ANGLE = 45.0  # degrees
NOISE = 0.2
TURNS = 3  # of each training image
KINDS = {
    "digit": "classification",
    "angle": "regression",
    "image": "regression",
}


"""
## Data

The digits of scikit-learn, each turned by a random angle, with noise on every
pixel.
"""


class Data(NamedTuple):
    """Pairs of images and targets, a dict with an entry a task."""

    train: tuple
    validation: tuple
    test: tuple


def turned(images, labels, turns, seed):
    random = np.random.default_rng(seed)
    images, labels = np.repeat(images, turns, 0), np.repeat(labels, turns)
    angles = random.uniform(-LARGEST_ANGLE, LARGEST_ANGLE, len(images))
    x = np.stack(
        [
            rotate(image, angle, reshape=False, order=1)
            for image, angle in zip(images, angles)
        ]
    )
    x = x + NOISE * random.normal(size=x.shape)
    targets = {
        "digit": labels,
        "angle": angles[:, None].astype("float32"),
        "image": images.reshape(len(images), -1).astype("float32"),
    }
    return x.astype("float32"), targets


def load():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order] / 16.0, digits.target[order]
    parts = np.split(np.arange(len(order)), [832, 1100])
    return Data(
        *(
            turned(images[part], labels[part], turns, seed)
            for seed, (part, turns) in enumerate(zip(parts, (TURNS, 1, 1)))
        )
    )


"""
## Model

A trunk and three heads. A weighting is a part of `attach`, and everything else
is an ordinary `compile` with a loss an output. The log-variances start at what
is known before training: the variance of the targets, and the entropy of ten
classes.
"""


def build_network():
    x = keras.Input((8, 8))
    h = keras.layers.Flatten()(x)
    for _ in range(2):
        h = keras.layers.Dense(128, "relu")(h)
    sizes = {"digit": 10, "angle": 1, "image": 64}
    return keras.Model(
        x,
        {
            name: keras.layers.Dense(n, name=name)(h)
            for name, n in sizes.items()
        },
    )


def uncertainty(targets):
    start = {
        "digit": np.log(2 * np.log(10)),
        "angle": np.log(np.var(targets["angle"])),
        "image": np.log(np.var(targets["image"])),
    }
    return dlkit.losses.UncertaintyWeighting(
        KINDS,
        initial_log_variance={k: float(v) for k, v in start.items()},
        bounds=(-8.0, 8.0),
    )


METHODS = {
    "equal": lambda targets: dlkit.losses.EqualWeighting(),
    "searched": None,
    "UncertaintyWeighting": uncertainty,
    "GeometricLossStrategy": lambda targets: (
        dlkit.losses.GeometricLossStrategy()
    ),
    "FAMO": lambda targets: dlkit.losses.FAMO(),
    "PCGrad": lambda targets: dlkit.losses.PCGrad(seed=0),
}


def fit(data, part, seed, epochs, loss_weights=None):
    keras.utils.set_random_seed(seed)
    images, targets = data.train
    model = build_network()
    if part is not None:
        model = dlkit.attach(model, part(targets))
    steps = epochs * -(-len(images) // BATCH_SIZE)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(3e-3, steps)
        ),
        loss={
            "digit": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            ),
            "angle": "mse",
            "image": "mse",
        },
        loss_weights=loss_weights,
    )
    model.fit(images, targets, BATCH_SIZE, epochs, verbose=0)
    return model


"""
## Errors, in the unit of each task
"""


class Errors(NamedTuple):
    digit: float  # per cent wrong
    angle: float  # degrees, root mean squared
    image: float  # of a brightness of 100, root mean squared


def errors(model, images, targets):
    predicted = model.predict(images, batch_size=1000, verbose=0)
    wrong = predicted["digit"].argmax(axis=1) != targets["digit"]
    rms = {
        name: np.sqrt(np.mean((predicted[name] - targets[name]) ** 2))
        for name in ("angle", "image")
    }
    return Errors(100 * np.mean(wrong), rms["angle"], 100 * rms["image"])


def loss_weights(angle, image):
    return {"digit": 1.0, "angle": angle, "image": image}


def grid(angles, images):
    return list(itertools.product(angles, images))


def validation_error(data, weights, epochs):
    """The product of errors: relative gains in all tasks count alike."""
    model = fit(data, None, 0, epochs, weights)
    return float(np.prod(errors(model, *data.validation)))


def search(data, epochs, pairs):
    """The weights with the least product of errors on validation images."""
    found = {}
    for pair in pairs:
        weights = loss_weights(*pair)
        found[pair] = validation_error(data, weights, epochs)
        print(f"search {weights}: {found[pair]:.1f}", flush=True)
    return loss_weights(*min(found, key=found.get))


def report(results, seconds):
    rows = [("weights", "digit, % wrong", "angle, degrees", "image, %", "s")]
    for name, runs in results.items():
        columns = (spread(values) for values in zip(*runs))
        rows.append((name, *columns, f"{np.mean(seconds[name]):.1f}"))
    return markdown(rows)


"""
## Run
"""


def parse(arguments):
    parser = argparse.ArgumentParser(description="Task weights on digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--search",
        type=float,
        nargs="*",
        default=(0.001, 0.01, 0.1),
        help="weights of the angle to try; those of the image follow",
    )
    parser.add_argument(
        "--only", nargs="*", choices=METHODS, default=list(METHODS)
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    arguments = parse(arguments)
    data = load()
    found = None
    if "searched" in arguments.only:
        images = [1e3 * weight for weight in arguments.search]
        pairs = grid(arguments.search, images)
        found = search(data, arguments.epochs, pairs)
        print(f"found: {found}")
    results, seconds = {}, {}
    for name in arguments.only:
        for seed in range(arguments.seeds):
            start = time.perf_counter()
            weights = found if name == "searched" else None
            model = fit(data, METHODS[name], seed, arguments.epochs, weights)
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            results.setdefault(name, []).append(errors(model, *data.test))
            print(f"{name}, seed {seed}: {seconds[name][-1]:.1f} s", flush=True)
            if name == "UncertaintyWeighting":
                sigmas = ", ".join(
                    f"{task} {np.exp(0.5 * keras.ops.convert_to_numpy(s)):.3f}"
                    for task, s in model.parts[0].log_variances.items()
                )
                print(f"  learned sigmas: {sigmas}")
    print(report(results, seconds))
    print(
        f"On {len(data.test[0])} test images, mean and standard deviation over "
        f"{arguments.seeds} seeds. Seconds: one fit; the search had "
        f"{len(arguments.search) ** 2} more."
    )


if __name__ == "__main__":
    main()
