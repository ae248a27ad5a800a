"""Lottery tickets of LeNet-300-100 on MNIST, beside the paper's figures.

KERAS_BACKEND=jax python benchmarks/lottery_ticket.py

The recipe of Frankle and Carbin (2019): Adam at 1.2e-3, batches of 60, Glorot
normal weights, 20% of the weights of each layer pruned in a round and 10% of
the last one's, 5,000 of the training images for validation, the validation loss
looked at every 100 steps. Here 20,000 steps in the place of 50,000. A ticket is
compared with its own mask on weights drawn anew, and with its own weights under
masks of the same counts at random places. Beside them a network whose weights
are never trained: a mask is, by edge-popup, in the same steps.

What is done is in files, and a series of rounds that was stopped in the middle
goes on from its last backup: start the same command again. `--report` shows
what there is.
Networks as small as these train no faster on several cores.
"""

import argparse
import itertools
import json
import pathlib

import keras
import numpy as np
from _idx import read_mnist
from _runs import mean_and_spread
from _timing import print_head
from _timing import print_row
from _training import machine
from matplotlib.figure import Figure

import keras_dlkit as dlkit

BATCH_SIZE = 60
STEPS_PER_EPOCH = 100
VALIDATION = 5_000
LEARNING_RATE = 1.2e-3
EPOCHS_PER_BACKUP = 50
# Rounds of pruning after which 21%, 13.5%, 7% and 3.6% of the weights are left.
LEVELS = (7, 9, 12, 15)
CONTROLS = ("random masks", "reinitialized")
# Of the weights that are never trained, in the supermask network.
SPARSITY = 0.5
COLORS = {
    "winning ticket": "#0072B2",
    "random masks": "#E69F00",
    "reinitialized": "#009E73",
}
# What is published, by network and round. Of tickets: Frankle and Carbin
# (2019), with 50,000 steps. Of supermasks: Zhou et al. (2019).
PAPER = {
    ("winning ticket", 7): "38% earlier",
    ("winning ticket", 9): "more than 0.3 points above the whole net",
    ("winning ticket", 15): "as good as the whole net",
    ("reinitialized", 7): "2.51 times later, 0.5 points below the ticket",
    ("supermask", None): "86 without training, 95 with learned masks",
}
# As a factor of the whole network's step, and in points to its accuracy.
PAPER_POINTS = ((0, 21, 0.62), (1, 13.5, 0.3), (1, 3.6, 0.0))


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
    """Tells the data which epoch it is, and tests where validation is best."""

    def __init__(self, data, test, epochs_per_round):
        super().__init__()
        self.data, self.test = data, test
        self.epochs_per_round = epochs_per_round
        self.best, self.accuracy = np.inf, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.data.epoch = epoch % self.epochs_per_round
        if self.data.epoch == 0:
            self.best = np.inf

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_loss"] < self.best:
            self.best = logs["val_loss"]
            images, labels = self.test
            scores = self.model.predict_on_batch(images)
            self.accuracy = float(np.mean(scores.argmax(axis=1) == labels))
        logs["test_accuracy"] = self.accuracy


class KeepRounds(keras.callbacks.Callback):
    """Writes the masks of each round, and what came of it, as they come."""

    def __init__(self, ticket, folder):
        super().__init__()
        self.ticket, self.folder = ticket, folder

    def on_epoch_end(self, epoch, logs=None):
        path = self.folder / f"masks_{int(logs['round'])}.npz"
        if not path.exists():
            masks = enumerate(self.ticket.masks.values())
            np.savez_compressed(path, **{str(i): m for i, m in masks})
        rows = [
            {
                "density": row["density"],
                "step": row["best_step"],
                "accuracy": row["at_best"]["test_accuracy"],
            }
            for row in self.ticket.history
        ]
        path = self.folder / "series.json"
        if len(rows) != len(read_rows(path)):
            write_whole(path, json.dumps(rows))
            print(f"{self.folder.name}, {len(rows)} rounds", flush=True)


