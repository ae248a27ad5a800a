"""Edge-popup against float64 NumPy, and what a frozen layer must not do."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.layers import Supermask
from tests.running import slow_to_compile

BACKEND = keras.config.backend()
COMPILED = BACKEND != "torch"


def reference_mask(scores, sparsity):
    """A stable sort: among equals the lowest flat index comes first."""
    magnitudes = np.abs(np.asarray(scores, "float32")).ravel()
    order = np.argsort(magnitudes, kind="stable")
    mask = np.ones(magnitudes.size)
    mask[order[: round(sparsity * magnitudes.size)]] = 0
    return mask.reshape(np.shape(scores))


def arrays(variables):
    return [ops.convert_to_numpy(v) for v in variables]


def compiled(function):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    return function


@pytest.mark.parametrize("sparsity", [0.1, 0.77, 0.99])
@pytest.mark.parametrize("shape", [(101,), (3, 3, 2, 5)])
def test_the_mask_is_that_of_a_stable_sort(shape, sparsity):
    rng = np.random.default_rng(0)
    normal = rng.normal(size=shape).astype("float32")
    ties = rng.integers(-2, 3, shape).astype("float32")
    ties[ties == 0] *= -1.0  # the negative zero is a zero
    extremes = normal * np.float32(10.0) ** rng.integers(-44, 38, shape)
    extremes = extremes.astype("float32")
    found = compiled(lambda s: dlkit.ops.score_mask(s, sparsity))
    for scores in (normal, ties, np.zeros(shape, "float32"), extremes):
        mask = found(ops.convert_to_tensor(scores))
        np.testing.assert_array_equal(
            ops.convert_to_numpy(mask), reference_mask(scores, sparsity)
        )


def test_a_small_kernel_keeps_a_weight():
    """Two, of which 0.8 are both by rounding."""
    mask = ops.convert_to_numpy(dlkit.ops.score_mask([[0.1, -0.2]], 0.8))
    assert mask.tolist() == [[0, 1]]
    assert dlkit.ops.score_mask(np.zeros((0, 3)), 0.8).shape == (0, 3)


def test_infinite_scores_are_kept_in_exact_numbers():
    scores = np.array([np.inf, 1.0, np.nan, -np.inf, 2.0, np.inf], "float32")
    mask = ops.convert_to_numpy(dlkit.ops.score_mask(scores, 0.5))
    assert mask.tolist() == [0, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("compile_it", [False, True])
def test_a_step_is_that_of_the_paper(compile_it):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 5)), rng.normal(size=(6, 3))
    layer = Supermask(layers.Dense(3, "tanh"), sparsity=0.4, seed=3)
    model = keras.Sequential([keras.Input((5,)), layer])
    (scores,) = (a.astype("float64") for a in arrays(layer.scores))
    w, b = (a.astype("float64") for a in arrays(layer.layer.weights))
    model.compile(
        keras.optimizers.SGD(0.5),
        "mse",
        jit_compile=compile_it and COMPILED,
        run_eagerly=not compile_it,
    )
    model.fit(x, y, batch_size=6, epochs=1, verbose=0)

    output = np.tanh(x @ (w * reference_mask(scores, 0.4)) + b)
    back = 2 * (output - y) / y.size * (1 - output**2)
    gradient = w * (x.T @ back) * np.sign(scores)
    np.testing.assert_allclose(
        arrays(layer.scores)[0], scores - 0.5 * gradient, atol=1e-6
    )
    assert (arrays(layer.layer.weights)[0] == w.astype("float32")).all()


LAYERS = {
    "dense": (lambda: layers.Dense(4), (6,)),
    "conv": (lambda: layers.Conv2D(4, 3), (6, 6, 2)),
    "transposed": (lambda: layers.Conv1DTranspose(4, 3), (6, 2)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), (6, 6, 2)),
    "separable": (lambda: layers.SeparableConv2D(4, 3), (6, 6, 2)),
    "lstm": (lambda: layers.LSTM(4), (5, 3)),
    "bidirectional": (lambda: layers.Bidirectional(layers.GRU(3)), (5, 3)),
    "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (None, 4)), (5, 3)),
    "embedding": (lambda: layers.Embedding(11, 4), (5,)),
    "time": (lambda: layers.TimeDistributed(layers.Dense(4)), (5, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_kernels_are_masked_exactly(name):
    make, shape = LAYERS[name]
    layer = Supermask(make(), sparsity=0.3, seed=4)
    model = keras.Sequential([keras.Input(shape), layer])
    assert layer.scores and len(layer.scores) == len(layer.kernels)
    x = np.random.default_rng(0).integers(0, 9, (2, *shape))
    x = x.astype("int32" if name == "embedding" else "float32")
    outputs = ops.convert_to_numpy(model(x))
    for kernel, mask in zip(layer.kernels, layer.masks().values()):
        assert mask.dtype == np.uint8
        assert mask.size - mask.sum() == round(0.3 * mask.size)
        kernel.assign(arrays([kernel])[0] * mask)
    plain = ops.convert_to_numpy(layer.layer(x))
    np.testing.assert_allclose(outputs, plain, atol=1e-6)


def test_weights_are_signed_constants_of_the_variance_of_kaiming():
    def kernel(**arguments):
        layer = Supermask(layers.Dense(300), sparsity=0.75, seed=1, **arguments)
        layer.build((None, 50))
        assert not arrays([layer.layer.bias])[0].any()
        return arrays(layer.kernels)[0]

    signed = kernel()
    np.testing.assert_allclose(np.abs(signed), np.sqrt(2 / 50 / 0.25), 1e-6)
    assert abs(np.sign(signed).mean()) < 0.03
    np.testing.assert_allclose(
        np.abs(kernel(rescale=False)), np.sqrt(2 / 50), 1e-6
    )
    normal = kernel(weights="kaiming_normal", rescale=False)
    np.testing.assert_allclose(normal.std(), np.sqrt(2 / 50), 0.02)


def test_the_fan_in_is_the_number_of_products_in_an_output():
    for layer, shape, fan in (
        (layers.Conv2D(4, (3, 2)), (8, 8, 5), 3 * 2 * 5),
        (layers.DepthwiseConv2D(3), (8, 8, 5), 9),
        (layers.Conv2DTranspose(4, 3), (8, 8, 5), 9 * 5),
        (layers.EinsumDense("abc,dce->abed", (None, 4, 2)), (8, 5), None),
    ):
        wrapped = Supermask(layer, sparsity=0.0, seed=0)
        if fan is None:  # of several inner letters
            wrapped = Supermask(
                layers.EinsumDense("abc,bcd->ad", (4,)), sparsity=0.0
            )
            fan = 8 * 5
        wrapped.build((None, *shape))
        np.testing.assert_allclose(
            np.abs(arrays(wrapped.kernels)[0]), np.sqrt(2 / fan), 1e-6
        )


def test_sparsity_zero_is_the_layer_bit_for_bit():
    dense = layers.Dense(7, "relu", bias_initializer="normal")
    dense.build((None, 9))
    x = np.random.default_rng(0).normal(size=(4, 9)).astype("float32")
    plain = ops.convert_to_numpy(dense(x))
    masked = Supermask(dense, sparsity=0.0, weights=None)
    np.testing.assert_array_equal(ops.convert_to_numpy(masked(x)), plain)


class Net(keras.Model):
    """Builds itself in `fit`, under a trace."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.hidden = Supermask(layers.Dense(8, "relu"), seed=5)
        self.head = Supermask(layers.Dense(2), seed=6)

    def call(self, x):
        return self.head(self.hidden(x))


