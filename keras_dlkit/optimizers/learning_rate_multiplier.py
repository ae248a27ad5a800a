"""Learning rates of single weights, as multiples of the optimizer's."""

import keras
from keras import ops

from keras_dlkit._export import export
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import innermost


@export
class LearningRateMultiplier(WrapperOptimizer):
    r"""Multiplies the steps of weights that say so, around any optimizer.

    A weight with an attribute `learning_rate_multiplier` \(c\) goes from
    \(w\) to \(w + c (w' - w)\), where the inner optimizer would take it to
    \(w'\). For optimizers whose step is proportional to the learning rate, as
    it is for those of Keras, decoupled weight decay included, that is the
    step with \(c\) times the learning rate. Weights without the attribute
    are left alone.

    The layers of `keras_dlkit.models.BatchEnsemble` tag their fast weights,
    by `fast_learning_rate`, and so do saved ones when they are loaded. A
    weight of your own is tagged by `variable.learning_rate_multiplier = 0.1`
    before the optimizer is built.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`, or the name of one.
        name: String. The name of the optimizer.

    State: none of its own.
    Runs: in `apply`, once a step.
    Cost: one sum a tagged weight.

    Raises:
        TypeError, ValueError: At construction, for what is no optimizer and
            for one with `use_ema`, whose averages would be of other weights;
            in `build`, for a multiplier below 0.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    net.layers[0].bias.learning_rate_multiplier = 2.0
    net.compile(dlkit.optimizers.LearningRateMultiplier("adam"), "mse")
    ```
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        *,
        name: str | None = None,
    ):
        super().__init__(inner_optimizer, name=name)
        _refuse_averages(innermost(self))

    def build(self, variables):
        for v in variables:
            if not multiplier(v) >= 0:
                raise ValueError(
                    "`learning_rate_multiplier` must be at least 0. Received: "
                    f"{multiplier(v)!r} for {v.path!r}"
                )
        super().build(variables)
        # A `MultiOptimizer` knows its parts from here on.
        for part in getattr(innermost(self), "optimizers", []):
            _refuse_averages(part)

    def apply(self, grads, trainable_variables=None):
        if trainable_variables is None:
            if not self.built:
                super().apply(grads)  # says what is missing
            trainable_variables = self._trainable_variables
        before = [
            # A copy: PyTorch changes weights in place.
            (v, ops.copy(ops.convert_to_tensor(v)))
            for v in trainable_variables
            if multiplier(v) != 1.0
        ]
        super().apply(grads, trainable_variables)
        for v, old in before:
            v.assign(moved(old, ops.convert_to_tensor(v), multiplier(v)))

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        after, states = super().stateless_apply(
            optimizer_variables, grads, trainable_variables
        )
        after = [
            new if multiplier(v) == 1.0 else moved(old, new, multiplier(v))
            for v, old, new in zip(
                self._trainable_variables, trainable_variables, after
            )
        ]
        return after, states


def _refuse_averages(optimizer):
    if optimizer.use_ema:
        raise ValueError(
            "`LearningRateMultiplier` takes an optimizer without averages: "
            "they would be of weights before steps are multiplied. Received: "
            f"{optimizer.name!r} with use_ema=True. Leave it out."
        )


def multiplier(variable):
    return getattr(variable, "learning_rate_multiplier", 1.0)


def moved(old, new, factor):
    return old + (new - old) * ops.cast(factor, new.dtype)
