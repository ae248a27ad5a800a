"""Gradients of a function of one array, on the backend at hand."""

import keras
import numpy as np
from keras import ops

BACKEND = keras.config.backend()


def differentiated(function, compiled=False):
    """A function of an array to `function` of it and the gradient, as float64.

    `compiled` by XLA, where the backend has that.
    """
    if BACKEND == "torch":

        def both(x):
            x.requires_grad_()
            value = function(x)
            value.backward()
            return value, x.grad

    elif BACKEND == "jax":
        import jax

        both = jax.value_and_grad(function)
        both = jax.jit(both) if compiled else both
    else:
        import tensorflow as tf

        def both(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x)
            return value, tape.gradient(value, x)

        both = tf.function(both, jit_compile=True) if compiled else both

    def arrays(x):
        results = both(ops.convert_to_tensor(x, dtype="float32"))
        return tuple(
            np.asarray(ops.convert_to_numpy(r), dtype="float64")
            for r in results
        )

    return arrays


def central_differences(function, x, step=1e-5):
    """The gradient of a function of a float64 array."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        move = np.zeros_like(x)
        move[index] = step
        gradient[index] = (function(x + move) - function(x - move)) / step / 2
    return gradient
