"""The area under the precision-recall curve."""

from typing import Any

from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit.metrics._scores import LIANG
from keras_dlkit.metrics._scores import ScoreMetric


@cites(LIANG)
@export
class AUPR(ScoreMetric):
    r"""The average precision over the positives, or over the negatives.

    $$\sum_n (R_n - R_{n-1}) P_n$$

    with recall and precision at each threshold, from the highest on; without
    interpolation, as in scikit-learn. With inputs that are known as 1 and
    their confidence as the score, `"in"` is AUPR-in and `"out"` AUPR-out.

    Args:
        positive: `"in"`: what `y_true` says is 1 is to be found. `"out"`: what
            is 0, by low scores.
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

    metric = dlkit.metrics.AUPR("out")
    metric.update_state(np.array([1, 1, 0, 0]), np.array([0.9, 0.6, 0.7, 0.2]))
    float(metric.result())
    ```

    References:
        - [Liang et al., 2018](https://arxiv.org/abs/1706.02690)
    """

    def __init__(
        self,
        positive: str = "in",
        *,
        from_logits: bool = False,
        name: str | None = "aupr",
        dtype: Any = None,
    ):
        super().__init__(from_logits=from_logits, name=name, dtype=dtype)
        self.positive = _checks.check_one_of(
            "positive", positive, ("in", "out")
        )

    def result(self):
        positives, negatives = self.counts_above()
        if self.positive == "out":
            positives, negatives = (
                counts[-1] - ops.flip(counts)
                for counts in (negatives, positives)
            )
        found = positives[1:] - positives[:-1]
        all_above = positives[1:] + negatives[1:]
        precision = positives[1:] / ops.maximum(all_above, 1e-12)
        return ops.sum(found * precision) / ops.maximum(positives[-1], 1e-12)

    def get_config(self):
        return {**super().get_config(), "positive": self.positive}