def test_a_model_that_builds_itself_in_fit_has_the_weights_of_any_other():
    x, y = np.ones((4, 3)), np.ones((4, 2))
    lazy, eager = Net(), Net()
    eager(x)
    drawn = arrays(eager.hidden.kernels)[0]
    lazy.compile("sgd", "mse")
    lazy.fit(x, y, verbose=0)
    np.testing.assert_array_equal(arrays(lazy.hidden.kernels)[0], drawn)
    assert not arrays([lazy.hidden.layer.bias])[0].any()


def test_only_the_scores_are_trained_whatever_is_frozen():
    model = keras.Sequential(
        [keras.Input((3,)), Supermask(layers.Dense(8)), layers.Dense(1)]
    )
    assert len(model.trainable_weights) == 3
    model.trainable = False
    assert not model.trainable_weights
    model.trainable = True
    assert len(model.trainable_weights) == 3
    assert model.trainable_weights[0].name == "kernel_scores"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            Supermask(layers.Dense(16, "relu"), seed=0),
            Supermask(layers.Dense(2, dtype="float32"), seed=1),
        ]
    )
    assert model.layers[0].dtype_policy.name == policy
    assert model.layers[1].dtype_policy.name == "float32"
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 4))
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=COMPILED)
    history = model.fit(x, x[:, :2], epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.95 * history[0]
    assert model.layers[0].compute_dtype in str(model.layers[0](x).dtype)


def test_save_and_reload(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            Supermask(layers.SeparableConv2D(4, 3), sparsity=0.7),
            layers.Flatten(),
            Supermask(layers.Dense(3), weights="kaiming_normal"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 1))
    model.compile("adam", "mse")
    model.fit(x, np.ones((8, 3)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].sparsity == 0.7
    assert loaded.layers[2].initial_weights == "kaiming_normal"
    for a, b in zip(arrays(model.weights), arrays(loaded.weights)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.predict(x), loaded.predict(x))
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)


def test_dropout_of_the_layer_goes_on_drawing():
    layer = Supermask(layers.LSTM(4, dropout=0.5, seed=1))
    model = keras.Sequential([keras.Input((5, 3)), layer])
    model.compile("sgd", "mse")
    seeds = [v for v in layer.variables if "seed" in v.name]
    before = arrays(seeds)
    x = np.ones((8, 5, 3))
    model.fit(x, np.ones((8, 4)), batch_size=4, verbose=0)
    assert before and any((a != b).any() for a, b in zip(before, arrays(seeds)))
    first, second = (model(x, training=True) for _ in range(2))
    assert (ops.convert_to_numpy(first) != ops.convert_to_numpy(second)).any()


def test_losses_of_the_layer_count_once():
    def loss(wrap):
        dense = layers.Dense(4, activity_regularizer="l2")
        dense.build((None, 3))
        for weight in dense.weights:
            weight.assign(np.full(weight.shape, 0.5, "float32"))
        if wrap:
            dense = Supermask(dense, sparsity=0.0, weights=None)
        model = keras.Sequential([keras.Input((3,)), dense])
        model.compile("sgd", "mse")
        x = np.ones((4, 3))
        return model.evaluate(x, np.ones((4, 4)), verbose=0)

    np.testing.assert_allclose(loss(True), loss(False), rtol=1e-6)


@slow_to_compile
def test_masks_of_sequences_go_through():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Embedding(9, 3, mask_zero=True),
            Supermask(layers.LSTM(2), seed=0),
        ]
    )
    a, b = np.array([[1, 2, 0, 0]]), np.array([[1, 2]])
    inner = keras.Sequential(model.layers)
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(a)),
        ops.convert_to_numpy(inner(b)),
        atol=1e-6,
    )


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="below 1. Received: sparsity=1.0"):
        Supermask(layers.Dense(2), sparsity=1.0)
    with pytest.raises(TypeError, match="must be a `keras.layers.Layer`"):
        Supermask("dense")
    with pytest.raises(ValueError, match="sparsity.supermask"):
        Supermask(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="weights='ones'"):
        Supermask(layers.Dense(2), weights="ones")
    with pytest.raises(ValueError, match="must have a kernel"):
        Supermask(layers.BatchNormalization()).build((None, 3))