class Backup(keras.callbacks.BackupAndRestore):
    """Not after each 100 steps, which would take as long as they do."""

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % EPOCHS_PER_BACKUP == 0:
            super().on_epoch_end(epoch, logs)


def read_rows(path):
    return json.loads(path.read_text()) if path.exists() else []


def load(folder):
    mnist = read_mnist(folder) if folder else keras.datasets.mnist.load_data()
    (x, y), test = mnist

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
                        10 * seed + index
                    ),
                )
                for index, (units, activation) in enumerate(sizes.items())
            ),
        ]
    )
    return compiled(net, keras.optimizers.Adam(LEARNING_RATE))


def compiled(net, optimizer):
    net.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=STEPS_PER_EPOCH,
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
    rounds = max(LEVELS) + 1
    path = folder / "series.json"
    if len(read_rows(path)) < rounds:
        ticket = dlkit.callbacks.LotteryTicket(
            rounds,
            epochs,
            pruning_rate=0.2,
            output_pruning_rate=0.1,
            scope="layer",
        )
        backup = Backup(folder / "checkpoint")
        callbacks = [ticket, KeepRounds(ticket, folder), backup]
        fit(network(seed), data, seed, rounds * epochs, epochs, callbacks)
    return read_rows(path)


def control(data, seed, epochs, folder, level, kind):
    """One training of a ticket's counterpart."""
    with np.load(folder / f"masks_{level}.npz") as file:
        masks = [file[str(index)] for index in range(len(file.files))]
    net = network(seed + 1000 if kind == "reinitialized" else seed)
    if kind == "random masks":
        random = np.random.default_rng([seed, level])
        masks = [random.permutation(m.ravel()).reshape(m.shape) for m in masks]
    masked = dlkit.optimizers.Masked(net.optimizer)
    compiled(net, masked)
    masked.build(net.trainable_variables)
    paths = [layer.kernel.path for layer in net.layers]
    masked.set_masks(dict(zip(paths, masks)))
    density = sum(m.sum() for m in masks) / sum(m.size for m in masks)
    return {"density": density, **trained(net, data, seed, epochs)}


def supermask(data, seed, epochs):
    """Random weights that are never trained, under masks that are."""
    net = dlkit.sparsity.supermask(network(seed), SPARSITY, seed=seed)
    compiled(net, keras.optimizers.Adam(LEARNING_RATE))
    return {"density": 1 - SPARSITY, **trained(net, data, seed, epochs)}


def trained(net, data, seed, epochs):
    logs = fit(net, data, seed, epochs, epochs, []).history
    best = int(np.argmin(logs["val_loss"]))
    return {
        "step": (best + 1) * STEPS_PER_EPOCH,
        "accuracy": logs["test_accuracy"][best],
    }


def once(path, make):
    """What `make` gives, from the file if there is one."""
    if not path.exists():
        write_whole(path, json.dumps(make()))
        print(f"{path.parent.name}, {path.stem}", flush=True)
    return json.loads(path.read_text())


