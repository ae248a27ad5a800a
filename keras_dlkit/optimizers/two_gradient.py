"""The family of optimizers that take a second gradient of the same batch."""

from collections.abc import Callable
from typing import Any

import keras

from keras_dlkit import _checks
from keras_dlkit.optimizers.attached_optimizer import AttachedOptimizer


class TwoGradient(AttachedOptimizer):
    """Base class: a gradient at the weights, then one at a moved point.

    A method of the family is a `direction`, the way from the weights to the
    point of the second gradient, and a `combine` of the two gradients, which
    the inner optimizer gets. Gradients are lists with an entry a trainable
    weight, `None` where there is none; they are not scaled and, but for
    micro-batches, those of the whole batch. One that does more than the inner
    optimizer on the steps between says so in `coast`; one with a state of its
    own says with `remember` what it keeps of a step, and writes it in `learn`.
    The train step of `keras_dlkit.attach` asks for all of them; a plain `fit`
    has no second gradient, and is refused.

    The arguments of the constructor stay once training began, those of a
    subclass too: a compiled step would not see a change, so it is an error.

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

    State: none; the inner optimizer's, and what a subclass adds in `build`.
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
        super().__init__(
            inner_optimizer,
            variables=variables,
            start_step=start_step,
            name=name,
        )
        self.every_steps = _checks.check_count(
            "every_steps", every_steps, at_least=1
        )
        self.micro_batches = _checks.check_count(
            "micro_batches", micro_batches, at_least=1
        )

    # What a method is.

    def direction(
        self, gradients: list, weights: list, variables: list
    ) -> list:
        """The way from the weights to the point of the second gradient.

        Args:
            gradients: List of tensors, or `None` where there is none or the
                weight is not to be moved.
            weights: List of tensors of the same shapes, the values.
            variables: List of the `keras.Variable`s, for names and paths.

        Returns:
            List of tensors to add to the weights, or `None` to leave one.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must say its `direction`"
        )

    def combine(self, clean: list, ascent: list) -> list:
        """The gradients to apply, from those at the two points."""
        del clean
        return ascent

    @property
    def is_linear(self) -> bool:
        """Whether it passes on sums of gradients as the sums they are."""
        return all(
            getattr(type(self), name) is getattr(TwoGradient, name)
            for name in ("combine", "coast", "remember")
        )

    # When it runs.

    @property
    def takes_second(self):
        always = self.every_steps == 1 and self.start_step == 0
        return True if always else None

    def ascends(self, updates: Any) -> Any:
        """Whether the step after so many updates takes the second gradient.

        `iterations` of Keras counts updates: under accumulation all the steps
        that lead to one see the same number.
        """
        update = updates + 1
        return (update > self.start_step) & (update % self.every_steps == 0)

    def perturbations(
        self, gradients: list, weights: list, variables: list
    ) -> list:
        """`direction`, without what is not selected and what is pruned."""
        gradients = self.masked(self.selected(gradients, variables), variables)
        return self.direction(gradients, weights, variables)

    def get_config(self):
        return {
            **super().get_config(),
            "every_steps": self.every_steps,
            "micro_batches": self.micro_batches,
        }
