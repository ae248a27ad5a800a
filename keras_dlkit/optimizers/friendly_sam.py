"""Friendly sharpness-aware minimisation (Li et al., 2024)."""

from typing import Any

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit._train_step import lists
from keras_dlkit.optimizers.sam import SAM

LI = Paper(
    "Friendly Sharpness-Aware Minimization",
    "Tao Li and Pan Zhou and Zhengbao He and Xinwen Cheng and Xiaolin Huang",
    2024,
    "Conference on Computer Vision and Pattern Recognition",
    arxiv="2403.12350",
)


@cites(LI)
@export
class FriendlySAM(SAM):
    r"""SAM whose perturbation leaves out the gradient of the whole data.

    With \(g\) the gradient of the batch and \(m\) its moving average, which
    stands for the gradient of all data, the perturbation follows what is the
    batch's own,

    $$e = \rho \, \frac{q}{\lVert q \rVert_2 + 10^{-12}}, \qquad
      q = g - \sigma m, \qquad m \leftarrow \lambda m + (1 - \lambda) g$$

    where \(m\) is the average of the batches before, is \(0\) in the first
    step and starts as that step's \(g\). The inner optimizer gets
    \(\nabla L(w + e)\). The paper reports more robustness to `rho` and a gain
    over SAM at the same cost.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`, or the name of one.
        rho: As in `SAM`. Defaults to `0.05`.
        sigma: Float, at least 0. How much of the average is left out; 0 is
            SAM. Defaults to `1.0`.
        decay: Float in `[0, 1]`. \(\lambda\), per step. Defaults to `0.9`.
        **kwargs: `adaptive`, `eta`, `variables`, `every_steps`, `start_step`,
            `micro_batches` and `name`, as in `SAM`.

    The average takes in every step, also those without a second gradient; of
    micro-batches it takes the mean.

    State: optimizer variables, one slot a moved weight, and the step count.
    Runs: in the train step of `keras_dlkit.attach`, two gradients a step.
    Cost: that of `SAM`, and one copy of the weights; measured in
        `benchmarks/README.md`.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer = dlkit.optimizers.FriendlySAM(inner, rho=0.1, sigma=1.0)
    ```

    References:
        - [Li et al., 2024](https://arxiv.org/abs/2403.12350)
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        *,
        sigma: float = 1.0,
        decay: float = 0.9,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, rho, **kwargs)
        self.sigma = _checks.check_number("sigma", sigma, at_least=0)
        self.decay = _checks.check_number("decay", decay, at_least=0, at_most=1)

    def build(self, variables):
        super().build(variables)
        self.add_slots(self.selected(variables, variables), "average")
        self.steps = self.add_variable(
            shape=(),
            dtype="int32",
            aggregation="only_first_replica",
            name="steps",
        )

    def direction(self, gradients, weights, variables):
        averages = self.slot_values(gradients, variables)
        own = lists.sums(gradients, averages, -self.sigma)
        return super().direction(own, weights, variables)

    def remember(self, clean, ascent, variables):
        del ascent
        return self.selected(clean, variables)

    def learn(self, memory, variables):
        finite = ops.isfinite(lists.norm(memory))
        first = ops.convert_to_tensor(self.steps) == 0
        share = ops.where(first, 1.0, 1.0 - self.decay)
        slots = self.slots(memory, variables)
        lists.assign_where(finite, slots, memory, share)
        self.steps.assign_add(ops.cast(finite, "int32"))

    def get_config(self):
        return {
            **super().get_config(),
            "sigma": self.sigma,
            "decay": self.decay,
        }
