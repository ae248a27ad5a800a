"""Task weights, learned and fixed: the errors of all tasks over many seeds.

KERAS_BACKEND=jax python benchmarks/multi_task_accuracy.py

The network, data and settings of `examples/multi_task.py`, with every weighting
that there is. The fixed weights come from a search on the validation images
with one seed; all else is as the papers have it. Each fit is written to a file
as it ends: a run that was stopped goes on after the last one, and `--table`
prints what there is so far.
"""

import argparse
import pathlib
import sys
import time
from functools import partial

import numpy as np
from _runs import Runs
from _runs import mean_and_spread
from _timing import print_head
from _timing import print_row
from _training import machine

import keras_dlkit as dlkit

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
import multi_task as example  # noqa: E402

METHODS = {
    **example.METHODS,
    "RandomLossWeighting": lambda targets: dlkit.losses.RandomLossWeighting(
        seed=0
    ),
    "DynamicWeightAverage": lambda targets: dlkit.losses.DynamicWeightAverage(),
    "SoftOptimalUncertaintyWeighting": lambda targets: (
        dlkit.losses.SoftOptimalUncertaintyWeighting()
    ),
}
# Where the search has its best pair at an edge, widen it.
ANGLES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
IMAGES = (0.3, 1.0, 3.0, 10.0, 30.0)


def tuned(runs, data, epochs):
    """The loss weights of the search, each of whose fits is kept."""
    found = {}
    for pair in example.grid(ANGLES, IMAGES):
        weights = example.loss_weights(*pair)
        error = partial(example.validation_error, data, weights, epochs)
        found[pair] = runs.once(["search", *pair, epochs], error)
    return example.loss_weights(*min(found, key=found.get))


def result(name, data, seed, epochs, loss_weights):
    start = time.perf_counter()
    weights = loss_weights if name == "searched" else None
    model = example.fit(data, METHODS[name], seed, epochs, weights)
    seconds = time.perf_counter() - start
    errors = example.errors(model, *data.test)
    return {**{k: float(v) for k, v in errors._asdict().items()}, "s": seconds}


def make_runs(runs, arguments):
    data = example.load()
    epochs = arguments.epochs
    loss_weights = tuned(runs, data, epochs)
    print(f"found: {loss_weights}", flush=True)
    # The seeds come last: what was stopped early has rows to compare.
    for seed in range(arguments.seeds):
        for name in METHODS:
            make = partial(result, name, data, seed, epochs, loss_weights)
            runs.once([name, seed, epochs], make)


def gains(rows, equal):
    """By how many per cent the errors are below equal weights', on average."""
    tasks = example.Errors._fields
    return [
        100 * np.mean([1 - own[task] / other[task] for task in tasks])
        for own, other in zip(rows, equal)
    ]


def print_table(runs, arguments):
    print(
        f"\n{machine()}; {arguments.epochs} epochs, test images, mean and "
        "standard deviation over the seeds. Gain: how far the three errors are "
        "below those of equal weights, on average, seed by seed.\n"
    )
    columns = "digit, % wrong", "angle, degrees", "image, %", "gain, %", "fit"
    print_head("weights", "seeds", *columns)
    equal = known(runs, "equal", arguments)
    for name in METHODS:
        rows = known(runs, name, arguments)
        if min(len(rows), len(equal)) < 2:
            print_row(name, len(rows), "not run yet", "", "", "", "")
            continue
        cells = [
            mean_and_spread([row[task] for row in rows])
            for task in example.Errors._fields
        ]
        cells.append(mean_and_spread(gains(rows, equal), 1))
        ratios = [own["s"] / other["s"] for own, other in zip(rows, equal)]
        print_row(name, len(rows), *cells, f"{np.median(ratios):.2f}x")


def known(runs, name, arguments):
    keys = ([name, seed, arguments.epochs] for seed in range(arguments.seeds))
    return [runs[key] for key in keys if key in runs]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/multi_task_accuracy"),
    )
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    runs = Runs(arguments.out)
    if not arguments.table:
        make_runs(runs, arguments)
    print_table(runs, arguments)


if __name__ == "__main__":
    main()
