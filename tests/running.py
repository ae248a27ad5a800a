"""A short training, and what it left."""

import keras
import numpy as np
import pytest
from keras import ops

# Of a test, or of a value: in `make test` for PyTorch alone, which compiles
# nothing before it runs, in `make test-all` for every backend.
slow_to_compile = (
    pytest.mark.skipif(False, reason="")
    if keras.config.backend() == "torch"
    else pytest.mark.slow
)


def mostly_slow_to_compile(values, always):
    """The values for `parametrize`, of which all but some are so."""
    return [
        pytest.param(v, marks=() if v in always else slow_to_compile)
        for v in values
    ]


def run(model, data, epochs=2):
    history = model.fit(
        **data, batch_size=8, epochs=epochs, shuffle=False, verbose=0
    )
    return history.history


def weights_of(model):
    return [ops.convert_to_numpy(v) for v in model.weights]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)
