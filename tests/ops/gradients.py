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


def differentiated_twice(function):
    """A function of arrays `x` and `v` to the Hessian of `function` times `v`.

    In reverse mode both times.
    """
    if BACKEND == "torch":
        import torch

        def product(x, v):
            x.requires_grad_()
            (slope,) = torch.autograd.grad(function(x), x, create_graph=True)
            return torch.autograd.grad(slope, x, v)[0]

    elif BACKEND == "jax":
        import jax

        def product(x, v):
            return jax.vjp(jax.grad(function), x)[1](v)[0]

    else:
        import tensorflow as tf

        def product(x, v):
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    value = function(x)
                slope = inner.gradient(value, x)
            return outer.gradient(slope, x, v)

    def arrays(*values):
        tensors = [ops.convert_to_tensor(v, dtype="float32") for v in values]
        return np.asarray(ops.convert_to_numpy(product(*tensors)), "float64")

    return arrays


def central_differences(function, x, step=1e-5):
    """The gradient of a function of a float64 array."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        move = np.zeros_like(x)
        move[index] = step
        gradient[index] = (function(x + move) - function(x - move)) / step / 2
    return gradient
