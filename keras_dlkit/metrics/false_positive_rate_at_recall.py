"""How many negatives pass where most positives do."""

from typing import Any

from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit.metrics._scores import LIANG
from keras_dlkit.metrics._scores import ScoreMetric


@cites(LIANG)
@export
class FalsePositiveRateAtRecall(ScoreMetric):
    r"""The least false-positive rate that finds enough of the positives.

    With `recall=0.95` this is FPR95, and 1 - FPR95 is "TNR at 95% TPR".

    Args:
        recall: Float in `(0, 1]`. The share of positives to find. Defaults to
            `0.95`.
        from_logits: Boolean. Scores are any real numbers, instead of those
            between 0 and 1.
        name: String, that of the logs.
        dtype: That of `keras.metrics.Metric`.

    `y_true` is 1 for what is to be detected and 0 for all else, `y_pred` the
    score, higher for 1; sample weights count. Logits are
    rounded to multiples of 60 / 8191, about 0.0073, and clipped at -30 and
    30: scores that come to the same one are taken as equal. Probabilities
    of float32 are told apart from 1e-13 to 1 - 6e-8.

    State: two histograms of 8,192 bins.
    Runs: in `update_state`, once a batch.
    Cost: one sum by bins.

    Example:

    ```python
    import numpy as np
    import keras_dlkit as dlkit

    metric = dlkit.metrics.FalsePositiveRateAtRecall(0.95)
    metric.update_state(np.array([1, 1, 0, 0]), np.array([0.9, 0.6, 0.7, 0.2]))
    float(metric.result())
    ```

    References:
        - [Liang et al., 2018](https://arxiv.org/abs/1706.02690)
    """

    def __init__(
        self,
        recall: float = 0.95,
        *,
        from_logits: bool = False,
        name: str | None = "fpr_at_recall",
        dtype: Any = None,
    ):
        super().__init__(from_logits=from_logits, name=name, dtype=dtype)
        self.recall = _checks.check_number("recall", recall, at_most=1)
        if self.recall <= 0:
            raise ValueError(
                f"`recall` must be more than 0. Received: recall={recall!r}"
            )

    def result(self):
        found, false = self.rates_above()
        # A share such as 0.95 of 20 is found to rounding.
        enough = found >= self.recall - 1e-6
        return ops.min(ops.where(enough, false, 1.0))

    def get_config(self):
        return {**super().get_config(), "recall": self.recall}
