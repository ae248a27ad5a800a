"""Pruning and tickets on several devices equal those on one."""

import contextlib

import keras
import numpy as np
from keras import ops

import keras_dlkit as dlkit
from tests.conformance import devices

BACKEND = keras.config.backend()


def train(scope, callback, epochs):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)), rng.normal(size=(32, 3))
    with scope():
        keras.utils.set_random_seed(3)
        net = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(6, "tanh"),
                keras.layers.Dense(3),
            ]
        )
        net.compile(keras.optimizers.Adam(0.01), "mse")
    # Outside of the scope, as `fit` is called.
    net.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    )
    return [np.array(ops.convert_to_numpy(v)) for v in net.weights]


def compare(name, make, epochs, scope):
    one = train(contextlib.nullcontext, make(), epochs)
    several = train(scope, make(), epochs)
    for a, b in zip(one, several):
        np.testing.assert_array_equal(a == 0, b == 0)
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert sum((a == 0).sum() for a in one[::2]) == 21
    print(f"{name}: ok")


if __name__ == "__main__":
    scope = (
        devices.mirrored_scope()
        if BACKEND == "tensorflow"
        else devices.data_parallel
    )
    schedule = dlkit.schedules.ConstantSparsity(0.5, begin_step=3)
    compare(
        "pruning",
        lambda: dlkit.callbacks.MagnitudePruning(schedule),
        2,
        scope,
    )
    compare(
        "ticket",
        lambda: dlkit.callbacks.LotteryTicket(2, 2, pruning_rate=0.5),
        4,
        scope,
    )
