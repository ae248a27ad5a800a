"""What an error in the middle of a training leaves: all that there was."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests import zoo
from tests.running import assert_same
from tests.running import weights_of


class Picky(layers.Layer):
    def call(self, x):
        if x.shape[0] == 3:
            raise ValueError("no three rows")
        return x


def picky(wrap):
    keras.utils.set_random_seed(1)
    stack = [Picky(), layers.BatchNormalization(), layers.Dense(3)]
    model = dlkit.attach(keras.Sequential([keras.Input((4,)), *stack]))
    # Keras puts the averages into the weights at the end, whatever happened.
    model.compile(wrap(keras.optimizers.SGD(0.1, use_ema=True)), "mse")
    return model


def state(model):
    optimizer = model.optimizer.variables
    return weights_of(model) + [ops.convert_to_numpy(v) for v in optimizer]


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="traces any number of rows"
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: inner,
        lambda inner: dlkit.optimizers.SAM(inner, every_steps=2),
    ],
    ids=["plain", "sam"],
)
def test_an_error_in_a_step_loses_nothing(wrap):
    model, x = picky(wrap), zoo.rows()[:7]
    y = x[:, :3]
    model.evaluate(x[:4], y[:4], verbose=0)  # else Keras builds it, and raises
    before = state(model)
    for rows in (3, 7):  # in the first batch of four, or in the second
        for name in ("evaluate", "predict"):
            data = (x[:rows], y[:rows]) if name == "evaluate" else (x[:rows],)
            with pytest.raises(ValueError, match="three"):
                getattr(model, name)(*data, batch_size=4, verbose=0)
            assert_same(state(model), before)
    for name in ("train_on_batch", "fit"):
        with pytest.raises(ValueError, match="three"):
            getattr(model, name)(x[:3], y[:3])
        assert_same(state(model), before)
    twin = picky(wrap)
    twin.evaluate(x[:4], y[:4], verbose=0)
    twin.train_on_batch(x[:4], y[:4])
    with pytest.raises(ValueError, match="three"):
        model.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    for a, b in zip(state(model), state(twin)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    model.fit(x[:4], y[:4], verbose=0)
