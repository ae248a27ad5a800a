"""LookSAM (Liu et al., 2022): SAM every few steps, and its echo between."""

from typing import Any

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit._train_step import lists
from keras_dlkit.ops.orthogonal_part import LIU
from keras_dlkit.ops.orthogonal_part import orthogonal_part
from keras_dlkit.optimizers.sam import SAM

# A part of the gradient that is shorter has no digits left, in float32.
ROUNDING = 1e-6


@cites(LIU)
@export
class LookSAM(SAM):
    r"""SAM every `every_steps` updates, with one gradient in between.

    A SAM step keeps the part \(v\) of its gradient \(s\) that is orthogonal
    to the gradient \(g\) at the weights: the way to flatter places, which
    changes slowly. The steps between take one gradient and add it,

    $$v = s - \frac{\langle s, g \rangle}{\lVert g \rVert^2} \, g, \qquad
      g + \alpha \, \lVert g \rVert \frac{v}{\lVert v \rVert}$$

    all weights being one vector, as in the paper. (Codes that take these
    norms for each weight array alone are another method, and not offered.) Use
    it where SAM helps and twice the cost does not fit.

    The SAM steps are the updates `start_step + 1`, `start_step + 1 +
    every_steps`, ...: the first one comes at once, for the others to have a
    \(v\).

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`, or the name of one.
        rho: As in `SAM`. Defaults to `0.05`.
        every_steps: Integer, at least 1. Defaults to `5`, the paper's range
            being 5 to 10.
        alpha: Float, at least 0. 0 is SAM every few steps. Defaults to `0.2`,
            as in the code of Becker et al. The paper takes 0.7, for vision
            transformers and large batches; small convolutional networks were
            seen to run away with that.
        **kwargs: `adaptive`, `eta`, `variables`, `start_step`,
            `micro_batches` and `name`, as in `SAM`.

    `variables` says what is moved; \(v\) is that of all weights. Of
    micro-batches the mean of \(v\) is kept.

    State: optimizer variables, one slot a weight, for \(v\).
    Runs: in the train step of `keras_dlkit.attach`, two gradients on SAM
        steps, one on the others.
    Cost: a second forward and backward pass on every `every_steps`-th step,
        and one copy of the weights; measured in `benchmarks/README.md`.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer = dlkit.optimizers.LookSAM(inner, rho=0.1, every_steps=5)
    ```

    References:
        - [Liu et al., 2022](https://arxiv.org/abs/2203.02714)
        - [Becker et al., 2024](https://arxiv.org/abs/2401.12033), whose code
          has the form with norms over all weights
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        *,
        every_steps: int = 5,
        alpha: float = 0.2,
        **kwargs: Any,
    ):
        super().__init__(
            inner_optimizer, rho, every_steps=every_steps, **kwargs
        )
        self.alpha = _checks.check_number("alpha", alpha, at_least=0)

    def build(self, variables):
        super().build(variables)
        self.add_slots(variables, "orthogonal")

    def ascends(self, updates):
        since = updates - self.start_step
        return (since >= 0) & (since % self.every_steps == 0)

    def coast(self, clean, variables):
        kept = self.slot_values(clean, variables)
        length = lists.norm(kept)
        factor = lists.norm(clean) / ops.where(length > 0, length, 1.0)
        factor = ops.where(ops.isfinite(factor), self.alpha * factor, 0.0)
        return lists.sums(clean, kept, factor)

    def remember(self, clean, ascent, variables):
        if ascent is None:
            return self.slot_values(clean, variables)
        v = orthogonal_part(ascent, clean)
        # Of no direction where nothing but rounding tells s from g, as where
        # `rho` is a schedule that is at 0.
        is_rounding = lists.norm(v) <= ROUNDING * lists.norm(ascent)
        return lists.products(v, ops.where(is_rounding, 0.0, 1.0))

    def learn(self, memory, variables):
        kept = self.slot_values(memory, variables)
        if all(new is old for new, old in zip(memory, kept)):
            return  # a step without a second gradient, known as one
        finite = ops.isfinite(lists.norm(memory))
        slots = self.slots(memory, variables)
        lists.assign_where(finite, slots, memory)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha}
