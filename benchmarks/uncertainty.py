"""What networks know about what they do not know, on real data.

KERAS_BACKEND=jax python benchmarks/uncertainty.py

One network, MC dropout, BatchEnsemble of 4, 4 networks and SDE-Net, trained on
MNIST and shown Fashion-MNIST, and the other way round: how well the confidence
tells known from unknown images, and right from wrong answers; accuracy,
likelihood and calibration. Then a regression on the diabetes data of
scikit-learn.

Stem, blocks, head and noise (that for SVHN) are those of SDE-Net's paper (Kong
et al., 2020), smaller: 16 channels. The unknown is in training the inputs with
Gaussian noise, never the images that it is tested on. BatchEnsemble has the
random signs of its paper, and half the learning rate for fast weights. The same
for all: Adam with a cosine from 3e-3, batches of 32, the epochs. That is not
the papers' SGD with steps down, and not their noise for MNIST (20, then 500),
which need their 40 epochs of 60,000 images: it was chosen by accuracy on
training images of Fashion-MNIST that were held out. The dense layers of the
regression begin as in the paper, and its scale is at least 1e-3: chosen beside
Glorot's, and clipped gradients, on a fifth of the training rows.

Each training is written to files as it ends: a run that was stopped goes on
after it. `--report` prints what there is.
"""

import argparse
import functools
import pathlib
import time

import keras
import numpy as np
from _idx import read_mnist
from _runs import Runs
from _runs import mean_and_spread
from _timing import print_head
from _timing import print_row
from _training import machine
from _uncertainty_nets import Passes
from _uncertainty_nets import resnet
from _uncertainty_nets import sde_net

import keras_dlkit as dlkit

MEMBERS = 4
PASSES = 10
FOLDS = 5
ROWS_AT_ONCE = 500
BATCH_SIZE = 32
RATE = {"images": 3e-3, "numbers": 1e-3}
WIDTH = {"images": 16, "numbers": 50}
INPUTS = {"images": (28, 28, 1), "numbers": (10,)}
# Rows of the tables, and the trainings that each is made of.
METHODS = {
    "one network": ["network 0"],
    "MC dropout": ["MC dropout"],
    "BatchEnsemble of 4": ["BatchEnsemble"],
    "4 networks": [f"network {member}" for member in range(MEMBERS)],
    "SDE-Net": ["SDE-Net"],
}
TRAININGS = sorted({name for names in METHODS.values() for name in names})
FAST_LEARNING_RATE = 0.5
LEVELS = np.arange(1, 20) / 20


# Training.


def make(name, kind, seed):
    """The network of a training, not compiled."""
    shape = kind, WIDTH[kind], INPUTS[kind]
    member = int(name.split()[1]) if name.startswith("network") else 0
    keras.utils.set_random_seed(1000 * seed + member)
    if name == "SDE-Net":
        return sde_net(*shape, seed)
    net = resnet(*shape, dropout=name == "MC dropout")
    if name == "BatchEnsemble":
        return dlkit.models.BatchEnsemble(
            net, MEMBERS, fast_learning_rate=FAST_LEARNING_RATE, seed=seed
        )
    return net


def optimizer_of(kind, steps):
    rate = RATE[kind]
    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(rate, steps)
    )


