"""What the hyperspherical energy costs: in a step, on its own, in memory.

KERAS_BACKEND=jax python benchmarks/hyperspherical_energy.py
KERAS_BACKEND=jax python benchmarks/hyperspherical_energy.py --only "^energy / "
KERAS_BACKEND=jax python benchmarks/hyperspherical_energy.py --memory
"""

import argparse
import functools
import re
import subprocess
import sys

import keras
import numpy as np
from _cost import process_bytes
from _timing import print_head
from _timing import print_row
from _timing import steps_in_block
from _timing import time_rows
from _training import CLASSES
from _training import IMAGE
from _training import compiled
from _training import in_memory
from _training import machine
from _training import random_batches
from _training import training_steps
from _training import wait_for_torch
from keras import layers

import keras_dlkit as dlkit

BACKEND = keras.config.backend()
MEBIBYTE = 2**20


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--steps", type=int, help="steps in a block")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--kernel",
        type=int,
        nargs=2,
        default=(512, 4096),
        metavar=("WEIGHTS", "NEURONS"),
    )
    parser.add_argument("--block-size", type=int)
    parser.add_argument(
        "--only", default="", help="regular expression of rows, as `a / b`"
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="the memory of one wide kernel instead",
    )
    parser.add_argument("--neurons", type=int, default=65_536)
    parser.add_argument("--of", help=argparse.SUPPRESS)
    return parser.parse_args()


# In training.


def resnet_20(width):
    def block(x, filters, strides):
        h = x
        for stride in (strides, 1):
            if h is not x:
                h = layers.ReLU()(h)
            h = layers.Conv2D(
                filters, 3, stride, padding="same", use_bias=False
            )(h)
            h = layers.BatchNormalization()(h)
        if x.shape[-1] != filters:
            x = layers.Conv2D(filters, 1, strides, use_bias=False)(x)
        return layers.ReLU()(layers.Add()([x, h]))

    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for stage in range(3):
        for index in range(3):
            strides = 2 if stage and not index else 1
            x = block(x, width * 2**stage, strides)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def regularized(width, **arguments):
    model = resnet_20(width)
    energy = dlkit.regularizers.HypersphericalEnergy(0.1, **arguments)
    dlkit.regularizers.regularize(model, energy)
    return model


MODELS = {
    "plain": resnet_20,
    "energy": regularized,
    "energy, power=0": functools.partial(regularized, power=0),
    "energy, angular": functools.partial(regularized, angular=True),
}


def time_training(arguments):
    batches = random_batches(arguments.batch)

    @functools.cache
    def step(name):
        model = compiled(MODELS[name](arguments.width))
        return training_steps(model, in_memory(batches))

    rows = [
        (name, "plain", 1.05 if name == "energy" else None)
        for name in MODELS
        if name != "plain"
    ]
    title = f"ResNet-20, batch {arguments.batch}, width {arguments.width}"
    print_times(title, rows, step, arguments)


def print_times(title, rows, side, arguments):
    """A table of the rows that `--only` leaves, if it leaves any."""
    names = [f"{name} / {baseline}" for name, baseline, _ in rows]
    if not any(re.search(arguments.only, name) for name in names):
        return
    steps = arguments.steps or steps_in_block(side(rows[0][1]))
    print(f"\n{title}, {steps} calls in a block\n")
    columns = "time, ratio", "95% interval", "pairs", "at most"
    print_head("of", "relative to", *columns)
    time_rows(rows, side, arguments.pairs, steps, arguments.only)


# On its own, compiled where the backend compiles in `fit` by default.


def energy_of(block_size):
    return lambda x: dlkit.ops.hyperspherical_energy(x, block_size=block_size)


def product(x):
    return keras.ops.matmul(keras.ops.transpose(x), x)


def with_gradient(function):
    """`function` to its gradient."""
    if BACKEND == "jax":
        import jax

        return jax.grad(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def gradient(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x)
            return tape.gradient(value, x)

        return gradient

    def gradient(x):
        x = x.detach().requires_grad_()
        function(x).backward()
        return x.grad

    return gradient


def runs(function, kernel):
    """A function that calls it so many times, and returns when it is done."""
    if BACKEND == "jax":
        import jax

        function = jax.jit(function)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(function)

    def run(times):
        for _ in range(times):
            result = function(kernel)
        if BACKEND == "jax":
            jax.block_until_ready(result)
        elif BACKEND == "tensorflow":
            result.numpy()
        else:
            wait_for_torch()

    return run


def random_kernel(weights, neurons):
    kernel = np.random.default_rng(0).normal(size=(weights, neurons))
    return keras.ops.convert_to_tensor(kernel, dtype="float32")


def time_kernel(arguments):
    kernel = random_kernel(*arguments.kernel)
    energy = energy_of(arguments.block_size)
    functions = {
        "matrix product": product,
        "value": energy,
        "value and gradient": with_gradient(energy),
    }
    bars = {"value": 2, "value and gradient": 4}
    side = functools.cache(lambda name: runs(functions[name], kernel))
    rows = [(name, "matrix product", bar) for name, bar in bars.items()]
    title = f"One kernel of (weights, neurons) {tuple(arguments.kernel)}"
    print_times(title, rows, side, arguments)


# In memory: the resident memory of a process of its own.


def print_peak(arguments):
    """In a child: what the call takes above what was there before."""
    small = random_kernel(arguments.kernel[0], 8)
    energy = energy_of(arguments.block_size)
    function = energy if arguments.of == "energy" else with_gradient(energy)
    runs(function, small)(1)  # what the backend loads for any kernel
    kernel = random_kernel(arguments.kernel[0], arguments.neurons)
    before = process_bytes("VmRSS")
    runs(function, kernel)(1)
    print((process_bytes("VmHWM") - before) / MEBIBYTE)


def print_memory(arguments):
    print(
        f"{machine()}; a kernel of {arguments.kernel[0]} weights and "
        f"{arguments.neurons} neurons, block size {arguments.block_size}\n"
    )
    print_head("function", "MiB above the kernel", "at most")
    for name in ("energy", "energy and gradient"):
        output = subprocess.run(
            [sys.executable, *sys.argv, "--of", name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        print_row(name, f"{float(output.splitlines()[-1]):.0f}", 2048)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    if ARGUMENTS.of:
        print_peak(ARGUMENTS)
    elif ARGUMENTS.memory:
        print_memory(ARGUMENTS)
    else:
        print(machine())
        time_training(ARGUMENTS)
        time_kernel(ARGUMENTS)
