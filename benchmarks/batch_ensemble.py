"""What BatchEnsemble of 4 costs, as ratios to one network.

KERAS_BACKEND=jax python benchmarks/batch_ensemble.py
KERAS_BACKEND=jax python benchmarks/batch_ensemble.py --memory

A dense network of 784-512-512-10, batches of 128 (`--batch`). "4 networks" are
four of it, one after the other, each on the whole batch.
"""

import argparse
import functools

import keras
import numpy as np
from _cost import jax_peak_bytes
from _cost import torch_peak_bytes
from _timing import print_head
from _timing import print_row
from _timing import steps_in_block
from _timing import time_rows
from _training import CLASSES
from _training import in_memory
from _training import machine
from _training import random_batches
from _training import sgd
from _training import training_steps
from _training import wait_for_torch

import keras_dlkit as dlkit

BACKEND = keras.config.backend()
MEMBERS = 4
INPUTS = 784
WIDTH = 512
KINDS = ("split", "tile", "independent")
# The rows: what, relative to what, and the ratio not to be exceeded.
TRAINING = [
    ("split", "one network", 2.0),
    ("tile", "one network", 4.2),
    ("4 networks", "one network", None),
    ("tile", "4 networks", None),
]
INFERENCE = [
    ("BatchEnsemble", "one network", 4.2),
    ("4 networks", "one network", None),
    ("folded", "one network", None),
]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--steps", type=int, help="steps in a block")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument(
        "--only", default="", help="regular expression of rows, as `a / b`"
    )
    parser.add_argument(
        "--memory", action="store_true", help="peak memory instead of time"
    )
    return parser.parse_args()


def batches(rows, count=8):
    return random_batches(rows, count, shape=(INPUTS,))


def network(width):
    return keras.Sequential(
        [
            keras.Input((INPUTS,)),
            keras.layers.Dense(width, "relu"),
            keras.layers.Dense(width, "relu"),
            keras.layers.Dense(CLASSES),
        ]
    )


def ensemble(width, members=MEMBERS, kind="tile"):
    return dlkit.models.BatchEnsemble(
        network(width), members, member_batches=kind, seed=0
    )


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(sgd(), loss)
    return model


def in_turn(runs):
    def run(steps):
        for one in runs:
            one(steps)

    return run


def training_side(name, arguments, source):
    if name == "4 networks":
        networks = [compiled(network(arguments.width)) for _ in range(MEMBERS)]
        return in_turn([training_steps(net, source) for net in networks])
    make = network
    if name in KINDS:
        make = functools.partial(ensemble, kind=name)
    return training_steps(compiled(make(arguments.width)), source)


# Inference: what `predict` calls once a batch.


def inference_side(name, arguments, x):
    if name == "4 networks":
        return in_turn(
            [prediction(network(arguments.width), x) for _ in range(MEMBERS)]
        )
    model = network(arguments.width)
    if name != "one network":
        model = compiled(ensemble(arguments.width))
    if name == "folded":
        model = model.fold(average=True)
    return prediction(model, x)


def prediction(model, x):
    x = keras.ops.convert_to_tensor(x)
    call = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
    return call[BACKEND](model, x)


def _tensorflow(model, x):
    import tensorflow as tf

    function = tf.function(lambda x: model(x, training=False), jit_compile=True)

    def run(steps):
        for _ in range(steps):
            outputs = function(x)
        outputs.numpy()

    return run


def _jax(model, x):
    import jax

    state = [
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
        )
    ]
    function = jax.jit(
        lambda state, x: model.stateless_call(*state, x, training=False)[0]
    )

    def run(steps):
        for _ in range(steps):
            outputs = function(state, x)
        jax.block_until_ready(outputs)

    return run


def _torch(model, x):
    import torch

    def run(steps):
        with torch.no_grad():
            for _ in range(steps):
                model(x, training=False)
        wait_for_torch()

    return run


# Parameters and memory.


def print_parameters(width):
    one = network(width).count_params()
    print_head("trainable parameters", "number", "to one network", "at most")
    for name, count, bar in (
        ("one network", one, ""),
        (f"BatchEnsemble of {MEMBERS}", ensemble(width).count_params(), 1.03),
        (f"{MEMBERS} networks", MEMBERS * one, ""),
    ):
        print_row(name, f"{count:,}", f"{count / one:.3f}", bar)
    print()


def measure_memory(arguments):
    """The peak of a training step, beside the ensemble's size."""
    if BACKEND == "tensorflow":
        print("TensorFlow on CPU does not say what a step holds.")
        return
    peak = jax_peak_bytes if BACKEND == "jax" else torch_peak_bytes
    rows = arguments.batch
    source = in_memory(batches(rows, count=1))
    print_head("step", "members", "weights, MiB", "peak, MiB", "peak - first")
    first = None
    for kind in ("split", "tile"):
        for members in (1, 2, 4, 8):
            model = compiled(ensemble(arguments.width, members, kind))
            weights = sum(int(np.prod(v.shape)) * 4 for v in model.weights)
            found = peak(model, source) / 2**20
            first = found if first is None else first
            print_row(
                f'"{kind}"',
                members,
                f"{weights / 2**20:.2f}",
                f"{found:.1f}",
                f"{found - first:+.1f}",
            )


def measure_time(arguments):
    columns = ("step", "relative to", "time, ratio", "95% interval", "pairs")
    source = in_memory(batches(arguments.batch))
    x = batches(arguments.batch, 1)[0][0]
    for title, rows, side, data in (
        ("Training", TRAINING, training_side, source),
        ("Inference", INFERENCE, inference_side, x),
    ):
        make = functools.cache(
            lambda name, side=side, data=data: side(name, arguments, data)
        )
        steps = arguments.steps or steps_in_block(make("one network"))
        print(f"{title}, {steps} steps in a block\n")
        print_head(*columns, "at most")
        time_rows(rows, make, arguments.pairs, steps, arguments.only)
        print()


def main():
    arguments = parse_arguments()
    print(f"{machine()}; batch {arguments.batch}, width {arguments.width}\n")
    print_parameters(arguments.width)
    if arguments.memory:
        measure_memory(arguments)
    else:
        measure_time(arguments)


if __name__ == "__main__":
    main()
