"""JAX: which of two compiled steps to run, chosen on the host."""

import functools

import jax
import keras

from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper


class HostChoice:
    """Runs one of two compiled steps, as the count of updates says.

    A conditional within one step gives the same numbers, but XLA on CPU
    compiles gradients of convolutions within one 13 to 45 times slower.
    """

    def __init__(self, model, method):
        self.model, self.method = model, method
        self.functions = {}
        self.count = self.counted = None

    def __call__(self, state, iterator):
        logs, state = self.step(state, next(iterator))
        for _ in range(self.model.steps_per_execution - 1):
            try:
                data = next(iterator)
            except StopIteration:
                break
            logs, state = self.step(state, data)
        return logs, state

    def step(self, state, data):
        iterations = self.model._iterations_of(state[2])
        if iterations is not self.counted:  # the first, or changed from outside
            self.count = int(iterations)
        ascends = bool(self.method.ascends(self.count))
        logs, state = self.function(ascends, state)(state, data)
        self.count += 1
        # A loss scaler may have skipped the update: then look, don't count.
        skips = find_wrapper(
            self.model.optimizer, keras.optimizers.LossScaleOptimizer
        )
        self.counted = None if skips else self.model._iterations_of(state[2])
        return logs, state

    def function(self, ascends, state):
        if ascends not in self.functions:
            step = functools.partial(self.model._step, ascends=ascends)
            if self.model.jit_compile and not self.model.run_eagerly:
                shardings = None
                if keras.distribution.distribution() is not None:
                    shardings = None, jax.tree.map(lambda v: v.sharding, state)
                step = jax.jit(step, donate_argnums=0, out_shardings=shardings)
            self.functions[ascends] = step
        return self.functions[ascends]
