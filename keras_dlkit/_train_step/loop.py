"""A loop of a fixed number of steps, in the form that the backend compiles."""

import keras

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def compiled_loop(body, carry, start, stop):
        """`carry = body(k, carry)` for k from `start` to `stop`, as one loop.

        Args:
            body: Function of the step and a list of tensors, to such a list.
            carry: List of tensors, of shapes and dtypes that stay.
            start, stop: Integers.
        """

        def step(k, *carry):
            return (k + 1, *body(k, list(carry)))

        # XLA makes a gradient only where it knows the number of steps.
        results = tf.while_loop(
            lambda k, *_: k < stop,
            step,
            (start, *carry),
            maximum_iterations=max(0, stop - start),
        )
        return list(results[1:])

    def is_slow_in_loops(weights):
        """Whether to unroll: gradients of these weights suffer in a loop."""
        del weights
        return False

elif keras.config.backend() == "jax":
    import jax

    def compiled_loop(body, carry, start, stop):
        return jax.lax.fori_loop(start, stop, body, list(carry))

    def is_slow_in_loops(weights):
        # XLA brings convolutions into the form of its fast ones in the entry
        # computation alone: in a loop, their gradients on CPU are 25x slower.
        convolves = any(len(w.shape) > 2 for w in weights)
        return convolves and jax.default_backend() == "cpu"

else:

    def compiled_loop(body, carry, start, stop):
        return python_loop(body, carry, start, stop)

    def is_slow_in_loops(weights):
        del weights
        return True  # nothing is compiled: a Python loop is all there is


def python_loop(body, carry, start, stop):
    for k in range(start, stop):
        carry = body(k, carry)
    return carry
