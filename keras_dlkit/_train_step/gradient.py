"""Gradients of a scalar function of a list of arrays, on each backend.

For what is done once, before training; the train step has its own.
"""

import keras
from keras import ops

# Whether the second derivative of a mean and variance is right. In TensorFlow
# `tf.nn.moments` stops the gradient at the mean: no matter for a first
# derivative, and wrong by several per cent in a second one.
EXACT_MOMENTS = keras.config.backend() != "tensorflow"

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def compiled(function):
        """`function`, traced once where the backend has that."""
        return tf.function(function)

    def gradient(function, values):
        """The gradient of `function(values)`, zeros where there is none."""
        values = [tf.convert_to_tensor(v) for v in values]
        with tf.GradientTape() as tape:
            tape.watch(values)
            result = function(values)
        return _filled(tape.gradient(result, values), values)

    def hessian_gradient(function, values):
        """The Hessian times the gradient, of `function` at `values`."""
        values = [tf.convert_to_tensor(v) for v in values]
        with tf.GradientTape() as outer:
            outer.watch(values)
            first = gradient(function, values)
            product = sum(tf.reduce_sum(g * tf.stop_gradient(g)) for g in first)
        return _filled(outer.gradient(product, values), values)

    def _filled(gradients, values):
        return [
            tf.zeros_like(v) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, values)
        ]

elif keras.config.backend() == "jax":
    import jax

    compiled = jax.jit

    def gradient(function, values):
        return jax.grad(function)(list(values))

    def hessian_gradient(function, values):
        values = list(values)
        first = jax.grad(function)(values)
        return jax.jvp(jax.grad(function), (values,), (first,))[1]

else:
    import torch

    def compiled(function):
        return function

    def gradient(function, values):
        leaves = [v.detach().clone().requires_grad_() for v in values]
        found = torch.autograd.grad(function(leaves), leaves, allow_unused=True)
        return _filled(found, leaves)

    def hessian_gradient(function, values):
        leaves = [v.detach().clone().requires_grad_() for v in values]
        first = torch.autograd.grad(
            function(leaves), leaves, allow_unused=True, create_graph=True
        )
        product = sum((g * g.detach()).sum() for g in first if g is not None)
        if not (torch.is_tensor(product) and product.requires_grad):
            return [torch.zeros_like(v) for v in leaves]  # of a linear function
        return _filled(
            torch.autograd.grad(product, leaves, allow_unused=True), leaves
        )

    def _filled(gradients, values):
        return [
            torch.zeros_like(v) if g is None else g.detach()
            for g, v in zip(gradients, values)
        ]


def hessian_gradient_by_differences(function, values, move=1e-2):
    """The same of first derivatives alone: four of them along the gradient.

    `move` is the length of the step, in lengths of `values`.
    """
    first = gradient(function, values)
    length = ops.sqrt(sum(ops.sum(ops.square(v)) for v in values))
    slope = ops.sqrt(sum(ops.sum(ops.square(g)) for g in first))
    step = move * length / ops.maximum(slope, 1e-30)

    def at(count):
        point = [v + count * step * g for v, g in zip(values, first)]
        return gradient(function, point)

    terms = zip(at(-2), at(-1), at(1), at(2))
    return [(a - 8.0 * b + 8.0 * c - d) / (12.0 * step) for a, b, c, d in terms]
