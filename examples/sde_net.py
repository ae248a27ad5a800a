"""
Title: A network that knows what it has not learned
Author: the keras_dlkit developers
Date created: 2026/11/25
Last modified: 2026/11/25
Description: SDE-Net on seven digits, asked about the other three.
Accelerator: None

An ordinary network is shown an image of a kind that it has never seen, and
names one of the classes it knows, often with great confidence. `SDENet` is the
same network with noise in its middle, of a strength that a small net beside it
learns in the same `fit`: none on data like that of the training, much on all
else. Then one call of `predict_uncertainty` draws ten random paths an image.
Where they end apart, the network does not know.

Both networks learn seven of ten digits. Then they see test images of these
seven, of the three that they have not learned, and of the seven with all pixels
shuffled. How well does a number tell the images of the first kind from those of
the others? What the diffusion net is shown as unknown in training is neither of
these: training images under heavy noise.

The noise is that of the paper for house numbers: 1 in training, 50 in
inference. The learning rate was fixed on training images that were held out;
the tables are of the weights of the last epoch.

Expect the same accuracy from both, shuffled images told apart almost without
error by all that SDE-Net says, and little gained on the other classes, which
look like what was learned. There the diffusion alone is of no use.

```bash
python examples/sde_net.py
python examples/sde_net.py --data mnist --train-size 6000  # many minutes
KERAS_BACKEND=jax python examples/sde_net.py
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
from quickstart import load
from quickstart import markdown
from quickstart import spread

import keras_dlkit as dlkit

layers = keras.layers

BATCH_SIZE = 32
KNOWN_CLASSES = 7
SAMPLES = 10
NUM_STEPS = 6
SIGMA, SIGMA_INFERENCE = 1.0, 50.0
LEARNING_RATE = 1e-2
# Distinct for all kinds of colour vision (Okabe and Ito).
COLORS = {
    "known": "#0072B2",
    "other classes": "#E69F00",
    "shuffled": "#555555",
}


"""
## Data

The digits of scikit-learn, or a data set of Keras by its name. The inputs have
mean 0 and variance 1 over the training images: the noise that stands for the
unknown in training has a standard deviation of 2.
"""


class Data(NamedTuple):
    """Images and labels to learn from, and test images of three kinds."""

    train: tuple
    known: tuple
    unknown: dict


def prepare(name, train_size, test_size):
    (images, labels), (test_images, test_labels) = load(name)
    labels, test_labels = labels.ravel(), test_labels.ravel()
    random = np.random.default_rng(0)

    def some(rows, count):
        return random.permutation(np.flatnonzero(rows))[:count]

    train = some(labels < KNOWN_CLASSES, train_size)
    train = train[: len(train) // BATCH_SIZE * BATCH_SIZE]
    mean, deviation = images[train].mean(), images[train].std()

    def scaled(images):
        images = ((images - mean) / deviation).astype("float32")
        return images[..., None] if images.ndim == 3 else images

    known = some(test_labels < KNOWN_CLASSES, test_size)
    others = some(test_labels >= KNOWN_CLASSES, test_size)
    x = scaled(test_images[known])
    pixels = x.reshape(len(x), -1, x.shape[-1])
    shuffled = random.permuted(pixels, axis=1).reshape(x.shape)
    return Data(
        (scaled(images[train]), labels[train].astype("int32")),
        (x, test_labels[known].astype("int32")),
        {
            "other classes": scaled(test_images[others]),
            "shuffled": shuffled,
        },
    )


"""
## Model

