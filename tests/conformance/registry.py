"""Every part with its settings. A new part is one row in `CASES`.

A case says how a part is attached, and which setting of it must equal the run
without it, bit for bit.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import keras_dlkit as dlkit

SAM, MixUp = dlkit.optimizers.SAM, dlkit.layers.MixUp


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    # The parts of `attach`, made anew.
    parts: Callable[[], list] = list
    # Wraps the inner optimizer.
    optimizer: Callable = lambda inner: inner
    # The same, set so that it must change nothing.
    null_parts: Callable[[], list] = list
    null_optimizer: Callable = lambda inner: inner
    # Random draws differ between replicas: no comparison with one device.
    draws: bool = False


CASES = [
    Case(
        "sam",
        optimizer=lambda inner: SAM(inner, rho=0.1),
        null_optimizer=lambda inner: SAM(inner, rho=0.0),
    ),
    Case(
        "sam_adaptive_gamma",
        optimizer=lambda inner: SAM(
            inner, rho=0.5, adaptive="weights", variables="gamma|kernel"
        ),
        null_optimizer=lambda inner: SAM(
            inner, rho=0.0, adaptive="weights", variables="gamma|kernel"
        ),
    ),
    Case(
        "sam_every_2",
        optimizer=lambda inner: SAM(inner, rho=0.1, every_steps=2),
        null_optimizer=lambda inner: SAM(inner, rho=0.1, start_step=10**6),
    ),
    Case(
        "sam_micro_batches",
        optimizer=lambda inner: SAM(inner, rho=0.1, micro_batches=2),
        null_optimizer=lambda inner: SAM(inner, rho=0.0, micro_batches=2),
    ),
    Case(
        "mix_up",
        parts=lambda: [MixUp(0.4, num_classes=3, seed=2)],
        null_parts=lambda: [MixUp(0.0, num_classes=3)],
        draws=True,
    ),
    Case(
        "sam_and_mix_up",
        parts=lambda: [MixUp(0.4, num_classes=3, active_epochs=(0, 2), seed=2)],
        optimizer=lambda inner: SAM(inner, rho=0.1),
        null_parts=lambda: [MixUp(0.0, num_classes=3)],
        null_optimizer=lambda inner: SAM(inner, rho=0.0),
        draws=True,
    ),
]
BY_NAME = {case.name: case for case in CASES}


def network(plain=False):
    """A small net with what makes a step hard; `plain` leaves that out."""
    layers = keras.layers
    hard = [layers.BatchNormalization(), layers.Dropout(0.3, seed=5)]
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, "tanh", kernel_regularizer="l2"),
            *([] if plain else hard),
            layers.Dense(3, "softmax", dtype="float32"),
        ]
    )


def attached(case, null=False, inner=None, plain=False, **compile_arguments):
    """The case, compiled, on a fresh `network`."""
    parts, wrap = case.parts, case.optimizer
    if null:
        parts, wrap = case.null_parts, case.null_optimizer
    model = dlkit.attach(network(plain), *parts())
    inner = inner or keras.optimizers.SGD(0.125, momentum=0.5)
    arguments = {"loss": "categorical_crossentropy", "metrics": ["accuracy"]}
    model.compile(wrap(inner), **arguments, **compile_arguments)
    return model


def data(one_hot=True):
    """22 rows: batches of 8, 8 and 6."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(22, 4)).astype("float32")
    labels = rng.integers(0, 3, 22)
    return x, np.eye(3, dtype="float32")[labels] if one_hot else labels


def fit(model, epochs=2, **arguments):
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(*data(), epochs=epochs, **arguments)


def state(model):
    """All that training changes: weights, seeds and the optimizer."""
    variables = model.variables + model.optimizer.variables
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in variables]
