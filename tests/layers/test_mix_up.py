"""MixUp against NumPy, given the draw; and all that its arguments promise."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.layers import _targets

RNG = np.random.default_rng(0)
LAM = np.array([0.25, 1.0, 0.5, 0.0], "float32")
PERMUTATION = np.array([2, 0, 3, 1])
DRAW = LAM, PERMUTATION


def images(dtype="float32", rows=4):
    return RNG.uniform(size=(rows, 3, 3, 1)).astype(dtype)


def blend(t):
    share = LAM.reshape(-1, *[1] * (t.ndim - 1))
    return share * t + (1 - share) * t[PERMUTATION]


def check(actual, expected):
    np.testing.assert_allclose(
        ops.convert_to_numpy(actual), expected, atol=1e-6, rtol=1e-6
    )


def apply(part, x, y, sample_weight=None):
    batch = part.prepare(x, part.encode(y), sample_weight)
    return part.apply(*batch, DRAW)


def test_images_and_integer_labels():
    x, labels = images(), np.array([0, 2, 1, 2])
    mixed, y, w = apply(dlkit.layers.MixUp(num_classes=3), x, labels)
    check(mixed, blend(x))
    check(y, blend(np.eye(3)[labels]))
    assert w is None


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 5), (4, 3, 3, 2)])
def test_float_targets_of_any_rank(shape):
    x, y = images(), RNG.normal(size=shape).astype("float32")
    mixed, target, _ = apply(dlkit.layers.MixUp(), x, y)
    check(target, blend(y))
    assert target.shape == shape


@pytest.mark.parametrize(
    ("shape", "encoded"),
    [((4,), (4, 3)), ((4, 1), (4, 3)), ((4, 5), (4, 5, 3))],
)
def test_integer_targets_of_any_rank(shape, encoded):
    labels = RNG.integers(0, 3, shape)
    y = dlkit.layers.MixUp(num_classes=3).encode(labels)
    assert tuple(y.shape) == encoded
    expected = np.eye(3)[labels].reshape(encoded)
    check(y, expected)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (4, 2)])
def test_booleans_are_classes_unless_they_are_one_hot(shape):
    labels = RNG.integers(0, 2, shape)
    y = dlkit.layers.MixUp(num_classes=2)(
        (images(), labels > 0), training=False
    )
    kept = shape == (4, 2)
    expected = labels if kept else np.eye(2)[labels.reshape(4, -1).squeeze()]
    np.testing.assert_array_equal(y[1], expected)


def test_any_structure_mixes_with_one_draw():
    x = {"image": images(), "row": RNG.normal(size=(4, 2)).astype("float32")}
    y = [RNG.integers(0, 3, 4), RNG.normal(size=4).astype("float32")]
    part = dlkit.layers.MixUp(num_classes=[3, None])
    mixed, (labels, value), _ = apply(part, x, y)
    check(mixed["image"], blend(x["image"]))
    check(mixed["row"], blend(x["row"]))
    check(labels, blend(np.eye(3)[y[0]]))
    check(value, blend(y[1]))


def test_inputs_left_out_stay():
    x = {"tokens": RNG.integers(0, 9, (4, 6)), "row": images()[..., 0]}
    y = np.zeros(4, "float32")
    part = dlkit.layers.MixUp(inputs=["row"])
    mixed, _, _ = apply(part, x, y)
    assert (ops.convert_to_numpy(mixed["tokens"]) == x["tokens"]).all()
    check(mixed["row"], blend(x["row"]))
    by_index = dlkit.layers.MixUp(inputs=1)
    mixed, _, _ = apply(by_index, (x["tokens"], x["row"]), y)
    check(mixed[1], blend(x["row"]))
    with pytest.raises(ValueError, match="'tokens' has dtype int.*inputs="):
        apply(dlkit.layers.MixUp(), x, y)


def test_inputs_that_are_not_there():
    x, y = {"row": images()}, np.zeros(4, "float32")
    with pytest.raises(ValueError, match=r"inputs=\['rwo'\].*'row'"):
        apply(dlkit.layers.MixUp(inputs=["rwo"]), x, y)
    with pytest.raises(ValueError, match="a single tensor"):
        apply(dlkit.layers.MixUp(inputs=0), x["row"], y)
    with pytest.raises(ValueError, match="keys or indices"):
        dlkit.layers.MixUp(inputs={"row": True})


def test_uint8_images_are_mixed_as_floats():
    x = RNG.integers(0, 255, (4, 3, 3, 1)).astype("uint8")
    mixed, _, _ = apply(dlkit.layers.MixUp(), x, np.zeros(4, "float32"))
    np.testing.assert_allclose(
        ops.convert_to_numpy(mixed), blend(x.astype("float64")), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_inputs_keep_their_dtype_and_targets_theirs(dtype):
    x = ops.cast(images(), dtype)
    part = dlkit.layers.MixUp(num_classes=3, seed=0)
    mixed, y = part((x, ops.convert_to_tensor([0, 1, 2, 0])))
    assert keras.backend.standardize_dtype(mixed.dtype) == dtype
    assert keras.backend.standardize_dtype(y.dtype) == "float32"


def test_a_mixed_policy_casts_nothing():
    keras.config.set_dtype_policy("mixed_float16")
    part = dlkit.layers.MixUp(num_classes=3)
    x, y, w = part((images(), np.array([0, 1, 2, 0]), np.ones(4, "float32")))
    assert x.dtype == y.dtype == w.dtype == np.float32


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_weights_keep_losses_linear_in_the_target(shape):
    """w' * loss(y') is the mix of w * loss(y), here of a linear loss."""
    y = np.eye(3, dtype="float32")[[0, 2, 1, 2]]
    w = np.array([1.0, 2.0, 0.5, 3.0], "float32").reshape(shape)
    _, target, weight = apply(dlkit.layers.MixUp(), images(), y, w)
    target, weight = map(ops.convert_to_numpy, (target, weight))
    slope = np.array([0.3, -1.0, 2.0])
    check(weight, blend(w))
    np.testing.assert_allclose(
        weight.reshape(4) * (target @ slope),
        blend(w.reshape(4) * (y @ slope)),
        rtol=1e-5,
    )


def test_weights_of_zero_on_both_sides():
    w = np.array([0.0, 1.0, 0.0, 1.0], "float32")  # rows 0 and 2 are partners
    y = np.eye(4, dtype="float32")
    _, target, weight = apply(dlkit.layers.MixUp(), images(), y, w)
    assert np.isfinite(ops.convert_to_numpy(target)).all()
    assert ops.convert_to_numpy(weight)[0] == 0


def test_weights_a_time_step_and_an_output():
    y = {"a": RNG.normal(size=(4, 5, 2)), "b": RNG.normal(size=(4,))}
    y = {k: v.astype("float32") for k, v in y.items()}
    w = {"a": RNG.uniform(0.5, 1, (4, 5)).astype("float32"), "b": None}
    _, target, weight = apply(dlkit.layers.MixUp(), images(), y, w)
    check(weight["a"], blend(w["a"]))
    assert weight["b"] is None
    check(target["b"], blend(y["b"]))
    wide = w["a"][..., None]
    check(target["a"], blend(wide * y["a"]) / blend(wide))


def test_float64_targets_stay_float64():
    if keras.config.backend() == "jax":
        return  # has no float64 unless asked
    y, w = (
        ops.convert_to_tensor(t, dtype="float64")
        for t in (RNG.normal(size=(4, 2)), RNG.uniform(1, 2, 4))
    )
    _, target, weight = dlkit.layers.MixUp(seed=0)((images(), y, w))
    for t in (target, weight):
        assert keras.backend.standardize_dtype(t.dtype) == "float64"


def test_label_smoothing_in_training_only():
    part = dlkit.layers.MixUp(0.0, num_classes=4, label_smoothing=0.2)
    data = images(), np.array([0, 1, 2, 3])
    _, y = part(data)
    check(y, 0.8 * np.eye(4) + 0.05)
    _, y = part(data, training=False)
    check(y, np.eye(4))


def test_smoothing_of_targets_that_are_no_classes():
    part = dlkit.layers.MixUp(0.0, num_classes=3, label_smoothing=0.1)
    y = {"a": np.array([0, 1, 2, 0]), "b": np.zeros((4, 1), "float32")}
    with pytest.raises(ValueError, match=r"'b' of shape \(4, 1\)"):
        part((images(), y))


def test_numpy_in_numpy_out_and_the_seed():
    part = dlkit.layers.MixUp(1.0, num_classes=3, seed=5)
    data = images(), np.array([0, 1, 2, 0])
    first, second = part(data), part(data)
    assert isinstance(first[0], np.ndarray) and len(first) == 2
    assert np.abs(first[0] - second[0]).max() > 1e-3
    again = dlkit.layers.MixUp(1.0, num_classes=3, seed=5)(data)
    assert (again[0] == first[0]).all() and (again[1] == first[1]).all()
    np.testing.assert_allclose(first[1].sum(1), 1, rtol=1e-6)


def test_alpha_zero_is_the_identity():
    data = images(), RNG.integers(0, 3, 4), np.ones(4, "float32")
    for before, after in zip(data, dlkit.layers.MixUp(0.0)(data)):
        assert (before == after).all()
        assert before.dtype.kind == after.dtype.kind


def test_probability():
    x = RNG.normal(size=(400, 2)).astype("float32")
    y = np.arange(400, dtype="float32")
    never, always, half = (
        dlkit.layers.MixUp(1.0, probability=p, seed=3)((x, y))[0]
        for p in (0.0, 1.0, 0.5)
    )
    assert (never == x).all()
    assert (always != x).any(1).mean() > 0.95
    assert 0.4 < (half != x).any(1).mean() < 0.6


def test_one_lambda_a_batch():
    x = np.arange(8, dtype="float32")[:, None] ** 3
    part = dlkit.layers.MixUp(1.0, per_sample=False, seed=1)
    lam, permutation = part.draw(8, part.seed_generator)
    assert tuple(lam.shape) == (1,)
    mixed, _, _ = part.apply(
        x, np.zeros(8, "float32"), None, (lam, permutation)
    )
    share = float(ops.convert_to_numpy(lam)[0])
    p = ops.convert_to_numpy(permutation)
    check(mixed, share * x + (1 - share) * x[p])


def test_active_epochs():
    part = dlkit.layers.MixUp(1.0, active_epochs=(1, 2), seed=0)
    data = images(), np.zeros(4, "float32")
    for epoch, changes in [(0, False), (1, True), (2, False)]:
        part.set_epoch(epoch)
        assert (part(data)[0] != data[0]).any() == changes


def test_a_batch_of_one():
    x, y = dlkit.layers.MixUp(1.0, num_classes=3)(
        (images(rows=1), np.array([2]))
    )
    check(y, np.eye(3)[[2]])


def test_no_targets():
    x, y = dlkit.layers.MixUp(1.0, seed=0)((images(), None))
    assert y is None and x.shape == (4, 3, 3, 1)


class Batches(keras.utils.PyDataset):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        x = rng.normal(size=(4, 2)).astype("float32")
        return self.part((x, rng.integers(0, 3, 4)))


def test_in_a_pydataset():
    net = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(3, "softmax")]
    )
    net.compile("sgd", "categorical_crossentropy")
    part = dlkit.layers.MixUp(1.0, num_classes=3)
    history = net.fit(Batches(part), verbose=0)
    assert np.isfinite(history.history["loss"][0])


def test_labels_out_of_range():
    part = dlkit.layers.MixUp(num_classes=3)
    with pytest.raises(ValueError, match=r"\[0, num_classes=3\).*from 0 to 3"):
        part((images(), np.array([0, 1, 2, 3])))
    # A compiled step cannot raise: it says so with NaN.
    y = _targets.one_hot(ops.convert_to_tensor([0, 3, -1, 2]), 3)
    y = ops.convert_to_numpy(y)
    assert np.isnan(y).all(1).tolist() == [False, True, True, False]
    if keras.config.backend() == "torch":  # nothing is compiled
        with pytest.raises(ValueError, match="from -1 to 3"):
            part((ops.ones((4, 2)), ops.convert_to_tensor([0, 3, -1, 2])))
    if keras.config.backend() != "jax":  # which has no more than 32 bits
        y = ops.convert_to_tensor(np.array([2**32 + 1, -(2**32), 1]), "int64")
        y = ops.convert_to_numpy(_targets.one_hot(y, 3))
        assert np.isnan(y).all(1).tolist() == [True, True, False]


def test_integer_labels_without_num_classes():
    with pytest.raises(ValueError, match="num_classes=.*float32"):
        dlkit.layers.MixUp()((images(), np.array([0, 1, 2, 0])))
    part = dlkit.layers.MixUp(num_classes={"a": 3, "b": None})
    y = {"a": np.array([0, 1, 2, 0]), "b": np.array([0, 1, 1, 0])}
    with pytest.raises(ValueError, match="target 'b' with dtype int"):
        part((images(), y))


def test_structures_that_differ():
    part = dlkit.layers.MixUp(num_classes=[3, None])
    with pytest.raises(ValueError, match="structure of the targets"):
        part((images(), np.array([0, 1, 2, 0])))
    with pytest.raises(ValueError, match="same batch size"):
        dlkit.layers.MixUp()((images(), np.zeros(3, "float32")))
    with pytest.raises(ValueError, match=r"as `\(x, y\)`"):
        dlkit.layers.MixUp()(images())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": float("inf")}, "alpha=inf"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"probability": 1.5}, "probability=1.5"),
        ({"label_smoothing": 2, "num_classes": 3}, "label_smoothing=2"),
        ({"label_smoothing": 0.1}, "needs `num_classes`"),
        ({"active_epochs": 3}, "active_epochs=3"),
        ({"active_epochs": (3, 1)}, r"active_epochs\[1\]"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        dlkit.layers.MixUp(**arguments)


def test_config():
    part = dlkit.layers.MixUp(
        0.3,
        num_classes={"a": 3, "b": None},
        inputs=["x"],
        per_sample=False,
        probability=0.5,
        label_smoothing=0.1,
        active_epochs=(1, 5),
        seed=4,
        name="mix",
    )
    config = keras.saving.serialize_keras_object(part)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == part.get_config()
    assert dict(copy.num_classes) == {"a": 3, "b": None}


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_the_function_refuses_what_cannot_be_blended(dtype):
    values = np.ones((2, 3), dtype)
    with pytest.raises(ValueError, match=f"must be floats.*{dtype}"):
        dlkit.ops.mix_up(values, np.array([1, 0]), 0.5)


def test_tensors_of_labels_are_looked_at_in_fit():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model = dlkit.attach(net, dlkit.layers.MixUp(num_classes=3))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    labels = keras.ops.convert_to_tensor([0, 1, 3])
    with pytest.raises(ValueError, match="from 0 to 3"):
        model.fit(np.ones((3, 2)), labels, verbose=0)