Four ordinary Keras parts. The drift says where the state moves to, and takes
the time as a second input; the diffusion says how unknown the state is.
"""


def norm_and_relu():
    return [layers.GroupNormalization(8), layers.ReLU()]


def build_stem(input_shape, width):
    parts = [keras.Input(input_shape), layers.Conv2D(width, 3)]
    side = input_shape[0] - 2
    while side > 8:
        parts += [*norm_and_relu(), layers.Conv2D(width, 4, 2, "same")]
        side = -(-side // 2)
    return keras.Sequential(parts)


def build_drift(state_shape, width):
    x = state = keras.Input(state_shape)
    time_now = keras.Input((1,))
    for _ in range(2):
        for layer in norm_and_relu():
            x = layer(x)
        x = dlkit.layers.ConcatenateTime()([x, time_now])
        x = layers.Conv2D(width, 3, padding="same")(x)
    return keras.Model([state, time_now], layers.GroupNormalization(8)(x))


def build_diffusion(width):
    parts = []
    for _ in range(2):
        parts += norm_and_relu()
        parts.append(layers.Conv2D(width, 3, padding="same"))
    parts += [*norm_and_relu(), layers.GlobalAveragePooling2D()]
    parts.append(layers.Dense(1, "sigmoid"))
    return keras.Sequential(parts, name="diffusion")


def build_parts(input_shape, width, sigma):
    stem = build_stem(input_shape, width)
    block = dlkit.layers.SDEBlock(
        build_drift(stem.output_shape[1:], width),
        build_diffusion(width),
        num_steps=NUM_STEPS,
        t_end=float(NUM_STEPS),
        sigma=sigma,
        sigma_inference=SIGMA_INFERENCE,
    )
    head = [*norm_and_relu(), layers.GlobalAveragePooling2D()]
    head.append(layers.Dense(KNOWN_CLASSES))
    return stem, block, keras.Sequential(head)


"""
One `compile`, one `fit`. The plain network is the same stem, drift and head
without noise, and without a diffusion to train.
"""


def build_model(method, input_shape, width, steps):
    if method == "plain":
        stem, block, head = build_parts(input_shape, width, sigma=0.0)
        block.diffusion.trainable = False
        model = keras.Sequential([stem, block, head])
    else:
        model = dlkit.models.SDENet(*build_parts(input_shape, width, SIGMA))
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


"""
## What tells known from unknown

For the plain network the probability of the class it names. For SDE-Net the
same of the mean over ten paths, how much the paths disagree (the epistemic
part of the entropy), and what the diffusion net says of the image, which needs
no path at all. All as confidences: higher for what is known.
"""


def confidences(method, model, images):
    if method == "plain":
        logits = model.predict(images, batch_size=200, verbose=0)
        probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
        return {"plain, probability": probabilities.max(axis=1)}, probabilities
    found = model.predict_uncertainty(
        images, samples=SAMPLES, batch_size=200, verbose=0
    )
    scores = {
        "SDE-Net, probability": found["mean"].max(axis=1),
        "SDE-Net, epistemic": -found["epistemic"],
        "SDE-Net, diffusion": -found["diffusion"],
    }
    return scores, found["mean"]


"""
## Training
"""


class Run(NamedTuple):
    """One fit: for each score the confidences of each kind of image."""

    method: str
    scores: dict
    accuracy: float
    seconds: float


def train(method, data, options, seed):
    keras.utils.set_random_seed(seed)
    images, labels = data.train
    steps = options.epochs * -(-len(images) // BATCH_SIZE)
    model = build_model(method, images.shape[1:], options.width, steps)
    start = time.perf_counter()
    model.fit(images, labels, BATCH_SIZE, options.epochs, verbose=0)
    seconds = time.perf_counter() - start
    scores, probabilities = confidences(method, model, data.known[0])
    scores = {name: {"known": values} for name, values in scores.items()}
    for kind, unknown in data.unknown.items():
        for name, values in confidences(method, model, unknown)[0].items():
            scores[name][kind] = values
    right = probabilities.argmax(axis=1) == data.known[1]
    return Run(method, scores, 100 * np.mean(right), seconds)


def train_all(data, options):
    runs = []
    for seed in range(options.seeds):
        for method in ("plain", "SDE-Net"):
            runs.append(train(method, data, options, seed))
            print(
                f"{method}, seed {seed}: {runs[-1].accuracy:.1f}% in "
                f"{runs[-1].seconds:.1f} s",
                flush=True,
            )
    return runs


"""
## Results
"""


def detected(scores, kind):
    """AUROC, and the share of the unknown refused where 95% of known pass."""
    known, unknown = scores["known"], scores[kind]
    labels = np.repeat([1, 0], [len(known), len(unknown)])
    found = dlkit.metrics.detection_report(
        labels, np.concatenate([known, unknown])
    )
    return 100 * found["auroc"], 100 * found["tnr_at_95"]


def report(runs, data, options):
    kinds = list(data.unknown)
    head = [
        f"{kind}: {what}" for kind in kinds for what in ("AUROC", "refused")
    ]
    rows = [("confidence", "accuracy", *head)]
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        own = [run for run in runs if name in run.scores]
        cells = [spread([run.accuracy for run in own])]
        for kind in kinds:
            found = [detected(run.scores[name], kind) for run in own]
            cells += [spread(values) for values in zip(*found)]
        rows.append((name, *cells))
    seconds = {
        method: np.mean([run.seconds for run in runs if run.method == method])
        for method in ("plain", "SDE-Net")
    }
    return f"""{markdown(rows)}

