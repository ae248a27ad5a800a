"""All scores of a detector at once, exactly."""

from typing import Any

import numpy as np

from keras_dlkit._papers import cites
from keras_dlkit.metrics._scores import LIANG
from keras_dlkit.metrics._scores import check_labels


@cites(LIANG)
def detection_report(labels: Any, scores: Any) -> dict[str, float]:
    """How well scores tell 1 from 0, without any rounding of the scores.

    For known against unknown inputs: label 1 for known ones, with a confidence
    as the score. For misclassification: label 1 for what was right.

    Args:
        labels: Array of 0 and 1, both of them.
        scores: Array of that shape, of finite numbers, higher for 1.

    Returns:
        Dict of `"auroc"`, `"aupr_in"`, `"aupr_out"` (average precision of 1,
        and of 0), `"tnr_at_95"` (the share of 0 that is refused where 95% of 1
        pass, 1 - FPR95) and `"detection_accuracy"` (see the metrics of these
        names), in `[0, 1]`.

    State: none.
    Runs: on the host, on NumPy arrays, when it is called.
    Cost: two sorts of the scores.

    Raises:
        ValueError: For labels other than 0 and 1, or of one kind only.

    Example:

    ```python
    import numpy as np
    import keras_dlkit as dlkit

    known, unknown = np.array([0.9, 0.8, 0.6]), np.array([0.7, 0.3])
    labels = np.repeat([1, 0], [len(known), len(unknown)])
    dlkit.metrics.detection_report(labels, np.concatenate([known, unknown]))
    ```

    References:
        - [Liang et al., 2018](https://arxiv.org/abs/1706.02690)
    """
    labels, scores = check_labels(labels, scores)
    positives, negatives = _counts_above(labels, scores)
    found, false = positives / positives[-1], negatives / negatives[-1]
    return {
        "auroc": float(np.sum((found[1:] + found[:-1]) / 2 * np.diff(false))),
        "aupr_in": _average_precision(positives, negatives),
        "aupr_out": _average_precision(*_counts_above(1 - labels, -scores)),
        "tnr_at_95": float(1 - false[found >= 0.95 - 1e-9][0]),
        "detection_accuracy": float(np.max(found + 1 - false) / 2),
    }


def _counts_above(labels, scores):
    """Positives and negatives from each distinct score up, from none on."""
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    last = np.append(scores[1:] != scores[:-1], True)
    positives = np.cumsum(labels)[last]
    return (
        np.concatenate([[0.0], positives]),
        np.concatenate([[0.0], np.cumsum(1 - labels)[last]]),
    )


def _average_precision(positives, negatives):
    precision = positives[1:] / (positives[1:] + negatives[1:])
    return float(np.sum(np.diff(positives) * precision) / positives[-1])
