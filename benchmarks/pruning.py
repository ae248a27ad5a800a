"""What masks cost: in a step, in a `fit` with gradual pruning, in an update.

KERAS_BACKEND=jax python benchmarks/pruning.py
KERAS_BACKEND=tensorflow python benchmarks/pruning.py --only "Adam|tf_keras"

Rows with tfmot are of Keras 2, and need tf_keras and
tensorflow-model-optimization. Each is relative to the plain network of its own
library.
"""

import argparse
import re

import _tfmot
import keras
import numpy as np
from _timing import print_head
from _timing import print_row
from _timing import ratio_cells
from _timing import steps_in_block
from _timing import time_pairs
from _training import CLASSES
from _training import in_memory
from _training import machine
from _training import random_batches
from _training import training_steps

import keras_dlkit as dlkit

BACKEND = keras.config.backend()
SPARSITY = 0.8
EVERY_STEPS = 100
PIXELS = 784
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(1e-3),
    "momentum": lambda: keras.optimizers.SGD(1e-3, momentum=0.9),
    "Lion": lambda: keras.optimizers.Lion(1e-5),
    "Adam": lambda: keras.optimizers.Adam(1e-4),
}
# The ratios that are not to be exceeded, on PyTorch and on the others.
BAR = 1.10 if BACKEND == "torch" else 1.03


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--steps", type=int, help="steps in a block")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument(
        "--only", default="", help="regular expression of rows, as `a / b`"
    )
    parser.add_argument(
        "--memory", action="store_true", help="the memory of masks instead"
    )
    return parser.parse_args()


def compiled(optimizer, width, **arguments):
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((PIXELS,)),
            layers.Dense(width, "relu"),
            layers.Dense(width, "relu"),
            layers.Dense(CLASSES),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer, loss, **arguments)
    return net


def masked(name, width, sparsity=SPARSITY, **arguments):
    optimizer = dlkit.optimizers.Masked(OPTIMIZERS[name]())
    net = compiled(optimizer, width, **arguments)
    optimizer.build(net.trainable_variables)
    prune(optimizer, sparsity)
    return net


def prune(optimizer, rate):
    old = optimizer.masks
    new = dlkit.ops.magnitude_masks(
        optimizer.masked_variables, list(old.values()), rate
    )
    optimizer.set_masks(dict(zip(old, new)))


def batches_of(arguments, count=8):
    return random_batches(arguments.batch, count, shape=(PIXELS,))


def steps_of(net, arguments):
    return training_steps(net, in_memory(batches_of(arguments)))


def fit_of(net, arguments, schedule=None):
    """A `fit` of so many steps, gradual pruning going on for ever."""
    x, y = batches_of(arguments, count=1)[0]

    def batches():
        while True:
            yield x, y

    def run(steps):
        callbacks = []
        if schedule is not None:
            callbacks = [
                dlkit.callbacks.MagnitudePruning(
                    schedule, every_steps=EVERY_STEPS
                )
            ]
        net.fit(
            batches(),
            steps_per_epoch=steps,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )

    return run


def gradual(name, arguments):
    def schedule(step):
        """Rises with each step, and never to the end."""
        return SPARSITY * step / (step + 1000)

    net = compiled(OPTIMIZERS[name](), arguments.width)
    return fit_of(net, arguments, schedule)


def update_of(arguments):
    """Updates of all masks, while nearly all weights live and are ranked."""
    optimizer = masked("Adam", arguments.width, 0.0).optimizer

    def run(steps):
        for _ in range(steps):
            prune(optimizer, 1e-5)

    return run


