"""SNIP, GraSP and SynFlow against float64 NumPy and numerical derivatives."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests.ops.gradients import central_differences
from tests.running import slow_to_compile
from tests.sparsity import nets
from tests.sparsity.nets import array

prune = dlkit.sparsity.prune_at_init


def network():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, "tanh"),
            layers.BatchNormalization(),
            layers.Dense(3),
        ]
    )
    nets.randomize(model)
    model.compile("sgd", "mse")
    return model


def batch(rows=7):
    rng = np.random.default_rng(5)
    return rng.normal(size=(rows, 4)), rng.normal(size=(rows, 3))


def loss_of(model, x, y):
    """The loss as a function of the two kernels, in float64."""
    w1, b1, gamma, beta, _, _, w2, b2 = (
        array(w).astype("float64") for w in model.weights
    )

    def loss(flat):
        w1, w2 = np.split(flat, [20])
        h = np.tanh(x @ w1.reshape(4, 5) + b1)
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-3) * gamma + beta
        return np.mean((h @ w2.reshape(5, 3) + b2 - y) ** 2)

    return loss, np.concatenate([w1.ravel(), w2.ravel()])


def reference(model, x, y, score):
    loss, w = loss_of(model, x, y)
    gradient = central_differences(loss, w, 1e-5)
    if score == "snip":
        return np.abs(gradient * w)
    step = 1e-4
    ahead, behind = (
        central_differences(loss, w + sign * step * gradient, 1e-5)
        for sign in (1, -1)
    )
    return w * (ahead - behind) / (2 * step)


def flat(masks):
    return np.concatenate([m.ravel() for m in masks.values()])


def lowest(scores, share):
    mask = np.ones(scores.size)
    mask[np.argsort(scores, kind="stable")[: round(share * scores.size)]] = 0
    return mask


@pytest.mark.parametrize("share", [0.3, 0.75])
@pytest.mark.parametrize("score", ["snip", "grasp"])
def test_the_scores_of_the_data(score, share):
    model = network()
    x, y = batch()
    expected = reference(model, x, y, score)
    before = [array(w) for w in model.variables]
    masks = prune(model, x, y, score=score, sparsity=share)
    np.testing.assert_array_equal(flat(masks), lowest(expected, share))
    kernels = [w for w in model.weights if w.name == "kernel"]
    assert list(masks) == [k.path for k in kernels]
    for variable, old in zip(model.variables, before):
        mask = masks.get(variable.path, np.uint8(1))
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(array(variable), np.where(mask, old, 0))


@pytest.mark.parametrize("score", ["snip", "grasp"])
def test_the_scores_themselves(score):
    """Not the order alone."""
    from keras_dlkit.sparsity import _scores

    model = network()
    x, y = batch()
    kernels = [w for w in model.weights if w.name == "kernel"]
    decay = keras.regularizers.L2(10.0)
    for kernel in kernels:  # which is no part of the loss of the data
        kernel.regularizer = decay
    data = (
        ops.convert_to_tensor(x, "float32"),
        ops.convert_to_tensor(y, "float32"),
    )
    found = getattr(_scores, score)(model, kernels, data, None)
    assert all(kernel.regularizer is decay for kernel in kernels)
    found = np.concatenate([s.ravel() for s in found])
    expected = reference(model, x, y, score)
    np.testing.assert_allclose(
        found, expected, atol=3e-5 * np.abs(expected).max()
    )


def test_two_ways_to_the_hessian():
    """A quartic, whose Hessian is known."""
    from keras_dlkit._train_step import gradient

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5,)), rng.normal(size=(3,))
    values = [ops.convert_to_tensor(v, dtype="float32") for v in (a, b)]

    def function(values):
        return ops.sum(values[0] ** 4) + ops.sum(values[0]) * ops.sum(values[1])

    first = 4 * a**3 + b.sum(), np.full(3, a.sum())
    expected = 12 * a**2 * first[0] + first[1].sum(), np.full(3, first[0].sum())
    for product in (
        gradient.hessian_gradient,
        gradient.hessian_gradient_by_differences,
    ):
        for found, value in zip(product(function, values), expected):
            np.testing.assert_allclose(array(found), value, rtol=1e-3)


def test_syn_flow_round_by_round():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, "tanh"),
            layers.BatchNormalization(),
            layers.Dense(6, "relu", use_bias=False),
            layers.Dense(3, "softmax"),
        ]
    )
    nets.randomize(model)
    w1, b1, gamma, beta, mean, variance, w2, w3, b3 = (
        np.abs(array(w).astype("float64")) for w in model.weights
    )
    scale = gamma / np.sqrt(variance + 1e-3)
    weights = [w1, w2, w3]
    masks = [np.ones(w.shape) for w in weights]
    for step in range(1, 101):
        a, b, c = (w * m for w, m in zip(weights, masks))
        hidden = scale * (a.sum(0) + b1 - mean) + beta
        out = c.sum(1)
        # R = (scale (1 a + b1 - mean) + beta) b c 1, if no ReLU cuts it off.
        scores = [
            a * (scale * (b @ out)),
            b * np.outer(hidden, out),
            c * (hidden @ b)[:, None],
        ]
        scores = np.concatenate(
            [np.where(m, s, -1).ravel() for s, m in zip(scores, masks)]
        )
        mask = lowest(scores, 1 - 0.2 ** (step / 100))
        masks = [
            m.reshape(w.shape)
            for m, w in zip(np.split(mask, [20, 50]), weights)
        ]
    found = prune(model, score="synflow", sparsity=0.8)
    np.testing.assert_array_equal(flat(found), mask)
    assert [m.shape for m in found.values()] == [(4, 5), (5, 6), (6, 3)]
    # No layer collapses, as it does by magnitude of a single round.
    assert all(m.any() for m in found.values())


def test_syn_flow_is_of_a_linear_network():
    """However the activations are written."""

    def net(*activations):
        x = inputs = keras.Input((4,))
        for units, activation in zip((6, 5, 3), activations):
            x = activation(layers.Dense(units)(x))
        return nets.randomize(keras.Model(inputs, x))

    linear = [lambda x: x] * 3
    expected = prune(net(*linear), score="synflow", sparsity=0.5)
    found = net(ops.tanh, lambda x: ops.leaky_relu(x, 0.3), ops.softmax)
    found = prune(found, score="synflow", sparsity=0.5)
    np.testing.assert_array_equal(flat(found), flat(expected))

    for layer in (
        layers.Bidirectional(layers.GRU(3, name="odd")),
        layers.LayerNormalization(name="odd"),
    ):
        model = keras.Sequential([keras.Input((5, 4)), layers.Dense(3), layer])
        with pytest.raises(ValueError, match="linear.*odd"):
            prune(model, score="synflow", sparsity=0.5)


def test_syn_flow_of_a_graph_with_convolutions():
    model = nets.branched()
    before = [array(v) for v in model.variables]
    masks = prune(model, score="synflow", sparsity=0.5)
    assert (flat(masks) == 0).sum() == round(0.5 * flat(masks).size)
    for variable, old in zip(model.variables, before):
        np.testing.assert_array_equal(
            array(variable), np.where(masks.get(variable.path, 1), old, 0)
        )


def test_a_sum_beyond_float32_is_found_from_smaller_inputs():
    model = keras.Sequential(
        [keras.Input((16,))]
        + [layers.Dense(16, use_bias=False) for _ in range(5)]
    )
    nets.randomize(model)
    other = keras.models.clone_model(model)
    for a, b in zip(model.weights, other.weights):
        a.assign(array(a) * 2.0**30)
        b.assign(array(a) * 2.0**-30)
    masks = prune(model, score="synflow", sparsity=0.6)
    # Without biases the scores differ by a factor, the same for all.
    expected = prune(other, score="synflow", sparsity=0.6)
    np.testing.assert_array_equal(flat(masks), flat(expected))


@slow_to_compile
def test_several_outputs_dropout_and_a_given_loss():
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5, seed=1)(layers.Dense(6, "relu")(inputs))
    heads = [layers.Dense(3, name="a")(x), layers.Dense(1, name="b")(x)]
    model = keras.Model(inputs, heads)
    model.compile("sgd", ["mse", "mae"], metrics=[["mae"], ["mse"]])
    x, y = batch()
    before = [array(v) for v in model.variables]
    y = [y, y[:, :1]]
    masks = prune(model, x, y, score="snip", sparsity=0.5, exclude="b/")
    assert len(masks) == 2 and (flat(masks) == 0).sum() == 21
    for variable, old in zip(model.variables, before):
        if variable.path not in masks:
            np.testing.assert_array_equal(array(variable), old)
    model.fit(x, y, verbose=0)  # the trackers of the losses still work

    own = network()
    own.compiled = False
    expected = reference(own, x, y[0], "snip")
    loss = keras.losses.MeanSquaredError()
    x, y = x.tolist(), y[0].tolist()
    found = prune(own, x, y, score="snip", sparsity=0.4, loss=loss)
    np.testing.assert_array_equal(flat(found), lowest(expected, 0.4))


def test_zero_changes_nothing_and_bad_arguments_are_refused():
    model = network()
    x, y = batch()
    before = [array(w) for w in model.weights]
    masks = prune(model, x, y, score="grasp", sparsity=0.0)
    assert flat(masks).all()
    for variable, old in zip(model.weights, before):
        np.testing.assert_array_equal(array(variable), old)
    with pytest.raises(ValueError, match="score='magnitude'"):
        prune(model, x, y, score="magnitude", sparsity=0.5)
    with pytest.raises(ValueError, match="Received: sparsity=1.0"):
        prune(model, x, y, score="snip", sparsity=1.0)
    with pytest.raises(ValueError, match="needs a batch"):
        prune(model, x, score="snip", sparsity=0.5)
    with pytest.raises(ValueError, match="at least one kernel"):
        prune(model, x, y, score="snip", sparsity=0.5, include="conv")
    with pytest.raises(ValueError, match="leave out.*exclude='heads'"):
        prune(model, x, y, score="snip", sparsity=0.5, exclude="heads")
    with pytest.raises(ValueError, match="must be finite, and not all zero"):
        prune(model, x * np.nan, y, score="snip", sparsity=0.5)
    for bad in ("rows", iter([x]), [[1.0, 2.0], [3.0]], [["a"]]):
        with pytest.raises(TypeError, match="`x` must be one batch.*x="):
            prune(model, bad, y, score="snip", sparsity=0.5)
    with pytest.raises(ValueError, match="needs a loss"):
        prune(nets.nested(), x, y, score="snip", sparsity=0.5)


def test_frozen_kernels_stay_and_equal_paths_are_told_apart():
    def block(name):
        inputs = keras.Input((4,))
        return keras.Model(
            inputs, layers.Dense(4, name="same")(inputs), name=name
        )

    x = inputs = keras.Input((4,))
    frozen = layers.Dense(4)
    frozen.trainable = False
    for layer in (frozen, block("twin"), layers.Dense(4)):
        x = layer(x)
    model = keras.Model(inputs, x)
    twin = block("twin")
    model = keras.Sequential([keras.Input((4,)), model, twin])
    nets.randomize(model)
    before = array(frozen.kernel)
    model.compile("sgd", "mse")
    masks = prune(model, *batch_of(4), score="snip", sparsity=0.5)
    np.testing.assert_array_equal(array(frozen.kernel), before)
    kernels = [v for v in model.trainable_variables if len(v.shape) == 2]
    assert len(masks) == len(kernels)
    optimizer = dlkit.optimizers.Masked("sgd")
    optimizer.build(model.trainable_variables)
    optimizer.set_masks(masks)
    model.compile(optimizer, "mse")
    gone = [array(k) == 0 for k in kernels]
    model.fit(*batch_of(4), verbose=0)
    for kernel, zeros in zip(kernels, gone):
        np.testing.assert_array_equal(array(kernel) == 0, zeros)


def batch_of(columns, rows=6):
    rng = np.random.default_rng(5)
    return rng.normal(size=(2, rows, columns)).astype("float32")
