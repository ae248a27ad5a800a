"""What all mixing parts share: smoothing, several labels, dominant targets."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit import _step_batch
from keras_dlkit.layers import CutMix
from keras_dlkit.layers import CutOut
from keras_dlkit.layers import MixUp
from keras_dlkit.layers import RandomChoice

PARTS = [MixUp, CutMix]
LAM = np.array([0.25, 1.0, 0.5, 0.0], "float32")
PERMUTATION = np.array([2, 0, 3, 1])
X = np.random.default_rng(0).uniform(size=(4, 6, 6, 1)).astype("float32")


def to_numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("cls", PARTS)
def test_smoothing_of_each_kind_of_targets(cls):
    part = cls(
        0.0,
        num_classes=[4, 4, None, None],
        multi_label=[False, False, True, True],
        label_smoothing=0.2,
    )
    labels = np.array([0, 1, 2, 3])
    several = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0]])
    y = [labels, np.eye(4, dtype="float32")[labels], several, several * 1.0]
    smooth = part((X, y))[1]
    for target in smooth[:2]:
        np.testing.assert_allclose(target, 0.8 * np.eye(4) + 0.05, rtol=1e-6)
    for target in smooth[2:]:
        np.testing.assert_allclose(target, 0.8 * several + 0.1, rtol=1e-6)
    plain = part((X, y), training=False)[1]
    np.testing.assert_array_equal(plain[0], np.eye(4))
    np.testing.assert_array_equal(plain[2], several)
    assert plain[2].dtype == np.float32


@pytest.mark.parametrize("cls", PARTS)
def test_several_labels_are_blended(cls):
    y = np.array([[0, 1], [1, 1], [0, 0], [1, 0]])
    part = cls(1.0, multi_label=True, seed=0)
    mixed = part((X, y))[1]
    assert mixed.dtype == np.float32 and mixed.shape == y.shape
    assert not part.encodes()  # a binary loss has no sparse form


def test_what_cannot_be_labels_or_weights_is_refused():
    with pytest.raises(ValueError, match="must be 0 or 1.*from 0 to 3"):
        MixUp(1.0, multi_label=True)((X, np.array([3, 0, 1, 0])))
    with pytest.raises(ValueError, match="Only one-hot"):
        part = MixUp(1.0, num_classes=4, label_smoothing=0.1)
        part((X, np.arange(4, dtype="float32")))
    with pytest.raises(ValueError, match=r"not have more dim.*\(4, 3\) for"):
        MixUp(1.0)((X, np.ones(4, "float32"), np.ones((4, 3), "float32")))
    with pytest.raises(ValueError, match="one at least"):
        MixUp(inputs=[])


def test_smoothing_stops_with_the_epochs():
    part = MixUp(0.0, num_classes=4, label_smoothing=0.2, active_epochs=(0, 1))
    data = X, np.arange(4)
    assert part(data)[1].max() < 0.9
    part.set_epoch(1)
    np.testing.assert_array_equal(part(data)[1], np.eye(4))


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"probability": 0}])
def test_booleans_are_smoothed_where_nothing_is_mixed(arguments):
    y = np.array([[False, True], [True, True], [False, False], [True, False]])
    part = MixUp(multi_label=True, label_smoothing=0.2, **arguments)
    np.testing.assert_allclose(part((X, y))[1], 0.8 * y + 0.1, rtol=1e-6)


def test_integers_that_are_one_hot_already():
    part = MixUp(num_classes=3)
    with pytest.raises(ValueError, match="one-hot already.*float32"):
        part((X, np.eye(3, dtype="int32")[[0, 2, 1, 1]]))
    steps = np.array([[0, 1, 2], [1, 1, 1], [0, 0, 0], [2, 1, 0]])
    assert part((X, steps))[1].shape == (4, 3, 3)  # a class a time step
    pairs = np.array([[0, 1], [1, 0], [0, 1], [0, 1]])
    part = MixUp(num_classes=2)
    with pytest.raises(ValueError, match=r"in the shape \(4, 2, 1\)"):
        part((X, pairs))
    assert part((X, pairs[..., None]))[1].shape == (4, 2, 2)


def test_options_that_exclude_each_other():
    for arguments in (
        {"num_classes": 3, "multi_label": True},
        {"num_classes": [3, None], "multi_label": [True, False]},
        {"num_classes": 3, "multi_label": [True, False]},
    ):
        with pytest.raises(ValueError, match="either one class.*multi_label="):
            MixUp(**arguments)
    with pytest.raises(TypeError, match="multi_label=1"):
        MixUp(multi_label=1)
    with pytest.raises(ValueError, match="`multi_label` must have the struct"):
        MixUp(multi_label=[True, False])((X, np.zeros((4, 2))))


# Dominant targets.


def seen(part, y, draw, x=X, w=None):
    x, _, w = part.prepare(x, part.encode(y), w)
    return to_numpy(part.metric_targets(x, y, w, draw))


def test_the_dominant_row():
    labels = np.array([0, 1, 2, 2])
    part = MixUp(num_classes=3, dominant_metrics=True, label_smoothing=0.3)
    expected = np.eye(3)[[labels[2], labels[1], labels[2], labels[1]]]
    np.testing.assert_array_equal(
        seen(part, labels, (LAM, PERMUTATION)), expected
    )
    # A row that does not count does not dominate.
    weights = np.array([0, 1, 0, 1], "float32")
    counts = np.stack([LAM * weights, (1 - LAM) * weights[PERMUTATION]])
    rows = np.where(counts[0] >= counts[1], np.arange(4), PERMUTATION)
    np.testing.assert_array_equal(
        seen(part, labels, (LAM, PERMUTATION), w=weights),
        np.eye(3)[labels[rows]],
    )


def test_the_dominant_row_of_a_box_is_by_its_pixels():
    """At a corner a box that was to win is cut to a quarter, and loses."""
    lam = np.full(4, 0.3, "float32")
    for place, wins in ((0.0, False), (0.5, True)):
        draw = lam, PERMUTATION, np.full((4, 3), place, "float32")
        part = CutMix(dominant_metrics=True)
        y = np.arange(4, dtype="float32")
        expected = y[PERMUTATION] if wins else y
        np.testing.assert_array_equal(seen(part, y, draw), expected)
        mask = np.arange(4 * 36).reshape(4, 6, 6)
        pasted = seen(part, mask, draw)
        assert ((pasted == mask) | (pasted == mask[PERMUTATION])).all()
        assert (pasted != mask).any() and (pasted != mask[PERMUTATION]).any()


class Spy(keras.metrics.Metric):
    """Keeps what it is measured on, in rows."""

    def __init__(self, name="spy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.targets = self.add_variable((8, 3), "zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.targets.assign(y_true)

    def result(self):
        return ops.sum(self.targets)


class SpyLoss(keras.losses.Loss):
    """Linear in targets: the sum of `y * code`, whatever is predicted."""

    def call(self, y_true, y_pred):
        code = ops.convert_to_tensor([1.0, 10.0, 100.0])
        return ops.sum(y_true * code, -1) + 0.0 * ops.sum(y_pred, -1)


PIXELS = np.random.default_rng(1).uniform(size=(8, 4, 4, 1)).astype("float32")
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])
CHAINS = {
    "mix_up": lambda: [MixUp(1.0, num_classes=3, dominant_metrics=True)],
    "chain": lambda: [
        MixUp(1.0, num_classes=3, dominant_metrics=True),
        CutOut(2),
        CutMix(dominant_metrics=True),
    ],
    "choice": lambda: [
        RandomChoice(
            [
                MixUp(1.0, num_classes=3, dominant_metrics=True),
                CutMix(num_classes=3, dominant_metrics=True),
            ]
        ),
    ],
}


def network():
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(3, "softmax"),
        ]
    )


@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_metrics_see_the_dominant_targets_and_the_loss_the_blend(name, sam):
    model = dlkit.attach(network(), *CHAINS[name]())
    optimizer = keras.optimizers.SGD(0.1)
    if sam:
        optimizer = dlkit.optimizers.SAM(optimizer, rho=0.1)
    spy = Spy()
    model.compile(optimizer, SpyLoss(), metrics=[spy])
    logs = model.fit(PIXELS, LABELS, batch_size=8, epochs=1, verbose=0).history
    targets = to_numpy(spy.targets)
    assert set(np.unique(targets)) == {0, 1}  # rows of one class
    np.testing.assert_array_equal(targets.sum(1), 1)
    # Blended: not a number that whole labels could give.
    total = 8 * logs["loss"][0]
    assert abs(total - np.rint(total)) > 1e-3
    model.evaluate(PIXELS, LABELS, batch_size=8, verbose=0)
    np.testing.assert_array_equal(to_numpy(spy.targets), np.eye(3)[LABELS])


def test_without_it_metrics_see_the_blend():
    model = dlkit.attach(network(), MixUp(1.0, num_classes=3))
    spy = Spy()
    model.compile("sgd", SpyLoss(), metrics=[spy])
    model.fit(PIXELS, LABELS, batch_size=8, verbose=0)
    assert len(np.unique(to_numpy(spy.targets))) > 2


def test_dominance_in_a_chain_is_that_of_all_draws(monkeypatch):
    cut = CutOut(2)
    blend = MixUp(num_classes=4, dominant_metrics=True)
    paste = CutMix(num_classes=4, dominant_metrics=True)
    # Boxes of 3 x 3 of 6 x 6 pixels, but for a row all of which is pasted.
    lam = np.array([0.75, 0.75, 0.0, 0.75], "float32")
    draws = {
        cut: (np.zeros((4, 3), "float32"), np.ones(4, bool)),
        blend: (LAM, PERMUTATION),
        paste: (lam, PERMUTATION, np.full((4, 3), 0.5, "float32")),
    }
    calls = []
    for part, draw in draws.items():
        change = part.apply
        monkeypatch.setattr(part, "draw", lambda rows, seed, draw=draw: draw)
        monkeypatch.setattr(
            part,
            "apply",
            lambda *batch, change=change: (calls.append(1), change(*batch))[1],
        )
    _, y, _ = _step_batch.change(list(draws), (X, np.arange(4)), True)
    assert len(calls) == 3  # no part changes the inputs once more for metrics
    targets = np.eye(4)
    for own in (LAM, lam):
        own = own[:, None]
        targets = own * targets + (1 - own) * targets[PERMUTATION]
    np.testing.assert_allclose(to_numpy(y.y), targets, atol=1e-6)
    # Of the blends 0 and 3 are of their partners, 2 and 1; all of 3 is pasted
    # into row 2.
    np.testing.assert_array_equal(
        to_numpy(y.of_metrics), np.eye(4)[[2, 1, 1, 1]]
    )