def test_resumed_is_unbroken_bit_for_bit(tmp_path):
    x = np.random.default_rng(0).normal(size=(32, 6))
    options = {"batch_size": 16, "shuffle": False, "verbose": 0}

    def start():
        model = keras.Sequential(
            [keras.Input((6,)), Supermask(layers.Dense(2), seed=2)]
        )
        model.compile(keras.optimizers.Adam(0.05), "mse")
        return model

    unbroken, model = start(), start()
    unbroken.fit(x, x[:, :2], epochs=4, **options)
    model.fit(x, x[:, :2], epochs=2, **options)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    model.fit(x, x[:, :2], epochs=2, **options)
    for a, b in zip(arrays(unbroken.weights), arrays(model.weights)):
        np.testing.assert_array_equal(a, b)


def test_the_scale_of_an_rms_normalization_is_not_trained():
    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6),
            layers.RMSNormalization(),
            layers.Dense(2),
        ]
    )
    net.layers[1].scale.assign(np.full(6, 2.0))
    model = dlkit.sparsity.supermask(net, 0.5, seed=0)
    (scale,) = arrays([model.layers[1].scale])
    assert (scale == 1).all() and not model.layers[1].trainable_variables
    own = dlkit.sparsity.supermask(net, 0.5, weights=None)
    (scale,) = arrays(own.layers[1].trainable_variables)
    assert (scale == 2).all()
