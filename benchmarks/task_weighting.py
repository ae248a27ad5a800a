"""What weighing tasks costs: the attached step beside fixed weights.

KERAS_BACKEND=jax python benchmarks/task_weighting.py
KERAS_BACKEND=jax python benchmarks/task_weighting.py --only PCGrad
"""

import argparse
import functools

import keras
from _timing import print_head
from _timing import steps_in_block
from _timing import time_rows
from _training import CLASSES
from _training import conv_net
from _training import in_memory
from _training import machine
from _training import random_batches
from _training import sgd
from _training import training_steps

import keras_dlkit as dlkit

TASKS = ("first", "second", "third")
PARTS = {
    "UncertaintyWeighting": lambda: dlkit.losses.UncertaintyWeighting(
        dict.fromkeys(TASKS, "classification")
    ),
    "EqualWeighting": dlkit.losses.EqualWeighting,
    "RandomLossWeighting": dlkit.losses.RandomLossWeighting,
    "DynamicWeightAverage": dlkit.losses.DynamicWeightAverage,
    "GeometricLossStrategy": dlkit.losses.GeometricLossStrategy,
    "SoftOptimalUncertaintyWeighting": (
        dlkit.losses.SoftOptimalUncertaintyWeighting
    ),
    "FAMO": dlkit.losses.FAMO,
    "PCGrad": dlkit.losses.PCGrad,
}
BARS = {"FAMO": None, "PCGrad": len(TASKS) + 1}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--steps", type=int, help="steps in a block")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--only", default="", help="regular expression of rows, as `a / b`"
    )
    return parser.parse_args()


def network(width):
    """The network of the other benchmarks, with a head a task."""
    trunk = conv_net(width)
    features = trunk.layers[-2].output
    outputs = {
        name: keras.layers.Dense(CLASSES, name=name)(features) for name in TASKS
    }
    return keras.Model(trunk.inputs, outputs)


def step(name, batches, width):
    model = network(width)
    if name in PARTS:
        model = dlkit.attach(model, PARTS[name]())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        sgd(),
        loss=dict.fromkeys(TASKS, loss),
        loss_weights=None if name in PARTS else dict.fromkeys(TASKS, 0.5),
    )
    return training_steps(model, in_memory(batches))


def main():
    arguments = parse_arguments()
    print(machine())
    batches = [
        (x, dict.fromkeys(TASKS, y)) for x, y in random_batches(arguments.batch)
    ]
    side = functools.lru_cache(maxsize=None)(
        lambda name: step(name, batches, arguments.width)
    )
    steps = arguments.steps or steps_in_block(side("fixed weights"))
    print_head("step of", "relative to", "ratio", "95%", "pairs", "bar")
    rows = [(n, "fixed weights", BARS.get(n, 1.02)) for n in PARTS]
    time_rows(rows, side, arguments.pairs, steps, arguments.only)


if __name__ == "__main__":
    main()
