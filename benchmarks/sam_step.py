"""What a step of SAM costs, as a ratio to the plain step of the same network.

KERAS_BACKEND=jax python benchmarks/sam_step.py
KERAS_BACKEND=jax python benchmarks/sam_step.py --memory
"""

import argparse
import functools
import os
import subprocess
import sys

import keras
from _cost import Step
from _cost import flops_ratio
from _cost import jax_peak_bytes
from _cost import process_bytes
from _cost import step_of
from _cost import torch_peak_bytes
from _cost import weight_bytes
from _sam_by_hand import RHO
from _sam_by_hand import SAMByHand
from _timing import print_head
from _timing import print_row
from _timing import steps_in_block
from _timing import time_rows
from _training import LEARNING_RATE
from _training import compiled
from _training import conv_net
from _training import in_memory
from _training import machine
from _training import random_batches
from _training import sgd
from _training import training_steps
from _training import wait_for_torch

import keras_dlkit as dlkit

BACKEND = keras.config.backend()
EVERY_STEPS = 5


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument(
        "--steps",
        type=int,
        help="steps in a block; by default 5, 10, ... to fill 0.3 s",
    )
    parser.add_argument("--batch", type=int, help="128; 2 with --memory")
    parser.add_argument("--width", type=int, help="16; 256 with --memory")
    parser.add_argument(
        "--only", default="", help="regular expression of rows, as `a / b`"
    )
    parser.add_argument(
        "--memory", action="store_true", help="peak memory instead of time"
    )
    # One step in a process of its own, for `--memory` on TensorFlow.
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    memory = arguments.memory or arguments.peak_of
    # Memory: weights that outweigh activations and libraries, else one copy
    # of them more or less would not be seen.
    arguments.batch = arguments.batch or (2 if memory else 128)
    arguments.width = arguments.width or (256 if memory else 16)
    return arguments


# The steps: how each model is made.


def frozen(width):
    """All but the head, which is what is trained of a pretrained network."""
    net = conv_net(width)
    for layer in net.layers[:-1]:
        layer.trainable = False
    return net


def plain(width, net=conv_net):
    return compiled(net(width))


def attached(width):
    return compiled(dlkit.attach(conv_net(width)))


def sam(width, method=dlkit.optimizers.SAM, net=conv_net, **settings):
    optimizer = method(sgd(), **{"rho": RHO, **settings})
    return compiled(dlkit.attach(net(width)), optimizer)


def sam_by_hand(width):
    return compiled(conv_net(width, SAMByHand))


MODELS = {
    "plain": plain,
    "attach, no part": attached,
    "SAM, rho=0": functools.partial(sam, rho=0),
    "SAM": sam,
    f"SAM, every_steps={EVERY_STEPS}": functools.partial(
        sam, every_steps=EVERY_STEPS
    ),
    "SAM, start_step=1e9": functools.partial(sam, start_step=10**9),
    "plain, frozen": functools.partial(plain, net=frozen),
    "SAM, frozen": functools.partial(sam, net=frozen),
    "SAM, micro_batches=4": functools.partial(sam, micro_batches=4),
    "GSAM": functools.partial(sam, method=dlkit.optimizers.GSAM),
    "FriendlySAM": functools.partial(sam, method=dlkit.optimizers.FriendlySAM),
    f"LookSAM, every_steps={EVERY_STEPS}": functools.partial(
        sam, method=dlkit.optimizers.LookSAM, every_steps=EVERY_STEPS
    ),
    "MomentumSAM": functools.partial(sam, method=dlkit.optimizers.MomentumSAM),
    "SAM by hand": sam_by_hand,
}


def keras_step(make_model, name, arguments, source):
    model = make_model(arguments.width)
    return step_of(model, source, EVERY_STEPS if "every_steps" in name else 1)


def tf_keras_step(wraps, arguments, source):
    """A step of Keras 2, plain or with its experimental SAM."""
    try:
        import tf_keras
    except ImportError as error:
        raise ImportError("not installed: tf_keras") from error

    model = conv_net(arguments.width, library=tf_keras)
    if wraps:
        experimental = tf_keras.models.experimental
        model = experimental.SharpnessAwareMinimization(model, rho=RHO)
    compiled(model, library=tf_keras)
    return Step(training_steps(model, source))


def torch_loop(wraps, arguments, source):
    """A loop in PyTorch over the Keras network, with its own optimizers."""
    import torch

    net = conv_net(arguments.width)
    weights = [v.value for v in net.trainable_variables]
    settings = {"lr": LEARNING_RATE, "momentum": 0.9}
    if wraps:
        try:
            from pytorch_optimizer import SAM
        except ImportError as error:
            raise ImportError("not installed: pytorch_optimizer") from error

        optimizer = SAM(weights, torch.optim.SGD, rho=RHO, **settings)
    else:
        optimizer = torch.optim.SGD(weights, **settings)

    def one_step(x, y):
        def backward():
            optimizer.zero_grad()
            logits = net(x, training=True)
            torch.nn.functional.cross_entropy(logits, y).backward()

        backward()
        optimizer.step(*[backward] if wraps else [])

    def run(steps):
        batches = source(steps)
        for _ in range(steps):
            one_step(*next(batches))
        wait_for_torch()

    return Step(run)


