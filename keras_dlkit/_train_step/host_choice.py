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
        self.updates = self.counted = None
        # A step is not an update where one may be skipped or put off: then
        # the count is read from the device, which waits for the step before.
        self.must_look = bool(
            method.gradient_accumulation_steps
            or find_wrapper(
                model.optimizer, keras.optimizers.LossScaleOptimizer
            )
        )

    def __call__(self, state, iterator):
        iterator = self.model.checked(iterator)
        try:
            logs, state = self.step(state, next(iterator))
            for _ in range(self.model.steps_per_execution - 1):
                try:
                    data = next(iterator)
                except StopIteration:
                    break
                logs, state = self.step(state, data)
            return logs, state
        except BaseException as error:
            self.model.give_back(state, error)
            raise

    def step(self, state, data):
        if self.must_look or not self.is_counted(state):
            self.updates = int(self.model.updates_done(state[2]))
        ascends = bool(self.method.ascends(self.updates))
        logs, state = self.function(ascends, state)(state, data)
        self.updates += 1
        self.counted = state[2]
        return logs, state

    def is_counted(self, state):
        """Whether it is the state of the last step, not one set since."""
        return self.counted is not None and all(
            a is b for a, b in zip(state[2], self.counted)
        )

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