def sides(arguments):
    """Rows: a name, the ratio not to be exceeded, and the two to time."""
    width = arguments.width
    # On a CPU Keras compiles by XLA on JAX, on TensorFlow only if it is asked.
    for jit in ("auto", True) if BACKEND == "tensorflow" else ("auto",):
        for name, make in OPTIMIZERS.items():
            yield (
                f"masked / plain, {name}{', XLA' if jit is True else ''}",
                BAR,
                lambda n=name, j=jit: steps_of(
                    masked(n, width, jit_compile=j), arguments
                ),
                lambda m=make, j=jit: steps_of(
                    compiled(m(), width, jit_compile=j), arguments
                ),
                1,
            )
    for name in ("momentum", "Adam"):
        make = OPTIMIZERS[name]
        yield (
            f"gradual pruning every {EVERY_STEPS} steps / plain fit, {name}",
            1.05,
            lambda n=name: gradual(n, arguments),
            lambda m=make: fit_of(compiled(m(), width), arguments),
            2 * EVERY_STEPS,
        )
    yield (
        "one update of the masks / plain step, Adam",
        2,
        lambda: update_of(arguments),
        lambda: steps_of(compiled(OPTIMIZERS["Adam"](), width), arguments),
        1,
    )


# Keras 2.


def tfmot_net(arguments, schedule=None):
    return _tfmot.network(PIXELS, arguments.width, schedule)


def tfmot_fit(arguments, schedule=None):
    net = tfmot_net(arguments, schedule)
    batch = batches_of(arguments, count=1)[0]
    return lambda steps: _tfmot.fit(net, *batch, steps, schedule is not None)


def tfmot_sides(arguments):
    """The same rows, of the library for Keras 2."""
    batches = batches_of(arguments)

    def once(sparsity):
        return _tfmot.once(sparsity, SPARSITY)

    def every(steps):
        return lambda sparsity: _tfmot.for_ever(sparsity, SPARSITY, steps)

    def plain():
        return training_steps(tfmot_net(arguments), in_memory(batches))

    yield (
        "masked by tfmot / plain, Adam, tf_keras",
        "",
        lambda: _tfmot.fixed_steps(tfmot_net(arguments, once), batches),
        plain,
        1,
    )
    yield (
        f"gradual pruning every {EVERY_STEPS} steps by tfmot / plain fit, "
        "Adam, tf_keras",
        "",
        lambda: tfmot_fit(arguments, every(EVERY_STEPS)),
        lambda: tfmot_fit(arguments),
        2 * EVERY_STEPS,
    )
    yield (
        "one update of the masks by tfmot / plain step, Adam, tf_keras",
        "",
        lambda: _tfmot.updates(tfmot_net(arguments, every(1)), *batches[0]),
        plain,
        1,
    )


def time_sides(arguments):
    print_head("ratio", "median", "95% interval", "pairs", "at most")
    for name, bar, run, baseline, multiple in (
        *sides(arguments),
        *tfmot_sides(arguments),
    ):
        if not re.search(arguments.only, name):
            continue
        try:
            run, baseline = run(), baseline()
        except ImportError as error:
            print_row(name, error, "", "", bar)
            continue
        steps = arguments.steps or steps_in_block(baseline, multiple)
        seconds = time_pairs(run, baseline, arguments.pairs, steps)
        print_row(name, *ratio_cells(seconds), bar)


# In memory.


def bytes_of(variables):
    return sum(np.asarray(v.numpy()).nbytes for v in variables)


def print_memory(arguments):
    """What masks add, by the arrays themselves."""
    net = masked("Adam", arguments.width)
    weights = sum(m.size for m in net.optimizer.masks.values())
    plain = compiled(OPTIMIZERS["Adam"](), arguments.width)
    plain.optimizer.build(plain.trainable_variables)
    added = [
        bytes_of(optimizer.variables)
        for optimizer in (net.optimizer, plain.optimizer)
    ]
    print_head("masks of", "bytes a weight", "at most")
    print_row("Masked", f"{(added[0] - added[1]) / weights:.3f}", 1)
    try:
        net = tfmot_net(arguments, lambda s: _tfmot.once(s, SPARSITY))
    except ImportError as error:
        print_row("tfmot", error, "")
    else:
        print_row("tfmot", f"{_tfmot.mask_bytes(net) / weights:.3f}", "")


def main():
    arguments = parse_arguments()
    print(f"{machine()}, batch {arguments.batch}, width {arguments.width}\n")
    if arguments.memory:
        print_memory(arguments)
    else:
        time_sides(arguments)


if __name__ == "__main__":
    main()
