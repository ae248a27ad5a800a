"""The net of `reference` in Keras, and the comparison of the two."""

import keras
import numpy as np

import keras_dlkit as dlkit
from tests.optimizers import reference

STEPS, ROWS = 6, 7


@keras.saving.register_keras_serializable("tests")
class CountedDropout(keras.layers.Layer):
    """Dropout whose mask follows a counter of training calls."""

    def build(self, shape):
        self.counter = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, x, training=False):
        if not training:
            return x
        keep = (keras.ops.arange(4) + self.counter) % 3 != 0
        self.counter.assign(self.counter + 1)
        x = x * keras.ops.cast(keep, x.dtype) * 1.5
        self.add_loss(reference.ACTIVITY * keras.ops.mean(x**2))
        return x


def make_net(weights):
    net = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(
                4,
                use_bias=False,  # batch-norm makes its gradient pure noise
                kernel_regularizer=keras.regularizers.L2(reference.L2),
            ),
            keras.layers.BatchNormalization(
                momentum=reference.DECAY, epsilon=reference.BN_EPSILON
            ),
            keras.layers.Activation("tanh"),
            CountedDropout(),
            keras.layers.Dense(2),
        ]
    )
    for variable, value in zip(net.trainable_variables, weights):
        variable.assign(value)
    return net


def make_batches(rng, weighted=False):
    batches = []
    for _ in range(STEPS):
        batch = [rng.normal(size=(ROWS, 3)), rng.normal(size=(ROWS, 2))]
        if weighted:
            batch.append(rng.uniform(0.5, 2, size=ROWS))
        batches.append(batch)
    return batches


def fit(model, batches):
    data = [np.concatenate(t).astype("float32") for t in zip(*batches)]
    data += [None] * (3 - len(data))
    x, y, sample_weight = data
    return model.fit(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=ROWS,
        shuffle=False,
        verbose=0,
    )


INNER = {
    "sgd": (lambda: keras.optimizers.SGD(0.1), lambda: reference.SGD(0.1)),
    "momentum": (
        lambda: keras.optimizers.SGD(0.125, momentum=0.75),
        lambda: reference.SGD(0.125, 0.75),
    ),
    "adam": (lambda: keras.optimizers.Adam(0.02), lambda: reference.Adam(0.02)),
    "adamw": (
        lambda: keras.optimizers.AdamW(0.02, weight_decay=0.1),
        lambda: reference.Adam(0.02, 0.1),
    ),
}


def compare(optimizer, train, inner="momentum", weighted=False, atol=2e-5):
    """Six steps of both, from the same weights over the same batches.

    Args:
        optimizer: Function of the inner Keras optimizer.
        train: Function of weights, batches and the inner NumPy optimizer to
            weights, net and losses.
        inner: Key of `INNER`.
    """
    rng = np.random.default_rng(0)
    weights = reference.initial_weights(rng)
    batches = make_batches(rng, weighted)
    keras_inner, numpy_inner = INNER[inner]
    model = dlkit.attach(make_net(weights))
    model.compile(optimizer(keras_inner()), loss="mse")
    history = fit(model, batches)
    expected, net, losses = train(weights, batches, numpy_inner())
    for variable, value in zip(model.trainable_variables, expected):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(variable), value, atol=atol
        )
    norm = model.layers[1]
    for statistic, value in (
        (norm.moving_mean, net.mean),
        (norm.moving_variance, net.variance),
    ):
        np.testing.assert_allclose(
            statistic.numpy(), value, rtol=2e-5, atol=1e-5
        )
    np.testing.assert_allclose(
        history.history["loss"][0], np.mean(losses), rtol=1e-5
    )
    return model, expected


def numpy_run(
    inner="momentum", weighted=False, train=reference.train, **kwargs
):
    """The weights after the same steps in NumPy alone."""
    rng = np.random.default_rng(0)
    weights = reference.initial_weights(rng)
    batches = make_batches(rng, weighted)
    return train(weights, batches, INNER[inner][1](), **kwargs)[0]


def distance(a, b):
    return max(abs(x - y).max() for x, y in zip(a, b))
