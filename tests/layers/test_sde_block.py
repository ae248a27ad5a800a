import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests.ops.gradients import central_differences
from tests.ops.gradients import differentiated

SDEBlock = dlkit.layers.SDEBlock
X = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
Z = np.random.default_rng(1).normal(size=(4, 5, 3)).astype("float32")


def numpy(x):
    return ops.convert_to_numpy(x)


def block(drift=None, diffusion=None, **arguments):
    arguments = {"num_steps": 4, "t_end": 2.0, "sigma": 0.5, **arguments}
    return SDEBlock(
        drift or layers.Dense(3, "tanh"),
        diffusion or layers.Dense(1, "sigmoid"),
        **arguments,
    )


def paths(b, x, z, sigma, every=False):
    """Euler-Maruyama in float64, with the weights of two dense layers."""
    (fk, fb), (gk, gb) = (
        [np.asarray(numpy(w), "float64") for w in net.weights]
        for net in (b.drift, b.diffusion)
    )
    g = 1 / (1 + np.exp(-(x @ gk + gb)))
    dt = b.t_end / b.num_steps
    for normal in z:
        if every:
            g = 1 / (1 + np.exp(-(x @ gk + gb)))
        x = x + np.tanh(x @ fk + fb) * dt + sigma * g * np.sqrt(dt) * normal
    return x


