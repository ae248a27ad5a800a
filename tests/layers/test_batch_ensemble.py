"""The layers of an ensemble against plain layers with kernels of their own.

The kernel of a member, `W * sum(r s^T)`, is made here in float64 by loops.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit

BACKEND = keras.config.backend()
MEMBERS, ROWS = 3, 4
layers = dlkit.layers


def arrays(variables):
    return [ops.convert_to_numpy(v) for v in variables]


# Factors of kernels, an entry at a time.


def dense(r, s, shape):
    factor = np.zeros(shape)
    for k, i, o in itertools.product(range(len(r)), *map(range, shape)):
        factor[i, o] += r[k, i] * s[k, o]
    return factor


def conv(groups):
    def factor(r, s, shape):
        *_, per_group, filters = shape
        result = np.zeros(shape)
        for k, i, o in itertools.product(
            range(len(r)), range(per_group), range(filters)
        ):
            group = o // (filters // groups)
            result[..., i, o] += r[k, group * per_group + i] * s[k, o]
        return result

    return factor


def depthwise(r, s, shape):
    *_, channels, multiplier = shape
    result = np.zeros(shape)
    for k, c, j in itertools.product(
        range(len(r)), range(channels), range(multiplier)
    ):
        result[..., c, j] += r[k, c] * s[k, c * multiplier + j]
    return result


def from_axes(r_axes, s_axes):
    """Of an einsum: which axes of the kernel r and s have."""

    def factor(r, s, shape):
        result = np.zeros(shape)
        for k, place in itertools.product(range(len(r)), np.ndindex(*shape)):
            result[place] += (
                r[(k, *(place[a] for a in r_axes))]
                * s[(k, *(place[a] for a in s_axes))]
            )
        return result

    return factor


# Name: class, arguments, shape of a row, factor of each kernel.
CASES = {
    "dense": (layers.DenseBatchEnsemble, (4,), {}, (5,), {"kernel": dense}),
    "dense of sequences": (
        layers.DenseBatchEnsemble,
        (4,),
        {"activation": "tanh", "use_bias": False},
        (6, 5),
        {"kernel": dense},
    ),
    "conv1d, causal": (
        layers.Conv1DBatchEnsemble,
        (4, 3),
        {"padding": "causal", "dilation_rate": 2},
        (7, 5),
        {"kernel": conv(1)},
    ),
    "conv1d, channels first": (
        layers.Conv1DBatchEnsemble,
        (4, 3),
        {"padding": "causal", "data_format": "channels_first"},
        (5, 7),
        {"kernel": conv(1)},
    ),
    "conv2d": (
        layers.Conv2DBatchEnsemble,
        (4, 3),
        {"strides": 2, "activation": "relu"},
        (6, 7, 5),
        {"kernel": conv(1)},
    ),
    "conv2d, groups": (
        layers.Conv2DBatchEnsemble,
        (6, 3),
        {"groups": 2, "padding": "same"},
        (5, 5, 4),
        {"kernel": conv(2)},
    ),
    "conv2d, channels first": (
        layers.Conv2DBatchEnsemble,
        (4, (3, 2)),
        {"data_format": "channels_first"},
        (5, 6, 7),
        {"kernel": conv(1)},
    ),
    "conv3d": (
        layers.Conv3DBatchEnsemble,
        (4, 2),
        {},
        (3, 4, 5, 2),
        {"kernel": conv(1)},
    ),
    "depthwise 1d": (
        layers.DepthwiseConv1DBatchEnsemble,
        (3,),
        {"depth_multiplier": 2},
        (6, 4),
        {"kernel": depthwise},
    ),
    "depthwise 2d": (
        layers.DepthwiseConv2DBatchEnsemble,
        (3,),
        {"depth_multiplier": 2, "strides": 2, "activation": "relu"},
        (6, 6, 4),
        {"kernel": depthwise},
    ),
    "depthwise 2d, channels first": (
        layers.DepthwiseConv2DBatchEnsemble,
        (3,),
        {"data_format": "channels_first"},
        (4, 6, 7),
        {"kernel": depthwise},
    ),
    "separable 1d": (
        layers.SeparableConv1DBatchEnsemble,
        (4, 3),
        {"depth_multiplier": 2},
        (6, 3),
        {"depthwise_kernel": depthwise, "pointwise_kernel": conv(1)},
    ),
    "separable 2d": (
        layers.SeparableConv2DBatchEnsemble,
        (4, 3),
        {"padding": "same", "strides": 2, "activation": "tanh"},
        (6, 6, 3),
        {"depthwise_kernel": depthwise, "pointwise_kernel": conv(1)},
    ),
    "separable 2d, channels first": (
        layers.SeparableConv2DBatchEnsemble,
        (4, 3),
        {"data_format": "channels_first"},
        (3, 6, 7),
        {"depthwise_kernel": depthwise, "pointwise_kernel": conv(1)},
    ),
    "einsum, heads": (
        layers.EinsumDenseBatchEnsemble,
        ("abc,cde->abde", (None, 3, 2)),
        {"bias_axes": "de"},
        (5, 4),
        {"kernel": from_axes((0,), (1, 2))},
    ),
    "einsum, heads joined": (
        layers.EinsumDenseBatchEnsemble,
        ("abde,dec->abc", (None, 4)),
        {"bias_axes": "c", "activation": "tanh"},
        (5, 3, 2),
        {"kernel": from_axes((0, 1), (2,))},
    ),
    "einsum, an axis on both sides": (
        layers.EinsumDenseBatchEnsemble,
        ("abc,bcd->abd", (3, 4)),
        {"bias_axes": "bd"},
        (3, 5),
        {"kernel": from_axes((0, 1), (0, 2))},
    ),
    "einsum, ellipsis": (
        layers.EinsumDenseBatchEnsemble,
        ("...x,xy->...y", 4),
        {"bias_axes": "y"},
        (3, 5),
        {"kernel": dense},
    ),
    "embedding": (
        layers.EmbeddingBatchEnsemble,
        (11, 4),
        {},
        (6,),
        {"embeddings": dense},
    ),
}


def rows_of(name, shape, count=MEMBERS * ROWS):
    rng = np.random.default_rng(5)
    if "embedding" in name:
        return rng.integers(0, 11, (count, *shape))
    return rng.normal(size=(count, *shape)).astype("float32")


def randomized(layer):
    """Weights that are no special case: also biases, also later terms."""
    rng = np.random.default_rng(2)
    for v in layer.variables:
        v.assign(rng.normal(0.5, 1.0, v.shape).astype("float32"))
        if "variance" in v.name:
            v.assign(np.abs(arrays([v])[0]) + 0.5)
    return layer


def made(name, rank=1, **more):
    cls, arguments, options, shape, factors = CASES[name]
    layer = cls(*arguments, ensemble_size=MEMBERS, rank=rank, **options, **more)
    layer(rows_of(name, shape))
    return layer, rows_of(name, shape), factors


def plain_of(layer, member, factors):
    """A layer of Keras with one member's weights, made by hand."""
    name = type(layer).__name__.removesuffix("BatchEnsemble")
    config = layer.get_config()
    for key in (
        "ensemble_size",
        "rank",
        "fast_initializer",
        "fast_learning_rate",
        "seed",
    ):
        config.pop(key, None)
    plain = getattr(keras.layers, name).from_config(config)
    return plain, {
        v.name: ops.convert_to_numpy(v).astype("float64")
        for v in layer.variables
    }


