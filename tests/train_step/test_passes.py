"""Both passes of a step begin where it began; what is frozen is not touched."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests.running import slow_to_compile

METHODS = {
    "sam": lambda: dlkit.optimizers.SAM("sgd", rho=0.1),
    "late": lambda: dlkit.optimizers.SAM("sgd", start_step=9),
    "momentum_sam": lambda: dlkit.optimizers.MomentumSAM(
        keras.optimizers.SGD(0.1, momentum=0.5), rho=0.1
    ),
}
X, Y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")


class Noise(layers.Layer):
    """Draws from the generator of Keras that is no part of any model."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def call(self, x, training=False):
        if not training:
            return x
        noise = keras.random.normal((4, 1))
        self.drawn.append(ops.convert_to_numpy(noise))
        return x + noise


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="Keras needs a seed there"
)
def test_a_draw_without_a_seed_is_one_for_both_passes():
    noise = Noise()
    net = keras.Sequential([keras.Input((3,)), noise, layers.Dense(1)])
    model = dlkit.attach(net)
    model.compile(METHODS["sam"](), "mse", run_eagerly=True)
    model.evaluate(X, Y, verbose=0)
    for _ in range(2):
        model.train_on_batch(X, Y)
    first, second = noise.drawn[-4:-2], noise.drawn[-2:]
    np.testing.assert_array_equal(*first)
    np.testing.assert_array_equal(*second)
    assert (first[0] != second[0]).all()


@pytest.mark.parametrize("method", ["sam", "momentum_sam"])
def test_the_logs_of_the_outputs_are_those_of_the_first_pass(method):
    inputs = keras.Input((3,))
    outputs = {n: layers.Dense(1, name=n)(inputs) for n in "ab"}
    net = keras.Model(inputs, outputs)
    model = dlkit.attach(net)
    model.compile(METHODS[method](), {"a": "mse", "b": "mae"})
    y = {"a": Y, "b": 0 * Y}
    before = net.predict(X, verbose=0)  # MomentumSAM begins unmoved
    logs = model.train_on_batch(X, y, return_dict=True)
    assert logs["a_loss"] == pytest.approx(np.mean((before["a"] - 1) ** 2))
    assert logs["b_loss"] == pytest.approx(np.mean(np.abs(before["b"])))


def trained_norm(method):
    """Of a normalized kernel that was three times as long, unmoved by SGD."""
    keras.utils.set_random_seed(0)
    normalized = layers.SpectralNormalization(layers.Dense(5))
    net = keras.Sequential([keras.Input((3,)), normalized, layers.Dense(1)])
    kernel = normalized.layer.kernel
    norm = np.linalg.norm(ops.convert_to_numpy(kernel), 2)
    kernel.assign(3.0 * kernel / norm)
    model = dlkit.attach(net)
    model.compile(method, "mse")
    model.fit(X, Y, epochs=20, verbose=0)
    return np.linalg.norm(ops.convert_to_numpy(kernel), 2)


class Cell(layers.Layer):
    """Draws in each step of a loop."""

    state_size = output_size = 8

    def __init__(self):
        super().__init__()
        self.dense, self.dropout = layers.Dense(8), layers.Dropout(0.5, seed=1)

    def build(self, shape):
        self.dense.build((shape[0], shape[-1] + 8))

    def call(self, x, states, training=False):
        x = self.dense(ops.concatenate([x, *states], -1))
        x = self.dropout(x, training=training)
        return x, [x]


class Sometimes(layers.Layer):
    """Draws, and writes its statistics, in a conditional."""

    def __init__(self):
        super().__init__()
        self.dropout = layers.Dropout(0.5, seed=1)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, training=False):
        def change():
            y = self.dropout(x, training=training)
            return self.norm(y, training=training)

        return ops.cond(ops.sum(x) > 0, change, lambda: x)


NETS = {
    "loop": lambda: [layers.Reshape((3, 1)), layers.RNN(Cell())],
    "conditional": lambda: [layers.Dense(8, "relu"), Sometimes()],
    "dropout": lambda: [layers.Dense(8), layers.Dropout(0.5, seed=1)],
    "writes_its_weight": lambda: [
        layers.SpectralNormalization(layers.Dense(8))
    ],
}


@pytest.mark.parametrize(
    ("net", "method"),
    [
        ("loop", {"rho": 1e-12}),
        pytest.param(
            *("loop", {"rho": 1e-12, "every_steps": 2}), marks=slow_to_compile
        ),
        ("conditional", {"rho": 1e-12}),
        ("writes_its_weight", {"start_step": 9}),
    ],
)
def test_without_a_move_it_is_the_inner_optimizer(net, method):
    """The same draws in both passes, and in the steps after."""
    if keras.config.backend() == "jax" and net != "writes_its_weight":
        pytest.skip("Keras fails on it")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    weights = []
    for wrap in (dlkit.attach, lambda net: net):
        keras.utils.set_random_seed(0)
        model = wrap(
            keras.Sequential(
                [
                    keras.Input((3,)),
                    *NETS[net](),
                    layers.Dropout(0.5, seed=2),
                    layers.Dense(1),
                ]
            )
        )
        inner = keras.optimizers.SGD(0.01)
        with_sam = wrap is dlkit.attach
        model.compile(
            dlkit.optimizers.SAM(inner, **method) if with_sam else inner, "mse"
        )
        model.fit(x, x[:, :1], epochs=4, batch_size=4, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for ours, stock in zip(*weights):
        assert np.isfinite(stock).all()
        np.testing.assert_allclose(ours, stock, atol=1e-5)


class WithBranch(keras.Model):
    """Has weights that are used, and made, in training alone."""

    def __init__(self):
        super().__init__()
        self.out = layers.Dense(1, kernel_initializer="ones")
        self.branch = layers.Dense(1, kernel_initializer="ones")

    def build(self, shape):
        self.out.build(shape)

    def call(self, x, training=False):
        return self.out(x) + self.branch(x) if training else self.out(x)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="Keras fails on it"
)
@pytest.mark.parametrize("called", [False, True])
def test_weights_made_in_training_alone(called):
    trained = []
    for wrap, method in (
        (dlkit.attach, dlkit.optimizers.SAM("sgd", rho=1e-12)),
        (dlkit.attach, "sgd"),
        (lambda net: net, "sgd"),
    ):
        net = WithBranch()
        if called:
            net(X)
        model = wrap(net)
        model.compile(method, "mse")
        model.fit(X, Y, epochs=2, verbose=0)
        trained.append([net.out.get_weights(), net.branch.get_weights()])
    *ours, stock = trained
    assert max(weights[0].max() for weights in stock) < 1.0
    for one in ours:
        for got, want in zip(one, stock):
            for a, b in zip(got, want):
                np.testing.assert_allclose(a, b, atol=1e-6)