RIVALS = {
    "tensorflow": {
        "plain, tf_keras": functools.partial(tf_keras_step, False),
        "SAM, tf_keras": functools.partial(tf_keras_step, True),
    },
    "jax": {},
    "torch": {
        "plain, torch loop": functools.partial(torch_loop, False),
        "SAM, pytorch_optimizer": functools.partial(torch_loop, True),
    },
}[BACKEND]

STEPS = RIVALS | {
    name: functools.partial(keras_step, make_model, name)
    for name, make_model in MODELS.items()
}

# The rows: a step, what it is relative to, and the ratio not to be exceeded.
ROWS = [
    ("attach, no part", "plain", None),
    ("SAM, rho=0", "plain", None),
    ("SAM", "plain", 2.1),
    (f"SAM, every_steps={EVERY_STEPS}", "plain", 1.25),
    ("SAM, start_step=1e9", "plain", None),
    ("SAM, frozen", "plain, frozen", None),
    ("SAM, micro_batches=4", "plain", None),
    ("GSAM", "plain", 2.1),
    ("FriendlySAM", "plain", 2.1),
    (f"LookSAM, every_steps={EVERY_STEPS}", "plain", 1.3),
    ("MomentumSAM", "plain", 1.1),
    ("SAM by hand", "plain", None),
    ("SAM", "SAM by hand", 1.0),
]
if RIVALS:
    ROWS.append((*reversed(RIVALS), None))


def time_steps(arguments):
    source = in_memory(random_batches(arguments.batch))

    @functools.cache
    def step(name):
        return STEPS[name](arguments, source)

    # A whole number of periods of `every_steps`, for all rows alike.
    steps = arguments.steps or steps_in_block(step("plain").run, EVERY_STEPS)
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
        "FLOPs, ratio",
    )
    time_rows(
        ROWS,
        step,
        arguments.pairs,
        steps,
        arguments.only,
        warm_up=EVERY_STEPS,
        more=flops_ratio,
    )


# Memory.


def peak_bytes(name, arguments):
    if BACKEND == "tensorflow":
        return tensorflow_peak_bytes(name, arguments)
    source = in_memory(random_batches(arguments.batch, count=1))
    model = MODELS[name](arguments.width)
    measure = jax_peak_bytes if BACKEND == "jax" else torch_peak_bytes
    return measure(model, source)


def tensorflow_peak_bytes(name, arguments):
    """Highest memory of processes that do nothing but train."""
    # Of several: the order of operations, and so the peak, is not the same in
    # each run.
    return max(peak_of_process(name, arguments) for _ in range(3))


def peak_of_process(name, arguments):
    # What is freed goes back to the system at once, and does not add up.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    process = subprocess.run(
        [sys.executable, __file__, "--peak-of", name]
        + ["--batch", str(arguments.batch), "--width", str(arguments.width)],
        env={**os.environ, **malloc},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(process.stdout.split()[-1])


def print_peak_of_process(arguments):
    source = in_memory(random_batches(arguments.batch, count=1))
    plain_step = training_steps(plain(8), source)
    plain_step(1)  # loads what TensorFlow loads with its first step
    before = process_bytes("VmRSS")
    model = MODELS[arguments.peak_of](arguments.width)
    training_steps(model, source)(3)
    print(process_bytes("VmHWM") - before)


def measure_memory(arguments):
    copy = weight_bytes(conv_net(arguments.width))
    print(
        f"{machine()}; batch {arguments.batch}, width {arguments.width}, one "
        f"copy of the weights is {copy / 2**20:.1f} MiB\n"
    )
    print_head("step", "peak, MiB", "peak, copies", "above plain", "at most")
    peaks = {}
    for name, bar in (
        ("plain", ""),
        ("SAM", "2 (one of weights, one of gradients)"),
        ("SAM by hand", ""),
    ):
        peaks[name] = peak_bytes(name, arguments)
        print_row(
            name,
            f"{peaks[name] / 2**20:.1f}",
            f"{peaks[name] / copy:.2f}",
            f"{(peaks[name] - peaks['plain']) / copy:+.2f}",
            bar,
        )


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    if ARGUMENTS.peak_of:
        print_peak_of_process(ARGUMENTS)
    elif ARGUMENTS.memory:
        measure_memory(ARGUMENTS)
    else:
        time_steps(ARGUMENTS)
