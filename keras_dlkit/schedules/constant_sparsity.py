"""One sparsity, from some step on."""

import keras

from keras_dlkit import _checks
from keras_dlkit._export import export


@export
class ConstantSparsity:
    r"""Dense up to a step, and of one sparsity from then on.

    Args:
        sparsity: Float in `[0, 1)`. The share of weights that are zero.
        begin_step: Integer, at least 0. The update, counted from 1, before
            which the weights are pruned; 0 and 1 are the first.

    Returns, when called with a step: Float, the sparsity of that step.

    State: none.
    Runs: on the host, before the updates on which weights are pruned.
    Cost: none.

    Example:

    ```python
    import keras_dlkit as dlkit

    schedule = dlkit.schedules.ConstantSparsity(0.5, begin_step=100)
    assert [schedule(step) for step in (99, 100, 101)] == [0.0, 0.5, 0.5]
    ```
    """

    def __init__(self, sparsity: float, *, begin_step: int = 0):
        self.sparsity = _checks.check_rate("sparsity", sparsity)
        self.begin_step = _checks.check_count(
            "begin_step", begin_step, at_least=0
        )
        self.end_step = self.begin_step

    def __call__(self, step: int) -> float:
        return self.sparsity if step >= self.begin_step else 0.0

    def get_config(self):
        return {"sparsity": self.sparsity, "begin_step": self.begin_step}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return keras.saving.get_registered_name(type(self)) + str(
            self.get_config()
        )
