"""The family of optimizers that take a second gradient of the same batch."""

import contextlib
import re
from collections.abc import Callable

import keras

from keras_dlkit import _checks
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper


class TwoGradient(WrapperOptimizer):
    """Base class: a gradient at the weights, then one at a moved point.

    A method of the family is a `direction`, the way from the weights to the
    point of the second gradient, and a `combine` of the two gradients, which
    the inner optimizer gets. The train step of `keras_dlkit.attach` asks for
    both; a plain `fit` has no second gradient, and is refused.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`, or the name of one.
        variables: `None` (every trainable weight), a regular expression
            searched in `variable.path`, or a function of a variable to bool.
            Only these weights are moved, and only they count in the norm.
        every_steps: Integer, at least 1. The second gradient is taken on the
            updates `every_steps`, `2 * every_steps`, ..., counted from 1;
            the others are plain updates at plain cost.
        start_step: Integer, at least 0. Updates up to this one are plain.
        micro_batches: Integer, at least 1. The batch is cut into so many
            parts, each takes both gradients on its own, and the mean, weighted
            by the size of the part, is applied (m-sharpness). The forward pass
            then sees the parts: batch normalisation normalises each alone. A
            batch of fewer rows has as many parts as rows; in a TensorFlow graph
            that does not know the number of rows, the parts beyond pass one
            row, which counts in batch statistics but not in the gradient.
        name: String. The name of the optimizer.

    State: none; the inner optimizer's.
    Runs: in the train step of `keras_dlkit.attach`, twice a step.
    Cost: a second forward and backward pass on the steps that take it.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    @keras.saving.register_keras_serializable()
    class SignAscent(dlkit.optimizers.TwoGradient):
        def direction(self, gradients, weights, variables):
            return [None if g is None else 0.01 * keras.ops.sign(g)
                    for g in gradients]

    SignAscent(keras.optimizers.SGD(0.1))
    ```
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        *,
        variables: str | Callable[[keras.Variable], bool] | None = None,
        every_steps: int = 1,
        start_step: int = 0,
        micro_batches: int = 1,
        name: str | None = None,
    ):
        super().__init__(inner_optimizer, name=name)
        if find_wrapper(self.inner_optimizer, TwoGradient) is not None:
            raise ValueError(
                f"{type(self).__name__} takes the second gradient of a step, "
                "and there is one. Received: an `inner_optimizer` with "
                f"{type(find_wrapper(self.inner_optimizer, TwoGradient))} in "
                "it. Wrap another optimizer."
            )
        self._selection = variables
        self._selects = _predicate(variables)
        self.every_steps = _checks.check_count(
            "every_steps", every_steps, at_least=1
        )
        self.start_step = _checks.check_count(
            "start_step", start_step, at_least=0
        )
        self.micro_batches = _checks.check_count(
            "micro_batches", micro_batches, at_least=1
        )
        self._open = 0

    # What a method is.

    def direction(self, gradients, weights, variables):
        """The way from the weights to the point of the second gradient.

        Args:
            gradients: List of tensors, or `None` where there is none or the
                weight is not to be moved. Unscaled.
            weights: List of tensors of the same shapes, the values.
            variables: List of the `keras.Variable`s, for names and paths.

        Returns:
            List of tensors to add to the weights, or `None` to leave one.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must say its `direction`"
        )

    def combine(self, clean, ascent):
        """The gradients to apply, from those at the two points. Unscaled."""
        del clean
        return ascent

    # When it runs.

    @property
    def never_ascends(self):
        """True where the second gradient cannot change anything."""
        return False

    @property
    def always_ascends(self):
        return self.every_steps == 1 and self.start_step == 0

    def ascends(self, updates):
        """Whether the step after so many updates takes the second gradient.

        `iterations` of Keras counts updates: under accumulation all the steps
        that lead to one see the same number.
        """
        update = updates + 1
        return (update > self.start_step) & (update % self.every_steps == 0)

    # What the train step calls.

    def perturbations(self, gradients, weights, variables):
        """`direction`, with the weights that are not selected left out."""
        gradients = [
            g if self._selects(v) else None
            for g, v in zip(gradients, variables)
        ]
        return self.direction(gradients, weights, variables)

    @contextlib.contextmanager
    def attached(self):
        """Open while a train step that took both gradients applies them."""
        # A counter: MirroredStrategy runs its replicas in interleaved threads.
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def transform(self, gradients):
        if not self._open:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} needs a second gradient of each batch, which a plain "
                "Keras `fit` does not take. Attach the model to train it:\n"
                "    model = keras_dlkit.attach(model)\n"
                f"    model.compile(optimizer={name}(...), ...)\n"
                "    model.fit(...)\n"
                "In a loop of your own, use `keras_dlkit.ops`."
            )
        return gradients

    def build(self, variables):
        chosen = any(self._selects(v) for v in variables)
        if self._selection is not None and not chosen:
            raise ValueError(
                "`variables` must match at least one trainable weight. "
                f"Received: variables={self._selection!r}, which matches none "
                f"of {[v.path for v in variables]}"
            )
        super().build(variables)

    def get_config(self):
        return {
            **super().get_config(),
            "variables": self._selection,
            "every_steps": self.every_steps,
            "start_step": self.start_step,
            "micro_batches": self.micro_batches,
        }


def _predicate(selection):
    if selection is None:
        return lambda variable: True
    if callable(selection):
        return selection
    try:
        pattern = re.compile(selection)
    except (re.error, TypeError) as error:
        raise ValueError(
            "`variables` must be None, a regular expression or a function of "
            f"a variable. Received: variables={selection!r}"
        ) from error
    return lambda variable: pattern.search(variable.path) is not None
