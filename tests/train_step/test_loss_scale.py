"""The loss scale is no part of what the methods see; an overflow is one."""

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


@pytest.mark.parametrize(
    ("method", "rho"),
    [
        ("SAM", 0.05),  # that one fits, and the step is made
        ("SAM", 1e5),
        ("GSAM", 1e5),
        ("FriendlySAM", 1e5),
        ("LookSAM", 1e5),
    ],
)
def test_an_overflow_at_the_second_point_alone_skips_the_step(method, rho):
    """At 1 + 1e5 is more than float16 holds; at 1 is nothing of the kind."""
    keras.config.set_dtype_policy("mixed_float16")
    net = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(1, use_bias=False, kernel_initializer="ones"),
        ]
    )
    model = dlkit.attach(net)
    inner = keras.optimizers.SGD(0.125, momentum=0.5)
    optimizer = keras.optimizers.LossScaleOptimizer(
        getattr(optimizers, method)(inner, rho=rho), initial_scale=256.0
    )
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    variables = [*net.weights, *optimizer.inner_optimizer.variables]
    before = [ops.convert_to_numpy(v) for v in variables]
    logs = model.train_on_batch(np.ones((4, 1)), np.zeros((4, 1)))
    after = [ops.convert_to_numpy(v) for v in variables]
    assert np.isfinite(logs)
    skipped = all(np.array_equal(a, b) for a, b in zip(before, after))
    assert skipped == (rho > 1)
    scale = float(ops.convert_to_numpy(optimizer.dynamic_scale))
    assert scale == (128.0 if skipped else 256.0)