def write_whole(path, text):
    """Writes a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def run(data, seed, epochs, out):
    """All that one seed gives, or the rest of it."""
    folder = out / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    once(
        folder / "supermask.json",
        lambda: supermask(data, seed, epochs),
    )
    series(data, seed, epochs, folder)
    for level, kind in itertools.product(LEVELS, CONTROLS):
        once(
            folder / file_name(kind, level),
            lambda: control(data, seed, epochs, folder, level, kind),  # noqa: B023
        )


def file_name(kind, level):
    return f"{kind.replace(' ', '_')}_{level}.json"


def results(out):
    """What the files hold: lists of rows, a row a seed, by kind and level."""
    found = {}

    def add(key, row):
        found.setdefault(key, []).append(row)

    for folder in sorted(out.glob("seed_*")):
        rounds = read_rows(folder / "series.json")
        for level in (0, *LEVELS):
            if level < len(rounds):
                add(("winning ticket", level), rounds[level])
            for kind in CONTROLS:
                path = folder / file_name(kind, level)
                if path.exists():
                    add((kind, level), json.loads(path.read_text()))
        path = folder / "supermask.json"
        if path.exists():
            add(("supermask", None), json.loads(path.read_text()))
    return found


def report(found, steps):
    print_head(
        "weights left, %",
        "network",
        "seeds",
        "step of least loss",
        "to the whole net, %",
        "test accuracy, %",
        "to the whole net",
        "steps trained to have it",
        "paper",
    )
    whole = found.get(("winning ticket", 0), [])
    for level, kind in itertools.product(
        (0, *LEVELS, None), ("winning ticket", *CONTROLS, "supermask")
    ):
        rows = found.get((kind, level))
        if rows:
            print_row(*cells(kind, level, rows, whole, steps))


def cells(kind, level, rows, whole, steps_a_round):
    steps, accuracies = columns(rows)
    # A ticket's masks come of the rounds before it. Random masks do without.
    needs_rounds = kind in ("winning ticket", "reinitialized")
    rounds = 1 + level if needs_rounds else 1
    relative = ["", ""]
    if whole and level != 0:
        before = [column.mean() for column in columns(whole[: len(rows)])]
        relative = [
            f"{100 * (steps.mean() / before[0] - 1):+.0f}",
            f"{accuracies.mean() - before[1]:+.2f}",
        ]
    return (
        f"{100 * rows[0]['density']:.1f}",
        "whole" if level == 0 else kind,
        f"{len(rows)}",
        mean_and_spread(steps, 0),
        relative[0],
        mean_and_spread(accuracies),
        relative[1],
        f"{rounds * steps_a_round:,}",
        PAPER.get((kind, level), ""),
    )


def columns(rows):
    """Steps and accuracies in per cent."""
    return (
        np.array([row["step"] for row in rows]),
        np.array([100 * row["accuracy"] for row in rows]),
    )


def plot(found, path):
    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    titles = (
        "step of the least validation loss",
        "test accuracy at that step (%)",
    )
    before = [c.mean() for c in columns(found["winning ticket", 0])]
    for index, axes in enumerate(figure.subplots(1, 2)):
        for kind, color in COLORS.items():
            draw(axes, found, kind, color, index)
        claims = [(d, v) for i, d, v in PAPER_POINTS if i == index]
        values = [
            before[0] * v if index == 0 else before[1] + v for _, v in claims
        ]
        axes.plot([d for d, _ in claims], values, "k*", label="paper, relative")
        axes.axhline(before[index], color="grey", lw=0.8, label="whole network")
        axes.set_xscale("log")
        axes.set_xticks([100, 21, 13.5, 7, 3.6], [100, 21, 13.5, 7, 3.6])
        axes.minorticks_off()
        axes.invert_xaxis()
        axes.set_xlabel("weights left (%)")
        axes.set_title(titles[index])
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def draw(axes, found, kind, color, index):
    levels = [le for le in (0, *LEVELS) if (kind, le) in found]
    if not levels:
        return
    values = [columns(found[kind, level])[index] for level in levels]
    axes.errorbar(
        [100 * found[kind, level][0]["density"] for level in levels],
        [v.mean() for v in values],
        [v.std() for v in values],
        color=color,
        label=kind,
        marker="o",
        capsize=3,
    )


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
    parser.add_argument(
        "--report", action="store_true", help="train nothing: what there is"
    )
    arguments = parser.parse_args()
    if not arguments.report:
        data = load(arguments.data)
        epochs = arguments.steps // STEPS_PER_EPOCH
        for seed in range(arguments.seeds):
            run(data, seed, epochs, arguments.out)
    found = results(arguments.out)
    print(machine())
    report(found, arguments.steps)
    if ("winning ticket", 0) in found:
        plot(found, arguments.out / "lottery_ticket.png")


if __name__ == "__main__":
    main()
