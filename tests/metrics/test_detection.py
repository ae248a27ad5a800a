"""Against scikit-learn, on scores that are spread and on those of sure nets."""

import keras
import numpy as np
import pytest
from keras import ops
from sklearn import metrics as reference

import keras_dlkit as dlkit

LABELS = np.random.default_rng(0).integers(0, 2, 600)


def scores(kind):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=600) * 2 + 1.5 * LABELS
    if kind == "sure":  # nearly all of them above 0.999
        logits = logits + 9
    if kind == "ties":
        logits = np.round(logits)
    return (1 / (1 + np.exp(-logits))).astype("float32")


def expected(labels, scores, weights=None):
    false, found, _ = reference.roc_curve(labels, scores, sample_weight=weights)
    average = reference.average_precision_score
    return {
        "auroc": reference.roc_auc_score(labels, scores, sample_weight=weights),
        "aupr_in": average(labels, scores, sample_weight=weights),
        "aupr_out": average(1 - labels, -scores, sample_weight=weights),
        "tnr_at_95": 1 - false[found >= 0.95][0],
        "detection_accuracy": np.max(found + 1 - false) / 2,
    }


def streaming(**arguments):
    metrics = dlkit.metrics
    return {
        "auroc": metrics.AUROC(**arguments),
        "aupr_in": metrics.AUPR(**arguments),
        "aupr_out": metrics.AUPR("out", **arguments),
        "tnr_at_95": metrics.FalsePositiveRateAtRecall(0.95, **arguments),
        "detection_accuracy": metrics.DetectionAccuracy(**arguments),
    }


def result(name, metric):
    value = float(ops.convert_to_numpy(metric.result()))
    return 1 - value if name == "tnr_at_95" else value


@pytest.mark.parametrize("kind", ["spread", "sure", "ties"])
@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_against_scikit_learn(kind, weighted):
    values = scores(kind)
    weights = np.arange(600) % 3 + 0.5 if weighted else None
    for name, metric in streaming().items():
        for rows in (slice(0, 250), slice(250, 600)):
            metric.update_state(
                LABELS[rows],
                values[rows],
                sample_weight=None if weights is None else weights[rows],
            )
        np.testing.assert_allclose(
            result(name, metric),
            expected(LABELS, values, weights)[name],
            atol=2e-3,
            err_msg=name,
        )
        metric.reset_state()
        assert result(name, metric) in (0.0, 0.5, 1.0)


@pytest.mark.parametrize("kind", ["spread", "sure", "ties"])
def test_the_report_is_exact(kind):
    values = scores(kind)
    found = dlkit.metrics.detection_report(LABELS, values)
    assert found.keys() == expected(LABELS, values).keys()
    for name, value in expected(LABELS, values).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12)


def test_logits_are_as_good_as_probabilities():
    logits = np.random.default_rng(2).normal(size=600) * 3 + LABELS
    probabilities = 1 / (1 + np.exp(-logits))
    for name in streaming():
        of_logits = streaming(from_logits=True)[name]
        of_logits.update_state(LABELS, logits)
        other = streaming()[name]
        other.update_state(LABELS, probabilities)
        assert abs(result(name, of_logits) - result(name, other)) < 1e-3


def test_in_fit_and_from_config():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(1, "sigmoid")]
    )
    model.compile(
        "sgd", "binary_crossentropy", metrics=list(streaming().values())[:2]
    )
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    history = model.fit(x, LABELS[:32], verbose=0).history
    predictions = model.predict(x, verbose=0)[:, 0]
    found = model.evaluate(x, LABELS[:32], verbose=0, return_dict=True)
    assert {"auroc", "aupr"} <= set(history)
    np.testing.assert_allclose(
        found["auroc"], expected(LABELS[:32], predictions)["auroc"], atol=1e-2
    )
    for metric in streaming(from_logits=True).values():
        config = metric.get_config()
        assert type(metric).from_config(config).get_config() == config


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 1, 1], "both"), ([0, 1], "shape"), ([0, 1, 2], "0 or 1")],
)
def test_what_is_no_label_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        dlkit.metrics.detection_report(labels, [0.1, 0.2, 0.3])


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="recall"):
        dlkit.metrics.FalsePositiveRateAtRecall(1.5)
    with pytest.raises(ValueError, match="more than 0"):
        dlkit.metrics.FalsePositiveRateAtRecall(0.0)
    with pytest.raises(ValueError, match="positive"):
        dlkit.metrics.AUPR("both")
