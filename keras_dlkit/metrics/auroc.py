"""The area under the ROC curve, to the resolution of float32 scores."""

from typing import Any

from keras import ops

from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit.metrics._scores import LIANG
from keras_dlkit.metrics._scores import ScoreMetric


@cites(LIANG)
@export
class AUROC(ScoreMetric):
    r"""The chance that a positive has the higher score than a negative.

    Ties count half. `keras.metrics.AUC` has the same with thresholds that are
    evenly spaced from 0 to 1, and takes all scores above the last for one: of
    use where scores are spread out, not for those of a sure network.

    Args:
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

    metric = dlkit.metrics.AUROC()
    metric.update_state(np.array([1, 1, 0, 0]), np.array([0.9, 0.6, 0.7, 0.2]))
    float(metric.result())
    ```

    References:
        - [Liang et al., 2018](https://arxiv.org/abs/1706.02690)
    """

    def __init__(
        self,
        *,
        from_logits: bool = False,
        name: str | None = "auroc",
        dtype: Any = None,
    ):
        super().__init__(from_logits=from_logits, name=name, dtype=dtype)

    def result(self):
        found, false = self.rates_above()
        heights = 0.5 * (found[1:] + found[:-1])
        return ops.sum(heights * (false[1:] - false[:-1]))
