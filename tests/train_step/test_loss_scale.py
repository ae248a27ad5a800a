"""A fixed loss scale is no part of what the methods see."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit

SCALE = 1024.0
optimizers = dlkit.optimizers
METHODS = {
    "SAM": lambda inner: optimizers.SAM(inner, rho=0.1),
    "SAM, every_steps": lambda inner: optimizers.SAM(
        inner, rho=0.1, every_steps=2
    ),
    "GSAM": lambda inner: optimizers.GSAM(inner, rho=0.1),
    "FriendlySAM": lambda inner: optimizers.FriendlySAM(inner, rho=0.1),
    "LookSAM": lambda inner: optimizers.LookSAM(inner, rho=0.1),
    "MomentumSAM": lambda inner: optimizers.MomentumSAM(inner, rho=0.1),
    "PCGrad": lambda inner: inner,
}


def trained(method, scale):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = layers.Dense(5, "tanh")(inputs)
    outputs = {name: layers.Dense(1, name=name)(hidden) for name in "ab"}
    parts = [dlkit.losses.PCGrad(seed=0)] if method == "PCGrad" else []
    model = dlkit.attach(keras.Model(inputs, outputs), *parts)
    inner = keras.optimizers.SGD(0.1, momentum=0.9, loss_scale_factor=scale)
    model.compile(METHODS[method](inner), {"a": "mse", "b": "mae"})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4)).astype("float32")
    y = {name: rng.normal(size=(12, 1)).astype("float32") for name in "ab"}
    model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    return [ops.convert_to_numpy(v) for v in model.trainable_variables]


@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_loss_scale_changes_nothing(method):
    for plain, scaled in zip(trained(method, None), trained(method, SCALE)):
        np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-5)
