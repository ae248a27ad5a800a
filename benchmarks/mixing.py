"""What MixUp costs: in the attached step, in `tf.data`, and on its own.

KERAS_BACKEND=jax python benchmarks/mixing.py
KERAS_BACKEND=jax python benchmarks/mixing.py --images 64 224 224 3
"""

import argparse
import functools
import re

import keras
import numpy as np
from _timing import print_head
from _timing import print_row
from _timing import ratio_cells
from _timing import steps_in_block
from _timing import time_pairs
from _training import CLASSES
from _training import compiled
from _training import conv_net
from _training import from_pipeline
from _training import in_memory
from _training import machine
from _training import random_batches
from _training import training_steps
from _training import wait_for_torch

import keras_dlkit as dlkit

BACKEND = keras.config.backend()
ALPHA = 0.2
# A pipeline starts anew in each block, and its first batch has no step to
# hide behind.
STEPS_AT_LEAST = 10


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument(
        "--steps",
        type=int,
        help="steps in a block; by default 10, 20, ... to fill 0.3 s",
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--only", default="", help="regular expression of rows, as `a / b`"
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs=4,
        default=(256, 64, 64, 3),
        metavar=("ROWS", "HEIGHT", "WIDTH", "CHANNELS"),
        help="what the layer alone gets",
    )
    return parser.parse_args()


def our_mix_up():
    return dlkit.layers.MixUp(ALPHA, num_classes=CLASSES)


# In training. Targets are one-hot already, on all sides alike.


def plain(width):
    return compiled(conv_net(width), one_hot=True)


def attached(width):
    model = dlkit.attach(conv_net(width), our_mix_up())
    return compiled(model, one_hot=True)


def pipeline(batches, change=None):
    """An endless `tf.data` pipeline, which maps `change` over batches."""
    import tensorflow as tf

    x, y = map(np.concatenate, zip(*batches))
    rows = len(batches[0][0])
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
    dataset = dataset.batch(rows, drop_remainder=True)
    if change is not None:
        dataset = dataset.map(change, num_parallel_calls=tf.data.AUTOTUNE)
    return from_pipeline(dataset.prefetch(tf.data.AUTOTUNE))


def keras_pipeline(batches):
    layer = keras.layers.MixUp(ALPHA)

    def change(x, y):
        mixed = layer({"images": x, "labels": y})
        return mixed["images"], mixed["labels"]

    return pipeline(batches, change)


def our_pipeline(batches):
    layer = our_mix_up()
    return pipeline(batches, lambda x, y: layer((x, y)))


# A step is a model and where its batches come from.
STEPS = {
    "plain": (plain, in_memory),
    "MixUp, attached": (attached, in_memory),
    "plain, tf.data": (plain, pipeline),
    "keras.layers.MixUp, tf.data": (plain, keras_pipeline),
    "MixUp, tf.data": (plain, our_pipeline),
}

# The rows: a step, what it is relative to, and the ratio not to be exceeded.
ROWS = [
    ("MixUp, attached", "plain", 1.03),
    ("keras.layers.MixUp, tf.data", "plain, tf.data", None),
]
if BACKEND == "tensorflow":  # elsewhere it does not run in a pipeline
    ROWS.append(("MixUp, tf.data", "plain, tf.data", None))


def time_training(arguments):
    batches = random_batches(arguments.batch, one_hot=True)

    @functools.cache
    def step(name):
        make_model, make_source = STEPS[name]
        model = make_model(arguments.width)
        return training_steps(model, make_source(batches))

    steps = arguments.steps or steps_in_block(step("plain"), STEPS_AT_LEAST)
    print(
        f"{machine()}; batch {arguments.batch}, width {arguments.width}, "
        f"{steps} steps in a block\n"
    )
    print_head(
        "step",
        "relative to",
        "time, ratio",
        "95% interval",
        "pairs",
        "at most",
    )
    for name, baseline, bar in ROWS:
        if not re.search(arguments.only, f"{name} / {baseline}"):
            continue
        seconds = time_pairs(step(name), step(baseline), arguments.pairs, steps)
        print_row(name, baseline, *ratio_cells(seconds), bar or "")


# The layer alone.


def layer_runs(layer, batch, rebuild):
    """A function that mixes one batch in memory so many times.

    Args:
        layer: Layer that takes the structure that `rebuild` makes.
        batch: Images and one-hot targets, tensors.
        rebuild: Function of images and targets to the layer's argument; anew
            for each call, for `keras.layers.MixUp` writes into its argument.
    """
    layer(rebuild(*batch))  # builds what it has to build

    if BACKEND == "tensorflow":
        import tensorflow as tf

        mix = tf.function(lambda x, y: layer(rebuild(x, y)))
    elif BACKEND == "jax":
        mix = jitted(layer, rebuild)
    else:

        def mix(x, y):
            return layer(rebuild(x, y))

    def run(times):
        for _ in range(times):
            mixed = mix(*batch)
        wait_for(mixed)

    return run


def jitted(layer, rebuild):
    import jax

    @jax.jit
    def stateless(variables, x, y):
        return layer.stateless_call([], variables, rebuild(x, y))

    variables = [v.value for v in layer.non_trainable_variables]

    def mix(x, y):
        nonlocal variables
        mixed, variables = stateless(variables, x, y)
        return mixed

    return mix


def wait_for(tensors):
    if BACKEND == "jax":
        import jax

        jax.block_until_ready(tensors)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        tf.nest.flatten(tensors)[-1].numpy()
    else:
        wait_for_torch()


def time_layers(arguments):
    rows = arguments.images[0]
    rng = np.random.default_rng(0)
    batch = [
        keras.ops.convert_to_tensor(part, dtype="float32")
        for part in (
            rng.uniform(size=arguments.images),
            np.eye(CLASSES)[rng.integers(CLASSES, size=rows)],
        )
    ]
    keras_run = layer_runs(
        keras.layers.MixUp(ALPHA),
        batch,
        lambda x, y: {"images": x, "labels": y},
    )
    our_run = layer_runs(our_mix_up(), batch, lambda x, y: (x, y))
    times = steps_in_block(keras_run)
    seconds = time_pairs(our_run, keras_run, arguments.pairs, times)
    ours, theirs = rows / np.median(seconds, axis=0)
    print(
        f"\nThe layer alone, images {tuple(arguments.images)}, "
        f"{times} calls in a block\n"
    )
    print_head(
        "layer",
        "relative to",
        "time, ratio",
        "95% interval",
        "pairs",
        "images a second",
        "of the other",
    )
    print_row(
        "MixUp",
        "keras.layers.MixUp",
        *ratio_cells(seconds),
        f"{ours:,.0f}",
        f"{theirs:,.0f}",
    )


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    time_training(ARGUMENTS)
    time_layers(ARGUMENTS)
