"""What all metrics of scores share: two histograms, fine where scores lie."""

import keras
import numpy as np
from keras import ops

from keras_dlkit._papers import Paper

LIANG = Paper(
    "Enhancing The Reliability of Out-of-distribution Image Detection in "
    "Neural Networks",
    "Shiyu Liang and Yixuan Li and R. Srikant",
    2018,
    "International Conference on Learning Representations",
    arxiv="1706.02690",
)

BINS = 8192
# Logits beyond it count as it: sigmoid(30) is 1 to float32.
FURTHEST = 30.0


class ScoreMetric(keras.metrics.Metric):
    """Counts positives and negatives by their score, in bins of its logit.

    Keras' own curves have evenly spaced thresholds from 0 to 1, of which most
    scores of a sure network are above the last: by logit they are told apart.
    """

    def __init__(self, *, from_logits=False, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.from_logits = bool(from_logits)
        self.positives, self.negatives = (
            self.add_weight(shape=(BINS,), initializer="zeros", name=name)
            for name in ("positives", "negatives")
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        labels = ops.reshape(ops.cast(y_true, "float32"), (-1,))
        weights = ops.ones_like(labels)
        if sample_weight is not None:
            weights = ops.cast(sample_weight, "float32")
            weights = ops.reshape(weights, (-1,)) * ops.ones_like(labels)
        scores = ops.reshape(ops.cast(y_pred, "float32"), (-1,))
        bins = self._bins(scores)
        self.positives.assign_add(_histogram(bins, weights * labels))
        self.negatives.assign_add(_histogram(bins, weights * (1.0 - labels)))

    def _bins(self, scores):
        if not self.from_logits:
            # log(1 - p) by log1p, or the scores near 1 would be one.
            tiny = 1e-13
            scores = ops.log(ops.maximum(scores, tiny)) - ops.log1p(
                -ops.minimum(scores, 1.0 - 6e-8)
            )
        scores = ops.clip(scores, -FURTHEST, FURTHEST)
        places = (scores + FURTHEST) * ((BINS - 1) / (2 * FURTHEST))
        return ops.cast(ops.round(places), "int32")

    def counts_above(self):
        """Positives and negatives at or above each threshold, from the top.

        Entry 0 is the threshold that nothing reaches.
        """
        return [
            ops.concatenate([ops.zeros((1,)), ops.cumsum(ops.flip(counts))])
            for counts in (
                ops.convert_to_tensor(self.positives),
                ops.convert_to_tensor(self.negatives),
            )
        ]

    def rates_above(self):
        """The rates of true and of false positives at each threshold."""
        return [
            counts / ops.maximum(counts[-1], 1e-12)
            for counts in self.counts_above()
        ]

    def get_config(self):
        return {**super().get_config(), "from_logits": self.from_logits}


def _histogram(bins, weights):
    return ops.segment_sum(weights, bins, num_segments=BINS)


def check_labels(labels, scores):
    """Flat arrays of float64, both labels among them."""
    labels = np.asarray(labels, "float64").ravel()
    scores = np.asarray(scores, "float64").ravel()
    if labels.shape != scores.shape or set(np.unique(labels)) != {0.0, 1.0}:
        raise ValueError(
            "There must be a label, 0 or 1, for each score, and both of them. "
            f"Received: labels of shape {labels.shape} with values "
            f"{np.unique(labels)[:5]}, and scores of shape {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("Scores must be finite. Received: some that are not.")
    return labels, scores
