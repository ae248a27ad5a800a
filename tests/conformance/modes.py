"""The device modes, and what a case promises in each.

`devices.py` tests what `promise` says, `stock.py` that Keras fails where
`fails_in_keras` says so, and `support_matrix.py` prints both.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import keras

# What the run of a case is compared with: the run on one device ...
TESTED = "tested"  # that one itself
EQUAL = "equal"  # on the same global batches
PER_REPLICA = "equal by replica"  # with the rows as the replicas cut them
RUNS = "runs"  # not at all, for each replica draws for itself
# Of ways to run a step, where that is not a word on the parts.
FAILS = "Keras fails"  # without any part of ours
NONE = "Keras has none"
UNTESTED = "not tested"


@contextlib.contextmanager
def one_device():
    yield contextlib.nullcontext


@contextlib.contextmanager
def mirrored():
    """Two replicas, without XLA and accumulation, where Keras itself fails."""
    yield strategy().scope


@functools.cache
def strategy():
    """One a process: the collectives of two would take each other's keys."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def two_logical_devices():
    """On TensorFlow: before anything else."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [logical, logical])


@contextlib.contextmanager
def distributed(distribution):
    keras.distribution.set_distribution(distribution)
    try:
        yield contextlib.nullcontext
    finally:
        keras.distribution.set_distribution(None)


def data_parallel():
    return distributed(
        keras.distribution.DataParallel(
            devices=keras.distribution.list_devices(),
            # Of several processes each brings its own rows.
            auto_shard_dataset=False,
        )
    )


def model_parallel():
    """The batch in two, the hidden layer in two."""
    mesh = keras.distribution.DeviceMesh(
        (2, 2), ("batch", "model"), keras.distribution.list_devices()
    )
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*hidden/.*kernel.*"] = (None, "model")
    layout[".*hidden/.*bias"] = ("model",)
    return distributed(
        keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch"
        )
    )


@dataclasses.dataclass(frozen=True)
class Mode:
    name: str
    title: str
    backend: str
    # A context to train in, which gives that to make the model in.
    scope: Callable
    devices: int
    processes: int = 1


MODES = {
    mode.name: mode
    for mode in (
        Mode("mirrored", "`MirroredStrategy`", "tensorflow", mirrored, 2),
        Mode("data_parallel", "`DataParallel`", "jax", data_parallel, 4),
        Mode("model_parallel", "`ModelParallel`", "jax", model_parallel, 4),
        Mode("two_processes", "two processes", "jax", data_parallel, 4, 2),
    )
}

ONE_DEVICE = [
    Mode("one_device", "one device", backend, one_device, 1)
    for backend in ("tensorflow", "jax", "torch")
]
ALL = [*ONE_DEVICE, *MODES.values()]


def promise(case, mode):
    """On JAX a step is compiled for the global batch, whatever is in it."""
    if mode in ONE_DEVICE:
        return TESTED
    if mode.backend == "jax":
        return EQUAL
    if case.draws:
        return RUNS
    return PER_REPLICA if case.micro_batches > 1 else EQUAL


@dataclasses.dataclass(frozen=True)
class Way:
    """To run a step: arguments of `compile` and of the optimizer."""

    name: str
    title: str
    compile: dict = dataclasses.field(default_factory=dict)
    optimizer: dict = dataclasses.field(default_factory=dict)


WAYS = {
    way.name: way
    for way in (
        Way("xla", "XLA: `jit_compile=True`", {"jit_compile": True}),
        Way(
            "accumulation",
            "`gradient_accumulation_steps`",
            optimizer={"gradient_accumulation_steps": 2},
        ),
        Way(
            "executions",
            "`steps_per_execution`",
            {"steps_per_execution": 2},
        ),
        Way("float16", "`mixed_float16`, loss scaling"),
    )
}


def fails_in_keras(way, mode):
    return mode.name == "mirrored" and way.name != "float16"


def promise_of_way(way, mode):
    if fails_in_keras(way, mode):
        return FAILS
    if way.name == "xla":  # JAX compiles all that it runs
        return UNTESTED if mode.backend == "torch" else TESTED
    if mode.backend == "torch" and way.name == "executions":
        return NONE
    return TESTED if mode in ONE_DEVICE else UNTESTED
