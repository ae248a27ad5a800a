"""What SDE-Net costs: a training step, uncertainty, and more steps of its SDE.

KERAS_BACKEND=jax python benchmarks/sde_net.py
KERAS_BACKEND=torch python benchmarks/sde_net.py --channels-first
KERAS_BACKEND=jax python benchmarks/sde_net.py --only "^dense"
"""

import argparse
import functools
import re
import time

import keras
import numpy as np
from _sde_by_hand import SDENetByHand
from _sde_by_hand import steps_by_hand
from _sde_nets import FEATURES
from _sde_nets import NUM_STEPS
from _sde_nets import dense_parts
from _sde_nets import image_parts
from _sde_nets import image_shape
from _sde_nets import random_batches
from _sde_nets import sde_net
from _timing import print_head
from _timing import print_row
from _timing import steps_in_block
from _timing import time_rows
from _training import in_memory
from _training import machine
from _training import training_steps

BACKEND = keras.config.backend()
SAMPLES = 10
DENSE_WIDTH = 50
BLOCKS = 5
# Ratios that are not to be exceeded.
BY_HAND_BAR = 0.92 if BACKEND == "torch" else 0.90
TRAINING = [
    ("SDENet", "two steps by hand", BY_HAND_BAR),
    ("SDENet, alternating", "two steps by hand", None),
]
if BACKEND == "torch":
    TRAINING.append(("SDENet", "two steps in plain torch", 1.0))
PREDICTION = [
    (f"predict_uncertainty, {SAMPLES} samples", "predict", 4.0),
    (f"predict_uncertainty, {SAMPLES} samples", f"{SAMPLES} passes", None),
]
# The net, `unroll` of its block, and numbers of steps.
GROWTH = [
    ("dense", False, (4, 16, 64)),
    ("dense", True, (4, 16, 64)),
    ("images", None, (3, 6, 12)),
]
UNROLL = {None: "by default", False: "a loop", True: "unrolled"}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, help="steps in a block")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument(
        "--channels-first",
        action="store_true",
        help="images as PyTorch likes them",
    )
    parser.add_argument(
        "--only",
        default="",
        help="regular expression of rows, as `a / b`, or `dense, a loop`",
    )
    return parser.parse_args()


# Training.


def training_side(name, arguments):
    source = in_memory(random_batches(image_shape(), arguments.batch))
    if name == "two steps in plain torch":
        from _sde_in_torch import torch_steps

        return torch_steps(arguments.width, source)
    parts = image_parts(arguments.width)
    if name == "two steps by hand":
        return steps_by_hand(SDENetByHand(parts), source)
    net = sde_net(parts, alternating=name.endswith("alternating"))
    return training_steps(net, source)


# Prediction.


def prediction_side(name, arguments):
    """Predicts so many batches in one call, and returns when that is done."""
    net = sde_net(image_parts(arguments.width))
    rows, passes = arguments.batch, 1
    predict = net.predict
    if name.startswith("predict_uncertainty"):
        predict = functools.partial(net.predict_uncertainty, samples=SAMPLES)
    elif name.endswith("passes"):
        predict, passes = NoisyPass(net).predict, SAMPLES

    def run(steps):
        x = inputs(steps * rows)
        for _ in range(passes):
            predict(x, batch_size=rows, verbose=0)

    return run


@functools.lru_cache(maxsize=2)
def inputs(rows):
    return random_batches(image_shape(), rows, count=1)[0][0]


class NoisyPass(keras.Model):
    """One random path of each input: what the paper averages ten of."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.seeds = keras.random.SeedGenerator(0)
        self.built = True

    def call(self, x):
        net = self.net
        hidden = net.stem(x)
        shape = (NUM_STEPS, *keras.ops.shape(hidden))
        noise = keras.random.normal(shape, seed=self.seeds)
        return keras.ops.softmax(net.head(net.block(hidden, brownian=noise)))


# More steps of the SDE.


def print_growth(arguments):
    """Seconds of the first step, which compiles, and of those after it."""
    chosen = [
        (f"{net}, {UNROLL[unroll]}", net, unroll, counts)
        for net, unroll, counts in GROWTH
        if re.search(arguments.only, f"{net}, {UNROLL[unroll]}")
    ]
    if not chosen:
        return
    if BACKEND == "jax":
        import jax

        # Else a second run would find what the first has compiled.
        jax.config.update("jax_enable_compilation_cache", False)
    print()
    print_head("net", "steps of the SDE", "first step, s", "step, ms", "ratio")
    for name, net, unroll, counts in chosen:
        baseline = None
        for count in counts:
            first, each = growth(net, unroll, count, arguments)
            baseline = baseline or each
            ratio = f"{each / baseline:.2f}"
            print_row(name, count, f"{first:.2f}", f"{1e3 * each:.2f}", ratio)


def growth(name, unroll, num_steps, arguments):
    if name == "dense":
        parts, shape = dense_parts(DENSE_WIDTH), (FEATURES,)
    else:
        parts, shape = image_parts(arguments.width), image_shape()
    net = sde_net(parts, num_steps, unroll=unroll)
    source = in_memory(random_batches(shape, arguments.batch))
    if not net.optimizer.built:
        net.optimizer.build(net.trainable_variables)
    start = time.perf_counter()
    run = training_steps(net, source)
    run(1)
    first = time.perf_counter() - start
    steps = arguments.steps or steps_in_block(run)
    return first, np.median([seconds(run, steps) for _ in range(BLOCKS)])


def seconds(run, steps):
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps


def print_ratios(rows, make_side, arguments):
    side = functools.cache(lambda name: make_side(name, arguments))
    chosen = [
        (what, than, bar)
        for what, than, bar in rows
        if re.search(arguments.only, f"{what} / {than}")
    ]
    if not chosen:
        return
    steps = arguments.steps or steps_in_block(side(chosen[0][1]))
    print(f"\n{steps} steps in a block\n")
    print_head("what", "relative to", "time, ratio", "95%", "pairs", "at most")
    time_rows(chosen, side, arguments.pairs, steps)


def main():
    arguments = parse_arguments()
    if arguments.channels_first:
        keras.config.set_image_data_format("channels_first")
    print(
        f"{machine()}; batch {arguments.batch}, width {arguments.width}, "
        f"{keras.config.image_data_format()}"
    )
    print_ratios(TRAINING, training_side, arguments)
    print_ratios(PREDICTION, prediction_side, arguments)
    print_growth(arguments)


if __name__ == "__main__":
    main()