def set_by_hand(plain, ours, member, factors):
    for v in plain.variables:
        value = ours[v.name]
        if v.name in factors:
            prefix = "depthwise_" if v.name == "depthwise_kernel" else ""
            r, s = (
                ours[f"{prefix}{side}_scale"][member]
                for side in ("input", "output")
            )
            value = value * factors[v.name](r, s, value.shape)
        else:
            value = value[member]
        v.assign(value.astype("float32"))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_member_is_a_plain_layer_with_a_kernel_of_its_own(name, rank):
    layer, x, factors = made(name, rank)
    y = ops.convert_to_numpy(randomized(layer)(x))
    for known, size in zip(layer.compute_output_shape(x.shape), y.shape):
        assert known in (None, size)
    for member in range(MEMBERS):
        rows = slice(member * ROWS, (member + 1) * ROWS)
        plain, ours = plain_of(layer, member, factors)
        plain(x[rows])
        set_by_hand(plain, ours, member, factors)
        expected = ops.convert_to_numpy(plain(x[rows]))
        np.testing.assert_allclose(y[rows], expected, rtol=1e-4, atol=2e-5)
        # And what `fold` makes of it.
        folded = layer.plain_layer()
        folded(x[rows])
        layer.give_weights(member, folded)
        assert type(folded) is type(plain)
        for a, b in zip(arrays(folded.weights), arrays(plain.weights)):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_dense_step_is_that_of_float64():
    """Loss, and the gradients of kernel, r, s and bias, by hand."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 4))
    layer = layers.DenseBatchEnsemble(4, MEMBERS, rank=2)
    model = keras.Sequential([keras.Input((5,)), layer])
    randomized(layer)
    before = {v.name: arrays([v])[0].astype("float64") for v in layer.variables}
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    w, b = before["kernel"], before["bias"]
    r, s = before["input_scale"], before["output_scale"]
    gradients = {name: np.zeros_like(value) for name, value in before.items()}
    for m in range(MEMBERS):
        rows = slice(4 * m, 4 * m + 4)
        factor = dense(r[m], s[m], w.shape)
        error = x[rows] @ (w * factor) + b[m] - y[rows]
        back = 2 * error / y.size
        of_kernel = x[rows].T @ back
        gradients["kernel"] += of_kernel * factor
        gradients["bias"][m] = back.sum(0)
        for k in range(2):
            gradients["input_scale"][m, k] = (of_kernel * w) @ s[m, k]
            gradients["output_scale"][m, k] = r[m, k] @ (of_kernel * w)
    for v in layer.variables:
        np.testing.assert_allclose(
            arrays([v])[0], before[v.name] - gradients[v.name], atol=2e-5
        )


@pytest.mark.parametrize("name", CASES)
def test_one_member_of_ones_is_the_plain_layer(name):
    cls, arguments, options, shape, _ = CASES[name]
    layer = cls(
        *arguments,
        ensemble_size=1,
        fast_initializer="ones",
        rank=2,
        **options,
    )
    x = rows_of(name, shape)
    y = ops.convert_to_numpy(layer(x))
    plain = layer.plain_layer()
    plain(x)
    ours = {v.name: v for v in layer.variables}
    for v in plain.variables:
        v.assign(arrays([ours[v.name]])[0].reshape(v.shape))
    np.testing.assert_allclose(
        y, ops.convert_to_numpy(plain(x)), rtol=1e-5, atol=1e-6
    )


NORMS = {
    "batch": (layers.BatchNormalizationBatchEnsemble, {}, (5,)),
    "batch, images": (
        layers.BatchNormalizationBatchEnsemble,
        {"axis": 1, "center": False},
        (5, 4, 3),
    ),
    "batch, last axis": (
        layers.BatchNormalizationBatchEnsemble,
        {"scale": False, "momentum": 0.7},
        (4, 3, 5),
    ),
    "layer": (layers.LayerNormalizationBatchEnsemble, {}, (4, 5)),
    "layer, two axes": (
        layers.LayerNormalizationBatchEnsemble,
        {"axis": [2, 3], "epsilon": 1e-5},
        (2, 4, 5),
    ),
    "layer, no scale": (
        layers.LayerNormalizationBatchEnsemble,
        {"scale": False},
        (5,),
    ),
    "group": (
        layers.GroupNormalizationBatchEnsemble,
        {"groups": 3},
        (4, 4, 6),
    ),
    "group, channels first": (
        layers.GroupNormalizationBatchEnsemble,
        {"groups": 2, "axis": 1, "center": False},
        (6, 4),
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_a_member_is_normalized_by_itself(name, training):
    cls, options, shape = NORMS[name]
    layer = cls(ensemble_size=MEMBERS, **options)
    x = rows_of(name, shape) + np.repeat([0.0, 3.0, -1.0], ROWS).reshape(
        -1, *(1,) * len(shape)
    ).astype("float32")
    layer(x)
    randomized(layer)
    plains = [plain_of(layer, m, {}) for m in range(MEMBERS)]
    options = {"training": training} if name.startswith("batch") else {}
    y = ops.convert_to_numpy(layer(x, **options))
    for member, (plain, ours) in enumerate(plains):
        rows = slice(member * ROWS, (member + 1) * ROWS)
        plain(x[rows])
        set_by_hand(plain, ours, member, {})
        expected = ops.convert_to_numpy(plain(x[rows], **options))
        np.testing.assert_allclose(y[rows], expected, rtol=1e-4, atol=1e-5)
        # The statistics that were collected, too.
        for a, b in zip(arrays(layer.variables), arrays(plain.variables)):
            np.testing.assert_allclose(a[member], b, rtol=1e-5, atol=1e-5)


def test_batch_normalization_leaves_out_what_is_masked():
    x = rows_of("batch", (6, 5))
    mask = np.random.default_rng(1).random((12, 6)) < 0.6
    layer = layers.BatchNormalizationBatchEnsemble(ensemble_size=MEMBERS)
    y = ops.convert_to_numpy(layer(x, training=True, mask=mask))
    for m in range(MEMBERS):
        rows, kept = x[4 * m : 4 * m + 4], mask[4 * m : 4 * m + 4]
        mean, variance = rows[kept].mean(0), rows[kept].var(0)
        np.testing.assert_allclose(
            y[4 * m : 4 * m + 4],
            (rows - mean) / np.sqrt(variance + 1e-3),
            atol=1e-4,
        )
        np.testing.assert_allclose(
            arrays([layer.moving_mean])[0][m], 0.01 * mean, atol=1e-6
        )


def test_what_fast_weights_begin_with():
    def scales(kind, rank=1, **more):
        layer = layers.DenseBatchEnsemble(
            50, 2, fast_initializer=kind, rank=rank, **more
        )
        layer.build((None, 60))
        return arrays([layer.input_scale, layer.output_scale])

    r, s = scales("random_sign")
    assert r.shape == (2, 1, 60) and s.shape == (2, 1, 50)
    assert set(np.unique(r)) == set(np.unique(s)) == {-1.0, 1.0}
    assert (r[0] != r[1]).any()
    r, s = scales("normal")
    assert abs(r.mean() - 1) < 0.2 and 0.35 < r.std() < 0.65
    assert all((a == 1).all() for a in scales("ones"))
    r, s = scales("tabm")
    assert set(np.unique(r)) == {-1.0, 1.0} and (s == 1).all()
    # More terms change nothing yet, and can learn.
    r, s = scales("ones", rank=3)
    assert (r[:, 0] == 1).all() and (s[:, 0] == 1).all()
    assert not s[:, 1:].any() and r[:, 1:].all()
    r, s = scales(keras.initializers.RandomNormal(1.0, 0.1))
    assert (r[..., :50] != s).all() and abs(r.mean() - 1) < 0.1
    for a, b in zip(scales("random_sign", seed=3), scales("normal", seed=3)):
        assert a.shape == b.shape
    for a, b in zip(*(scales("random_sign", seed=3) for _ in range(2))):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", [*CASES, *NORMS])
def test_saved_and_loaded(name, tmp_path):
    if name in CASES:
        layer, x, _ = made(name, rank=2, fast_learning_rate=0.5)
    else:
        cls, options, shape = NORMS[name]
        layer, x = cls(ensemble_size=MEMBERS, **options), rows_of(name, shape)
        layer(x)
    dtype = "int32" if "embedding" in name else "float32"
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=dtype), layer])
    randomized(layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is type(layer)
    assert loaded.layers[0].get_config() == layer.get_config()
    for a, b in zip(model.weights, loaded.weights):
        np.testing.assert_array_equal(*arrays([a, b]))
        assert getattr(a, "learning_rate_multiplier", None) == getattr(
            b, "learning_rate_multiplier", None
        )
    np.testing.assert_allclose(
        *(m.predict(x, batch_size=12, verbose=0) for m in (model, loaded)),
        atol=1e-6,
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", ["dense", "conv2d", "embedding", "batch"])
def test_mixed_precision(name, policy):
    keras.config.set_dtype_policy(policy)
    if name in CASES:
        layer, x, _ = made(name)
    else:
        cls, options, shape = NORMS[name]
        layer, x = cls(ensemble_size=MEMBERS, **options), rows_of(name, shape)
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == policy[len("mixed_") :]
    assert {v.dtype for v in layer.weights} == {"float32"}
    assert np.isfinite(arrays([ops.cast(y, "float32")])[0]).all()


def test_fast_weights_and_biases_are_tagged_and_kernels_are_not():
    layer = layers.Conv2DBatchEnsemble(4, 3, 2, fast_learning_rate=0.25)
    layer.build((None, 6, 6, 3))
    tags = {
        v.name: getattr(v, "learning_rate_multiplier", None)
        for v in layer.weights
    }
    assert tags == {
        "input_scale": 0.25,
        "output_scale": 0.25,
        "kernel": None,
        "bias": 0.25,
    }


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="at least 1. Received: ensemble_si"):
        layers.DenseBatchEnsemble(3, 0)
    with pytest.raises(TypeError, match="ensemble_size=2.5"):
        layers.Conv2DBatchEnsemble(3, 3, 2.5)
    with pytest.raises(ValueError, match="at least 1. Received: rank=0"):
        layers.DenseBatchEnsemble(3, 2, rank=0)
    with pytest.raises(ValueError, match="fast_initializer='sign'"):
        layers.DenseBatchEnsemble(3, 2, fast_initializer="sign")
    with pytest.raises(ValueError, match="a multiple of 3. Received"):
        layers.DenseBatchEnsemble(3, 3)(np.ones((4, 2)))
    with pytest.raises(ValueError, match="that of the rows"):
        layers.EinsumDenseBatchEnsemble("abc,acd->abd", (None, 3), 2)
    with pytest.raises(ValueError, match="renorm"):
        layers.BatchNormalizationBatchEnsemble(2, renorm=True)
