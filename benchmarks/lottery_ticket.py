"""Lottery tickets of LeNet-300-100 on MNIST, beside the paper's figures.

KERAS_BACKEND=jax python benchmarks/lottery_ticket.py

The recipe of Frankle and Carbin (2019): Adam at 1.2e-3, batches of 60, Glorot
normal weights, 20% of the weights of each layer pruned in a round and 10% of
the last one's, 5,000 of the training images for validation, the validation loss
looked at every 100 steps. Here 20,000 steps in the place of 50,000. A ticket is
compared with its own mask on weights drawn anew, and with its own weights under
masks of the same counts at random places.

The series of rounds and each control is written to a file as it ends; a run
that was stopped goes on, the series from its last epoch.
"""

import argparse
import gzip
import json
import pathlib

import keras
import numpy as np
from _timing import print_head
from _timing import print_row
from _training import machine

import keras_dlkit as dlkit

BATCH_SIZE = 60
STEPS_PER_EPOCH = 100
VALIDATION = 5_000
# Rounds of pruning by the share of weights that is left, in per cent.
LEVELS = {7: "21", 9: "13.5", 12: "7", 15: "3.6"}


class Batches(keras.utils.PyDataset):
    """An endless, shuffled walk over the images, the same for a seed."""

    def __init__(self, images, labels, seed):
        super().__init__()
        self.images, self.labels, self.seed = images, labels, seed
        self.epoch = 0

    def __len__(self):
        return STEPS_PER_EPOCH

    def __getitem__(self, index):
        start = (self.epoch * STEPS_PER_EPOCH + index) * BATCH_SIZE
        turn, start = divmod(start, len(self.images) // BATCH_SIZE * BATCH_SIZE)
        rows = self._order(turn)[start : start + BATCH_SIZE]
        return self.images[rows], self.labels[rows]

    def _order(self, turn):
        if getattr(self, "_turn", None) != turn:
            random = np.random.default_rng([self.seed, turn])
            self._turn = turn
            self._shuffled = random.permutation(len(self.images))
        return self._shuffled


class Follow(keras.callbacks.Callback):
    """Tells the data which epoch it is, and tests at the end of each."""

    def __init__(self, data, test, epochs_per_round):
        super().__init__()
        self.data, self.test = data, test
        self.epochs_per_round = epochs_per_round

    def on_epoch_begin(self, epoch, logs=None):
        self.data.epoch = epoch % self.epochs_per_round

    def on_epoch_end(self, epoch, logs=None):
        images, labels = self.test
        scores = self.model.predict_on_batch(images)
        logs["test_accuracy"] = float(np.mean(scores.argmax(axis=1) == labels))


class KeepMasks(keras.callbacks.Callback):
    """The masks of each round, for the controls."""

    def __init__(self, ticket, folder):
        super().__init__()
        self.ticket, self.folder = ticket, folder

    def on_epoch_end(self, epoch, logs=None):
        path = self.folder / f"masks_{logs['round']}.npz"
        if not path.exists():
            masks = enumerate(self.ticket.masks.values())
            np.savez_compressed(path, **{str(i): m for i, m in masks})


def read(folder, part):
    """Images and labels from the gzipped IDX files that MNIST comes in."""
    images, labels = (
        np.frombuffer(gzip.open(folder / name).read()[skip:], "uint8")
        for name, skip in (
            (f"{part}-images-idx3-ubyte.gz", 16),
            (f"{part}-labels-idx1-ubyte.gz", 8),
        )
    )
    return images.reshape(len(labels), -1), labels


def load(folder):
    if folder is None:
        (x, y), test = keras.datasets.mnist.load_data()
    else:
        (x, y), test = (read(folder, part) for part in ("train", "t10k"))

    def flat(images):
        return (images.reshape(len(images), -1) / 255.0).astype("float32")

    x = flat(x)
    train, validation = slice(VALIDATION, None), slice(VALIDATION)
    return (
        (x[train], y[train]),
        (x[validation], y[validation]),
        (flat(test[0]), test[1]),
    )


def network(seed):
    keras.utils.set_random_seed(seed)
    sizes = {300: "relu", 100: "relu", 10: None}
    net = keras.Sequential(
        [
            keras.Input((784,)),
            *(
                keras.layers.Dense(
                    units,
                    activation,
                    kernel_initializer=keras.initializers.GlorotNormal(
                        seed + index
                    ),
                )
                for index, (units, activation) in enumerate(sizes.items())
            ),
        ]
    )
    net.compile(
        keras.optimizers.Adam(1.2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return net


def fit(net, data, seed, epochs, epochs_per_round, callbacks):
    train, validation, test = data
    batches = Batches(*train, seed)
    follow = Follow(batches, test, epochs_per_round)
    return net.fit(
        batches,
        epochs=epochs,
        shuffle=False,
        validation_data=validation,
        validation_batch_size=VALIDATION,
        callbacks=[follow, *callbacks],
        verbose=0,
    )


def series(data, seed, epochs, folder):
    """The rounds of one seed: a row each."""
    ticket = dlkit.callbacks.LotteryTicket(
        max(LEVELS) + 1,
        epochs,
        pruning_rate=0.2,
        output_pruning_rate=0.1,
        scope="layer",
        checkpoint_dir=folder / "checkpoint",
    )
    callbacks = [ticket, KeepMasks(ticket, folder)]
    rounds = max(LEVELS) + 1
    fit(network(seed), data, seed, rounds * epochs, epochs, callbacks)
    return [
        {
            "density": row["density"],
            "step": row["best_step"],
            "accuracy": row["at_best"]["test_accuracy"],
            "last": row["last"]["test_accuracy"],
        }
        for row in ticket.history
    ]


def control(data, seed, epochs, folder, level, kind):
    """One training of a ticket's counterpart."""
    with np.load(folder / f"masks_{level}.npz") as file:
        masks = [file[str(index)] for index in range(len(file.files))]
    net = network(seed + 1000 if kind == "reinitialized" else seed)
    if kind == "random masks":
        random = np.random.default_rng([seed, level])
        masks = [random.permutation(m.ravel()).reshape(m.shape) for m in masks]
    masked = dlkit.optimizers.Masked(net.optimizer)
    net.compile(masked, net.loss, metrics=["accuracy"])
    masked.build(net.trainable_variables)
    paths = [layer.kernel.path for layer in net.layers]
    masked.set_masks(dict(zip(paths, masks)))
    logs = fit(net, data, seed, epochs, epochs, []).history
    best = int(np.argmin(logs["val_loss"]))
    return {
        "density": sum(m.sum() for m in masks) / sum(m.size for m in masks),
        "step": (best + 1) * STEPS_PER_EPOCH,
        "accuracy": logs["test_accuracy"][best],
        "last": logs["test_accuracy"][-1],
    }


def once(path, make):
    """What `make` gives, from the file if there is one."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def run(data, seed, epochs, out):
    folder = out / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    rounds = once(
        folder / "series.json", lambda: series(data, seed, epochs, folder)
    )
    found = {("winning", level): rounds[level] for level in (0, *LEVELS)}
    for level in LEVELS:
        for kind in ("random masks", "reinitialized"):
            found[kind, level] = once(
                folder / f"{kind.replace(' ', '_')}_{level}.json",
                lambda: control(data, seed, epochs, folder, level, kind),  # noqa: B023
            )
            print(f"seed {seed}, {kind}, round {level}", flush=True)
    return found


def report(runs):
    print_head(
        "weights left, %", "network", "step of least loss", "test accuracy, %"
    )
    for kind, level in sorted(runs[0], key=lambda key: key[1]):
        rows = [run[kind, level] for run in runs]
        steps = [row["step"] for row in rows]
        accuracies = [100 * row["accuracy"] for row in rows]
        print_row(
            f"{100 * rows[0]['density']:.1f}",
            "whole" if level == 0 else kind,
            f"{np.mean(steps):.0f} ± {np.std(steps):.0f}",
            f"{np.mean(accuracies):.2f} ± {np.std(accuracies):.2f}",
        )


def plot(runs, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    colors = {
        "winning": "#0072B2",
        "random masks": "#E69F00",
        "reinitialized": "#009E73",
    }
    names = {
        "step": "step of the least validation loss",
        "accuracy": "test accuracy at that step",
    }
    for axes, (field, title) in zip(figure.subplots(1, 2), names.items()):
        for kind, color in colors.items():
            levels = sorted(level for k, level in runs[0] if k == kind)
            density = [100 * runs[0][kind, le]["density"] for le in levels]
            values = np.array(
                [[run[kind, le][field] for le in levels] for run in runs]
            )
            spread = values.std(axis=0)
            axes.errorbar(
                density, values.mean(axis=0), spread, color=color, label=kind
            )
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("weights left (%)")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/lottery_ticket")
    )
    parser.add_argument(
        "--data", type=pathlib.Path, help="folder of the gzipped IDX files"
    )
    arguments = parser.parse_args()
    print(machine())
    data = load(arguments.data)
    epochs = arguments.steps // STEPS_PER_EPOCH
    runs = [
        run(data, seed, epochs, arguments.out)
        for seed in range(arguments.seeds)
    ]
    report(runs)
    plot(runs, arguments.out / "lottery_ticket.png")


if __name__ == "__main__":
    main()
