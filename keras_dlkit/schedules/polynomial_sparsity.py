"""Gradual pruning (Zhu and Gupta, 2017)."""

import keras

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites

ZHU = Paper(
    "To prune, or not to prune: exploring the efficacy of pruning "
    "for model compression",
    "Michael Zhu and Suyog Gupta",
    2017,
    arxiv="1710.01878",
)


@cites(ZHU)
@export
class PolynomialSparsity:
    r"""A sparsity that rises fast at first, and ever more slowly.

    From step \(t_0\) to step \(t_1\), with \(s_i\) at the begin,

    $$s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^p$$

    0 before, and \(s_f\) after: many weights go while there are many to
    spare, and the last ones with time to recover.

    Args:
        final_sparsity: Float in `[0, 1)`. \(s_f\), the share of weights that
            are zero from `end_step` on.
        begin_step: Integer, at least 0. \(t_0\), in updates, counted from 1.
        end_step: Integer, more than `begin_step`. \(t_1\).
        initial_sparsity: Float, at most `final_sparsity`. \(s_i\).
        power: Number above 0. \(p\); the paper's is 3.

    Returns, when called with a step: Float, the sparsity of that step.

    State: none.
    Runs: on the host, before the updates on which weights are pruned.
    Cost: none.

    Example:

    ```python
    import keras_dlkit as dlkit

    schedule = dlkit.schedules.PolynomialSparsity(
        0.8, begin_step=0, end_step=100
    )
    assert schedule(0) == 0.0 and schedule(100) == 0.8
    ```

    References:
        - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878)
    """

    def __init__(
        self,
        final_sparsity: float,
        *,
        begin_step: int,
        end_step: int,
        initial_sparsity: float = 0.0,
        power: float = 3,
    ):
        self.final_sparsity = _checks.check_rate(
            "final_sparsity", final_sparsity
        )
        self.initial_sparsity = _checks.check_number(
            "initial_sparsity",
            initial_sparsity,
            at_least=0,
            at_most=self.final_sparsity,
        )
        self.begin_step = _checks.check_count(
            "begin_step", begin_step, at_least=0
        )
        self.end_step = _checks.check_count(
            "end_step", end_step, at_least=self.begin_step + 1
        )
        self.power = _checks.check_number("power", power, at_least=0)
        if self.power == 0:
            raise ValueError("`power` must be above 0. Received: power=0")

    def __call__(self, step: int) -> float:
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        left = (self.end_step - step) / (self.end_step - self.begin_step)
        gap = self.initial_sparsity - self.final_sparsity
        return self.final_sparsity + gap * left**self.power

    def get_config(self):
        return {
            "final_sparsity": self.final_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "initial_sparsity": self.initial_sparsity,
            "power": self.power,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return keras.saving.get_registered_name(type(self)) + str(
            self.get_config()
        )