def two_heads(*hidden):
    x = inputs = keras.Input((3,))
    for layer in hidden:
        x = layer(x)
    return keras.Model(inputs, {n: layers.Dense(1, name=n)(x) for n in "ab"})


LOSSES, TWO = {"a": "mse", "b": "mse"}, {"a": Y, "b": Y}


@pytest.mark.skipif(keras.config.backend() == "jax", reason="Keras fails on it")
def test_statistics_of_a_conditional_are_those_of_the_first_pass():
    kept = []
    for parts, method in (
        ([], dlkit.optimizers.SAM("sgd", rho=0.5)),
        ([dlkit.losses.FAMO()], "sgd"),  # looks again at the losses
        ([], "sgd"),
    ):
        keras.utils.set_random_seed(0)
        net = two_heads(*NETS["conditional"]())
        model = dlkit.attach(net, *parts)
        model.compile(method, LOSSES)
        model.train_on_batch(X, TWO)
        kept.append(
            list(map(ops.convert_to_numpy, net.non_trainable_variables))
        )
    *ours, stock = kept
    assert len(stock) == 3
    for one in ours:
        for got, want in zip(one, stock):
            np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("hidden", ["dropout", "conditional"])
def test_losses_are_looked_at_again_with_the_draws_of_the_first_pass(hidden):
    """Where no weight moves, no loss falls."""
    if keras.config.backend() == "jax" and hidden == "conditional":
        pytest.skip("Keras fails on it")
    part = dlkit.losses.FAMO()
    model = dlkit.attach(two_heads(*NETS[hidden]()), part)
    model.compile(keras.optimizers.SGD(0.0), LOSSES)
    for _ in range(2):
        model.train_on_batch(X, TWO)
    _, square = part.moments
    assert ops.convert_to_numpy(square).max() < 1e-10


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="Keras fails on it"
)
@pytest.mark.parametrize("mode", ["full", "activations"])
def test_what_is_rematerialised_is_so_at_the_point_of_its_pass(mode):
    trained = []
    for remat in (mode, None):
        keras.utils.set_random_seed(0)
        with keras.RematScope(mode=remat):
            hidden = layers.Dense(5, activation="tanh")
        net = keras.Sequential([keras.Input((3,)), hidden, layers.Dense(1)])
        model = dlkit.attach(net)
        sgd = keras.optimizers.SGD(0.1)
        model.compile(dlkit.optimizers.SAM(sgd, rho=0.5), "mse")
        model.fit(X, Y, epochs=3, verbose=0)
        trained.append(model.get_weights())
    for got, want in zip(*trained):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rho", [1e-7, 1e-3])
def test_a_layer_that_writes_its_weight(rho):
    """Once a step; but not of a point that is moved, nor on JAX, as in Keras."""
    written = 3.0 if keras.config.backend() == "jax" else 1.0
    norm = trained_norm(dlkit.optimizers.SAM(keras.optimizers.SGD(0.0), rho))
    assert norm == pytest.approx(written, rel=1e-3)
    still = keras.optimizers.SGD(0.0, momentum=0.5)
    norm = trained_norm(dlkit.optimizers.MomentumSAM(still, rho))
    assert norm == pytest.approx(3.0, rel=1e-6)


if keras.config.backend() == "torch":
    from torch.utils._python_dispatch import TorchDispatchMode

    class Copies(TorchDispatchMode):
        """Counts the new tensors of one size."""

        def __init__(self, weight):
            super().__init__()
            self.weight, self.count = weight, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if getattr(result, "numel", int)() == self.weight.numel():
                self.count += result.data_ptr() != self.weight.data_ptr()
            return result

    @pytest.mark.parametrize("method", [*METHODS, "famo"])
    def test_frozen_weights_are_neither_copied_nor_written(method):
        frozen = layers.Dense(701, trainable=False, use_bias=False)
        parts = [dlkit.losses.FAMO()] if method == "famo" else []
        model = dlkit.attach(two_heads(frozen), *parts)
        model.compile(METHODS.get(method, lambda: "sgd")(), LOSSES)
        model.train_on_batch(X, TWO)
        weight = frozen.kernel.value
        version = weight._version
        with Copies(weight) as copies:
            model.train_on_batch(X, TWO)
        assert copies.count == 0
        assert weight._version == version