def train(name, kind, seed, data, epochs):
    """A trained network, and what its training took."""
    x, y = data
    net = make(name, kind, seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if kind == "numbers":
        loss = dlkit.losses.GaussianNegativeLogLikelihood()
    steps = epochs * -(-len(x) // BATCH_SIZE)
    net.compile(optimizer_of(kind, steps), loss)
    clock = Clock()
    net.fit(x, y, BATCH_SIZE, epochs=epochs, verbose=0, callbacks=[clock])
    return net, {
        "seconds": clock.seconds,
        "parameters": sum(int(np.prod(v.shape)) for v in net.trainable_weights),
    }


class Clock(keras.callbacks.Callback):
    """The time that all epochs take, from those after the first.

    In the first all is compiled. Of the processor, which does not count what
    else a machine does.
    """

    def on_train_begin(self, logs=None):
        self.times = [time.process_time()]

    def on_epoch_end(self, epoch, logs=None):
        self.times.append(time.process_time())

    @property
    def seconds(self):
        _, *times = self.times
        each = (times[-1] - times[0]) / max(len(times) - 1, 1)
        return each * len(times)


def predict(name, net, x):
    """Outputs of shape (members or passes, rows, ...)."""
    options = {"batch_size": ROWS_AT_ONCE, "verbose": 0}
    if name == "BatchEnsemble":
        return net.member_predict(x, **options)
    if name == "MC dropout":
        passes = Passes(net)
        return np.stack([passes.predict(x, **options) for _ in range(PASSES)])
    return net.predict(x, **options)[None]


def probabilities(name, net, x):
    if name == "SDE-Net":
        found = net.predict_uncertainty(
            x, PASSES, batch_size=ROWS_AT_ONCE, verbose=0
        )
        return {"mean": found["mean"], "diffusion": found["diffusion"]}
    outputs = predict(name, net, x).astype("float64")
    exp = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return {"mean": (exp / exp.sum(axis=-1, keepdims=True)).mean(axis=0)}


def normal_laws(name, net, x):
    """Means and variances of rows, those of the mixture of all members."""
    if name == "SDE-Net":
        found = net.predict_uncertainty(
            x, PASSES, batch_size=ROWS_AT_ONCE, verbose=0
        )
        mean, variance = found["mean"][:, 0], found["total"]
        return {"mean": mean, "variance": variance.reshape(len(x))}
    mean, scale = np.moveaxis(predict(name, net, x), -1, 0).astype("float64")
    variance = np.mean(scale**2, axis=0) + mean.var(axis=0)
    return {"mean": mean.mean(axis=0), "variance": variance}


class Store:
    """What trainings took, and their predictions in files beside."""

    def __init__(self, folder):
        self.folder, self.runs = folder, Runs(folder)

    def path(self, key):
        return self.folder / ("_".join(map(str, key)) + ".npz").replace(" ", "")

    def once(self, key, make):
        def make_and_keep():
            arrays, facts = make()
            np.savez_compressed(self.path(key), **arrays)
            return facts

        return self.runs.once(key, make_and_keep)

    def read(self, keys):
        """Arrays and facts of trainings that there are, `None` if not all."""
        facts = [self.runs.get(key) for key in keys]
        if None in facts:
            return None
        arrays = []
        for key in keys:
            with np.load(self.path(key)) as file:
                arrays.append(dict(file))
        return arrays, facts


# Images.


@functools.cache
def load_images(data):
    """Both sets: images as bytes, and labels, to train and to test."""
    mnist = read_mnist(data) if data else keras.datasets.mnist.load_data()
    return {
        "MNIST": mnist,
        "Fashion-MNIST": keras.datasets.fashion_mnist.load_data(),
    }


def other(known):
    return "Fashion-MNIST" if known == "MNIST" else "MNIST"


def images_of(arguments, known, seed):
    sets = load_images(arguments.data)
    (x, y), (test_x, test_y) = sets[known]
    random = np.random.default_rng(seed)
    rows = random.permutation(len(x))[: arguments.images]
    mean, deviation = x[rows].mean(), x[rows].std()

    def standardized(images):
        return ((images[..., None] - mean) / deviation).astype("float32")

    count = arguments.test_images
    unknown = sets[other(known)][1][0]
    return {
        "train": (standardized(x[rows]), y[rows]),
        "known": standardized(test_x[:count]),
        "labels": test_y[:count],
        "unknown": standardized(unknown[:count]),
    }


def key_of(arguments, known, seed, name):
    sizes = arguments.images, arguments.test_images, arguments.epochs
    return [known, name, seed, *sizes]


def train_on_images(arguments, store, known, seed, name):
    def run():
        data = images_of(arguments, known, seed)
        net, facts = train(
            name, "images", seed, data["train"], arguments.epochs
        )
        probabilities(name, net, data["known"][:ROWS_AT_ONCE])  # compiles
        start = time.process_time()
        arrays = {"labels": data["labels"]}
        for part in ("known", "unknown"):
            found = probabilities(name, net, data[part])
            arrays |= {f"{part}_{k}": v for k, v in found.items()}
        facts["prediction"] = time.process_time() - start
        return arrays, facts

    store.once(key_of(arguments, known, seed, name), run)


def scores_of(found, by_diffusion=False):
    """All numbers of a method and seed, from its trainings."""
    arrays, facts = found
    labels = arrays[0]["labels"]
    known, unknown = (
        np.mean([a[f"{part}_mean"] for a in arrays], axis=0, dtype="float64")
        for part in ("known", "unknown")
    )
    confidence, others = known.max(axis=1), unknown.max(axis=1)
    if by_diffusion:
        confidence, others = (
            -arrays[0][f"{part}_diffusion"] for part in ("known", "unknown")
        )
    right = known.argmax(axis=1) == labels
    report = dlkit.metrics.detection_report
    is_known = np.repeat([1, 0], [len(confidence), len(others)])
    found = report(is_known, np.concatenate([confidence, others]))
    errors = report(right, confidence)
    own = known[np.arange(len(labels)), labels]
    return {
        **{name: 100 * value for name, value in found.items()},
        **{f"errors_{name}": 100 * value for name, value in errors.items()},
        "accuracy": 100 * right.mean(),
        "nll": -np.log(np.maximum(own, 1e-12)).mean(),
        "ece": 100 * calibration_error(known.max(axis=1), right),
        "parameters": sum(fact["parameters"] for fact in facts),
        "seconds": sum(fact["seconds"] for fact in facts),
        "prediction": sum(fact["prediction"] for fact in facts),
    }


def calibration_error(confidence, right, bins=15):
    """The mean gap of confidence and accuracy, over bins of confidence."""
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs((right[places == b] - confidence[places == b]).sum())
        for b in range(bins)
    ]
    return np.sum(gaps) / len(right)


# Numbers.


def folds():
    """Five parts of the data, each the test set once."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(0).permutation(len(x))
    for test in np.array_split(order, FOLDS):
        rest = np.setdiff1d(order, test)
        means, deviations = x[rest].mean(axis=0), x[rest].std(axis=0)
        inputs = ((x - means) / deviations).astype("float32")
        targets = ((y - y[rest].mean()) / y[rest].std()).astype("float32")
        yield inputs[rest], targets[rest], inputs[test], targets[test]


def train_on_numbers(arguments, store, fold, name):
    def run():
        x, y, test_x, test_y = list(folds())[fold]
        epochs = arguments.numbers_epochs
        net, facts = train(name, "numbers", fold, (x, y[:, None]), epochs)
        return {"targets": test_y, **normal_laws(name, net, test_x)}, facts

    store.once(["diabetes", name, fold, arguments.numbers_epochs], run)


def regression_scores_of(found):
    from scipy.stats import norm

    arrays, _ = found
    targets = arrays[0]["targets"].astype("float64")
    means = np.array([a["mean"] for a in arrays])
    mean = means.mean(axis=0)
    variance = np.mean([a["variance"] for a in arrays], axis=0)
    variance = variance + means.var(axis=0)
    error = targets - mean
    nll = 0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)
    inside = 2 * norm.cdf(np.abs(error) / np.sqrt(variance)) - 1
    coverages = [(inside <= level).mean() for level in LEVELS]
    return {
        "rmse": np.sqrt(np.mean(error**2)),
        "nll": nll.mean(),
        "calibration": 100 * np.mean(np.abs(coverages - LEVELS)),
        "covered": 100 * coverages[-1],
    }


# Tables.

TABLES = {
    "Known or unknown, by confidence": {
        "accuracy, %": "accuracy",
        "AUROC": "auroc",
        "TNR at 95% TPR": "tnr_at_95",
        "AUPR in": "aupr_in",
        "AUPR out": "aupr_out",
        "detection accuracy": "detection_accuracy",
    },
    "Right or wrong, by confidence": {
        "AUROC": "errors_auroc",
        "TNR at 95% TPR": "errors_tnr_at_95",
        "AUPR of right": "errors_aupr_in",
        "AUPR of wrong": "errors_aupr_out",
    },
    "Accuracy, likelihood, calibration and cost": {
        "accuracy, %": "accuracy",
        "NLL": "nll",
        "ECE, %": "ece",
        "parameters": "parameters",
        "training, core s": "seconds",
        "prediction, core s": "prediction",
    },
}
NUMBERS = {
    "RMSE": "rmse",
    "NLL": "nll",
    "calibration error, %": "calibration",
    "in the 95% interval, %": "covered",
}
DIGITS = {"nll": 3, "rmse": 3, "parameters": 0, "seconds": 0, "prediction": 0}


def cells(rows, columns):
    for column in columns.values():
        values = [row[column] for row in rows]
        digits = DIGITS.get(column, 1)
        if len(values) == 1 or column == "parameters":
            yield f"{values[0]:.{digits}f}"
        else:
            yield mean_and_spread(values, digits)


def print_table(title, count, columns, rows):
    """Rows: of each name the results of its seeds, or none."""
    print(f"\n{title}\n")
    print_head("method", count, *columns)
    for name, results in rows.items():
        if results:
            print_row(name, len(results), *cells(results, columns))


def report_images(arguments, store):
    for known in arguments.known:
        results = {name: [] for name in METHODS}
        by_diffusion = []
        for seed in range(arguments.seeds):
            for name, parts in METHODS.items():
                keys = [key_of(arguments, known, seed, part) for part in parts]
                found = store.read(keys)
                if found:
                    results[name].append(scores_of(found))
                if found and name == "SDE-Net":
                    by_diffusion.append(scores_of(found, by_diffusion=True))
        for title, columns in TABLES.items():
            rows = dict(results)
            if "AUROC" in columns:
                rows["SDE-Net, by its diffusion"] = by_diffusion
            title = f"{known}, unknown: {other(known)}. {title}"
            print_table(title, "seeds", columns, rows)


def report_numbers(arguments, store):
    results = {name: [] for name in METHODS}
    for fold in range(FOLDS):
        for name, parts in METHODS.items():
            keys = [
                ["diabetes", part, fold, arguments.numbers_epochs]
                for part in parts
            ]
            found = store.read(keys)
            if found:
                results[name].append(regression_scores_of(found))
    title = "Diabetes, targets standardized. Regression"
    print_table(title, "folds", NUMBERS, results)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--test-images", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--numbers-epochs", type=int, default=100)
    parser.add_argument(
        "--known",
        nargs="*",
        default=["MNIST", "Fashion-MNIST"],
        choices=["MNIST", "Fashion-MNIST"],
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/uncertainty")
    )
    parser.add_argument(
        "--data", type=pathlib.Path, help="folder of MNIST's gzipped IDX files"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing: what there is"
    )
    return parser.parse_args()


def train_all(arguments, store):
    for fold in range(FOLDS):
        for name in TRAININGS:
            train_on_numbers(arguments, store, fold, name)
    # Seeds outside: what was stopped early has rows to compare.
    for seed in range(arguments.seeds):
        for known in arguments.known:
            for name in TRAININGS:
                train_on_images(arguments, store, known, seed, name)


def main():
    arguments = parse_arguments()
    store = Store(arguments.out)
    if not arguments.report:
        train_all(arguments, store)
    print(
        f"{machine()}; {arguments.images} images and {arguments.epochs} epochs "
        f"to train, {arguments.test_images} known and as many unknown to test"
    )
    report_images(arguments, store)
    report_numbers(arguments, store)


if __name__ == "__main__":
    main()