@pytest.mark.parametrize("unroll", [None, False, True])
def test_the_paths_are_those_of_the_paper(unroll):
    b = block(unroll=unroll, sigma_inference=3.0)
    trained = b(X, brownian=Z, training=True)
    np.testing.assert_allclose(
        numpy(trained), paths(b, X, Z, 0.5), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        numpy(b(X, brownian=Z)), paths(b, X, Z, 3.0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        numpy(b(X)), paths(b, X, Z, 0.0), rtol=1e-4, atol=1e-5
    )


def test_without_noise_it_is_exactly_the_ode():
    b = block(sigma=0.0)
    np.testing.assert_array_equal(numpy(b(X, training=True)), numpy(b(X)))
    b.sigma.assign(0.5)
    first, second = (numpy(b(X, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3  # other noise at each call


def of_solver(solver):
    """Milstein's is a diffusion of each element by itself."""
    if solver != "milstein":
        return {"solver": solver}
    return {
        "solver": solver,
        "diffusion": layers.Activation("sigmoid"),
        "diffusion_shape": "element",
        "diffusion_at": "every",
    }


def test_milstein_against_float64():
    b = block(**of_solver("milstein"))
    found = numpy(b(X, brownian=Z, training=True))
    kernel, bias = (np.asarray(numpy(w), "float64") for w in b.drift.weights)
    x, root = X.astype("float64"), np.sqrt(0.5)

    def noise(x):
        return 0.5 / (1 + np.exp(-x))

    for z in Z:
        there = x + np.tanh(x @ kernel + bias) * 0.5
        change = (noise(there + noise(x) * root) - noise(x)) / root
        x = there + noise(x) * root * z + change * 0.5 * (z**2 - 1) / 2
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "heun", "milstein"])
def test_samples_are_the_paths_one_by_one(solver):
    b = block(sigma_inference=2.0, **of_solver(solver))
    b(X)
    z = np.random.default_rng(2).normal(size=(4, 6, 5, 3)).astype("float32")
    found = numpy(b.sample(X, 6, brownian=z))
    assert found.shape == (6, 5, 3)
    for sample in range(6):
        one = numpy(b(X, brownian=z[:, sample]))
        np.testing.assert_allclose(found[sample], one, rtol=1e-4, atol=1e-5)


class WithTime(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, x, time):
        return 0.0 * x + time


def test_the_drift_is_given_the_time_if_it_takes_it():
    state, time = keras.Input((3,)), keras.Input((1,))
    joined = dlkit.layers.ConcatenateTime()([state, time])
    column = keras.Model([state, time], joined[:, :1] + 0.0 * state)
    for drift in (WithTime(), column):
        b = block(drift)
        # 0.5 * (0 + 0.5 + 1 + 1.5)
        np.testing.assert_allclose(numpy(b(X)) - X, 1.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "values"),
    [
        ("sample", (5, 2, 2, 3), [1]),
        ("channel", (5, 2, 2, 3), [1, 2, 3]),
        ("element", (5, 3), [4, 5, 6]),
    ],
)
def test_the_shape_of_the_diffusion(kind, shape, values):
    class Fixed(layers.Layer):
        def call(self, x):
            rows = ops.zeros((ops.shape(x)[0], 1), dtype=x.dtype)
            return rows + ops.convert_to_tensor([values], dtype=x.dtype)

    class Still(layers.Layer):
        def call(self, x):
            return 0.0 * x

    x = np.ones(shape, "float32")
    z = np.ones((4, *shape), "float32")
    b = block(Still(), Fixed(), diffusion_shape=kind, sigma=1.0)
    moved = numpy(b(x, brownian=z, training=True)) - 1
    expected = np.broadcast_to(4 * np.sqrt(0.5) * np.array(values), shape)
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("at", ["start", "every"])
@pytest.mark.parametrize("unroll", [False, True])
def test_the_loss_passes_through_the_diffusion(isolate, at, unroll):
    """By differences of the reference, which knows of no isolation."""
    b = block(isolate_diffusion=isolate, diffusion_at=at, unroll=unroll)
    b(X)

    def loss(x):
        return ops.sum(b(x, brownian=Z, training=True) ** 2)

    _, found = differentiated(loss)(X)
    expected = central_differences(
        lambda x: (paths(b, x, Z, 0.5, at == "every") ** 2).sum(),
        X.astype("float64"),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    net = keras.Sequential([keras.Input((3,)), b])
    net.compile(keras.optimizers.SGD(0.1), "mse")
    before = [numpy(w).copy() for w in b.diffusion.weights]
    drift = numpy(b.drift.kernel).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no gradients, as it should be
        net.train_on_batch(X, 0 * X)
    moved = [
        np.abs(numpy(a) - c).max() for a, c in zip(b.diffusion.weights, before)
    ]
    assert (max(moved) == 0) == isolate
    assert np.abs(numpy(b.drift.kernel) - drift).max() > 0


class Counts(layers.Layer):
    """What a net may do on the way: statistics, random states, losses."""

    def build(self, shape):
        self.calls = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )
        self.dense = layers.Dense(shape[-1])
        self.dense.build(shape)
        self.drop = layers.Dropout(0.5, seed=1)

    def call(self, x, training=None):
        if training:
            self.calls.assign_add(1.0)
            self.add_loss(ops.mean(x * 0.0) + 0.25)
        return self.drop(self.dense(x), training=training)


@pytest.mark.parametrize("unroll", [False, True])
def test_what_the_drift_changes_in_itself_is_kept(unroll):
    b = block(Counts(), unroll=unroll, isolate_diffusion=False)
    net = keras.Sequential([keras.Input((3,)), b])
    net.compile(keras.optimizers.SGD(0.0), "mse")
    seed = numpy(b.drift.drop.seed_generator.state).copy()
    first = net.fit(X, X, epochs=2, batch_size=5, verbose=0).history["loss"][0]
    assert float(numpy(b.drift.calls)) == 8  # 2 batches of 4 steps
    assert (numpy(b.drift.drop.seed_generator.state) != seed).any()
    assert first > 1.0  # 4 losses of 0.25 among others
    net.predict(X, verbose=0)
    assert float(numpy(b.drift.calls)) == 8


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_sums_are_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    b = block(_Small(), num_steps=1000, t_end=1000.0, unroll=False, sigma=0.0)
    x = np.ones((2, 3), "float32")
    outputs = b(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == b.compute_dtype
    np.testing.assert_allclose(
        numpy(ops.cast(outputs, "float32")), 1.1, rtol=5e-3
    )


class _Small(layers.Layer):
    def call(self, x):
        return ops.zeros_like(x) + ops.cast(1e-4, x.dtype)


def test_saved_and_loaded(tmp_path):
    b = block(sigma_inference=2.0, seed=3)
    net = keras.Sequential([keras.Input((3,)), b])
    b.sigma.assign(0.75)
    net.save(tmp_path / "net.keras")
    copy = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(
        net.predict(X, verbose=0), copy.predict(X, verbose=0)
    )
    assert float(numpy(copy.layers[0].sigma)) == 0.75
    assert float(numpy(copy.layers[0].sigma_inference)) == 2.0
    config, expected = copy.layers[0].get_config(), b.get_config()
    for name in ("drift", "diffusion"):  # which say how they were built
        assert config.pop(name)["config"] == expected.pop(name)["config"]
    assert config == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps.*at least 1"),
        ({"sigma": -1.0}, ValueError, "sigma.*at least 0"),
        ({"sigma_inference": -1.0}, ValueError, "sigma_inference"),
        ({"t_end": 0.0}, ValueError, "t_end.*more than 0"),
        ({"solver": "rk4"}, ValueError, "solver"),
        ({"solver": "milstein"}, ValueError, "diffusion_at='every'"),
        (
            {"solver": "milstein", "diffusion_at": "every"},
            ValueError,
            "diffusion_shape='sample'.*'element', or 'euler'",
        ),
        ({"diffusion_shape": "row"}, ValueError, "diffusion_shape"),
        ({"drift": lambda x: x}, TypeError, "drift.*Layer"),
        ({"diffusion": "dense"}, TypeError, "diffusion.*Layer"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        block(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drift": layers.Dense(4)}, r"keep the shape.*\(5, 4\)"),
        ({"diffusion": layers.Dense(2)}, r"one number a sample.*\(5, 2\)"),
        (
            {"diffusion_shape": "element"},
            r"one number an element.*\(5, 1\)",
        ),
    ],
)
def test_nets_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        block(**arguments)(X)


@pytest.mark.parametrize(
    "shape", [(3, 5, 3), (5, 5, 3), (4, 5, 1), (5, 4, 3), (5, 3)]
)
def test_increments_of_another_shape_are_refused(shape):
    b = block()
    expected = (
        rf"\(4, 5, 3\), the steps first. Received: {re.escape(str(shape))}"
    )
    with pytest.raises(ValueError, match=expected):
        b(X, brownian=np.zeros(shape, "float32"))


def test_increments_of_samples_have_the_steps_first():
    b = block()
    b(X)
    with pytest.raises(ValueError, match=r"\(4, 6, 5, 3\).*\(6, 4, 5, 3\)"):
        b.sample(X, 6, brownian=np.zeros((6, 4, 5, 3), "float32"))


def graph_size(num_steps, unroll):
    """Operations of the loss and its gradient, those in loops included."""
    b = block(num_steps=num_steps, unroll=unroll)
    b(X)

    def loss(x):
        return ops.sum(b(x, training=True) ** 2)

    if keras.config.backend() == "jax":
        import jax

        def count(jaxpr):
            jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
            inner = [
                value
                for equation in jaxpr.eqns
                for value in jax.tree.leaves(tuple(equation.params.values()))
                if hasattr(getattr(value, "jaxpr", value), "eqns")
            ]
            return len(jaxpr.eqns) + sum(map(count, inner))

        return count(jax.make_jaxpr(jax.grad(loss))(X))
    import tensorflow as tf

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(x)
        return tape.gradient(value, x)

    graph = gradient.get_concrete_function(tf.constant(X)).graph.as_graph_def()
    return len(graph.node) + sum(
        len(f.node_def) for f in graph.library.function
    )


def test_the_graph_does_not_grow_with_the_steps():
    if keras.config.backend() == "torch":
        return  # nothing is compiled
    assert graph_size(4, None) == graph_size(40, None)
    assert graph_size(8, True) > graph_size(4, True)  # which is what to see