Percent; seeds: {options.seeds}. Refused: of unknown images, where 95% of
the {len(data.known[0])} known ones pass. A fit took {seconds["plain"]:.1f} s
for the plain network and {seconds["SDE-Net"]:.1f} s for SDE-Net, compilation
included.
"""


def ranks(scores):
    """Confidences as shares of all images with a lower one.

    The scale of a score is its own; what counts is the order.
    """
    everything = np.sort(np.concatenate(list(scores.values())))
    return {
        kind: (
            np.searchsorted(everything, values, "left")
            + np.searchsorted(everything, values, "right")
        )
        / (2 * len(everything))
        for kind, values in scores.items()
    }


def plot(runs, data):
    """The first seed: how each score orders all images, and some of them."""
    scores = {
        name: ranks(values)
        for run in runs[:2]
        for name, values in run.scores.items()
    }
    figure = Figure(figsize=(12, 6), dpi=150, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3, 2])
    for axes, (name, kinds) in zip(
        above.subplots(1, len(scores)), scores.items()
    ):
        for kind, values in kinds.items():
            axes.hist(
                values,
                np.linspace(0, 1, 21),
                density=True,
                histtype="step",
                lw=2,
                color=COLORS[kind],
                label=kind,
            )
        axes.set(title=name, xlabel="rank, from least to most sure", yticks=[])
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend()
    plot_images(below, scores["SDE-Net, probability"], data)
    return figure


def plot_images(figure, scores, data, columns=12):
    figure.suptitle("From the least to the most sure, by SDE-Net")
    images = {"known": data.known[0], **data.unknown}
    order = [
        (rank, kind, image)
        for kind, values in scores.items()
        for rank, image in zip(values, images[kind])
    ]
    order.sort(key=lambda entry: entry[0])
    chosen = np.linspace(0, len(order) - 1, columns).round().astype(int)
    for axes, place in zip(figure.subplots(1, columns), chosen):
        _, kind, image = order[place]
        low, high = image.min(), image.max()
        axes.imshow((image - low) / (high - low), cmap="gray_r")
        axes.set_title(kind, color=COLORS[kind], fontsize=8)
        axes.set(xticks=[], yticks=[])


"""
## Run it
"""


def parse(arguments):
    parser = argparse.ArgumentParser(
        description="What a network knows about what it has not learned.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        default="digits",
        help=f"digits, {', '.join(KERAS_DATASETS)} or a folder of IDX files",
    )
    parser.add_argument("--train-size", type=int, default=2000)
    parser.add_argument(
        "--test-size", type=int, default=1000, help="images of each kind"
    )
    parser.add_argument("--width", type=int, default=16, help="channels")
    parser.add_argument("--seeds", type=int, default=3, help="fits of each")
    parser.add_argument("--epochs", type=int, default=12, help="of each fit")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/sde_net")
    )
    options = parser.parse_args(arguments)
    if options.train_size < BATCH_SIZE:
        parser.error(
            f"--train-size must be at least {BATCH_SIZE}, a batch. "
            f"Received: {options.train_size}"
        )
    return options


def main(arguments=None):
    options = parse(arguments)
    data = prepare(options.data, options.train_size, options.test_size)
    runs = train_all(data, options)
    results = report(runs, data, options)
    print(f"\n{results}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text(results, encoding="utf-8")
    plot(runs, data).savefig(options.out / "sde_net.png")
    print(f"the table and the picture are in {options.out}")


if __name__ == "__main__":
    main()
