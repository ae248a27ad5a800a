"""How near and how far scores are told apart, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from keras_dlkit.metrics import AUROC

STEP = 60 / 8191


@pytest.mark.parametrize("end", [-29.9, 0.0, 29.0])
def test_logits_are_told_apart_a_step_from_each_other(end):
    labels = np.array([0, 1, 0, 1, 1, 0], "float32")
    logits = end + 1.01 * STEP * np.array([0, 1, 2, 3, 4, 5])
    metric = AUROC(from_logits=True)
    metric.update_state(labels, logits.astype("float32"))
    expected = roc_auc_score(labels, logits)
    np.testing.assert_allclose(float(metric.result()), expected, atol=1e-6)


def test_nearer_or_further_logits_are_ties():
    labels = np.array([0, 1, 0, 1], "float32")
    logits = np.array([30.0, 50.0, -50.0, -30.0], "float32")
    metric = AUROC(from_logits=True)
    metric.update_state(labels, logits)
    expected = roc_auc_score(labels, np.clip(logits, -30, 30))
    np.testing.assert_allclose(float(metric.result()), expected, atol=1e-6)

    metric = AUROC(from_logits=True)
    metric.update_state([0.0, 1.0], [0.5 * STEP - 0.003, 0.5 * STEP + 0.003])
    other = AUROC(from_logits=True)
    other.update_state([0.0, 1.0], [STEP - 0.003, STEP + 0.003])
    values = {float(metric.result()), float(other.result())}
    assert values == {0.5, 1.0}  # 0.006 apart: by where the step lies


def test_extreme_probabilities():
    labels = np.array([0, 1, 0, 1, 0, 1], "float32")
    scores = np.array([1e-13, 1e-12, 2e-12, 1 - 2.4e-7, 1 - 1.2e-7, 1 - 6e-8])
    scores = scores.astype("float32")
    metric = AUROC()
    metric.update_state(labels, scores)
    expected = roc_auc_score(labels, scores)
    np.testing.assert_allclose(float(metric.result()), expected, atol=1e-6)
