"""ManifoldMixUp: the second graph, its gradients, and where it is refused."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit._step_batch import Inputs
from keras_dlkit.layers import ManifoldMixUp
from keras_dlkit.layers import MixPoint
from keras_dlkit.layers import MixUp
from keras_dlkit.layers import RandomChoice
from keras_dlkit.layers.mix_point import Draws
from keras_dlkit.layers.mix_point import mixing
from tests.running import slow_to_compile

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype("float32")
Y = RNG.normal(size=(6, 2)).astype("float32")
LAM = np.array([0.25, 1.0, 0.5, 0.0, 0.9, 0.3], "float32")
PERMUTATION = np.array([2, 0, 3, 1, 5, 4])


class Fixed(ManifoldMixUp):
    """With a draw that the test knows; and counts how often it draws."""

    drawn = 0

    def draw(self, batch_size, seed):
        Fixed.drawn += 1
        del seed
        # Rows beyond the test's six: none.
        return ops.convert_to_tensor(LAM), ops.convert_to_tensor(PERMUTATION)


def sequential():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, "tanh", name="hidden"),
            layers.Dense(2, name="out"),
        ]
    )


def functional():
    x = keras.Input((4,))
    h = layers.Dense(5, "tanh", name="hidden")(x)
    return keras.Model(x, layers.Dense(2, name="out")(h))


@keras.saving.register_keras_serializable("tests_manifold")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [
            layers.Dense(5, "tanh", name="dense"),
            MixPoint(name="hidden"),
            layers.Dense(2, name="out"),
        ]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def nested():
    x = keras.Input((4,))
    inner = keras.Model(x, functional_head(x), name="backbone")
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(2, name="out")(inner(x)))


def functional_head(x):
    return layers.Dense(5, "tanh", name="hidden")(x)


def nested_sequential():
    stem = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "tanh", name="hidden")],
        name="backbone",
    )
    return keras.Sequential([keras.Input((4,)), stem, layers.Dense(2)])


MODELS = {
    "sequential": (sequential, "hidden"),
    "functional": (functional, "hidden"),
    "subclassed": (Subclassed, "hidden"),
    "nested": (nested, "backbone/hidden"),
    "nested_sequential": (nested_sequential, "backbone/hidden"),
}


def blend(t):
    share = LAM.astype("float64").reshape(-1, *[1] * (t.ndim - 1))
    return share * t + (1 - share) * t[PERMUTATION]


def by_hand(weights):
    """Loss and gradients of the two layers, in float64."""
    w1, b1, w2, b2 = (w.astype("float64") for w in weights)
    h = np.tanh(X @ w1 + b1)
    mixed = blend(h)
    error = mixed @ w2 + b2 - blend(Y.astype("float64"))
    d_out = 2 * error / error.size
    d_mixed = d_out @ w2.T
    d_h = LAM.astype("float64")[:, None] * d_mixed
    np.add.at(d_h, PERMUTATION, (1 - LAM.astype("float64"))[:, None] * d_mixed)
    d_pre = d_h * (1 - h**2)
    gradients = [X.T @ d_pre, d_pre.sum(0), mixed.T @ d_out, d_out.sum(0)]
    return (error**2).mean(), gradients


def sam_by_hand(weights, rho):
    """Gradient at w + e of the same draw."""
    _, g = by_hand(weights)
    norm = np.sqrt(sum((a**2).sum() for a in g))
    moved = [w + rho * a / norm for w, a in zip(weights, g)]
    return by_hand(moved)[1]


def weights_of(model):
    return [ops.convert_to_numpy(w) for w in model.weights]


@pytest.mark.parametrize("rho", [None, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_that_of_numpy(name, rho):
    make, at = MODELS[name]
    net = make()
    net(X)  # builds it
    model = dlkit.attach(net, Fixed(at=at))
    optimizer = keras.optimizers.SGD(0.5)
    if rho is not None:
        optimizer = dlkit.optimizers.SAM(optimizer, rho=rho)
    model.compile(optimizer, "mse")
    before = weights_of(net)
    loss, gradients = by_hand(before)
    if rho is not None:
        gradients = sam_by_hand(before, rho)
    Fixed.drawn = 0
    history = model.fit(X, Y, batch_size=6, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"][0], loss, rtol=1e-5)
    for a, b, g in zip(weights_of(net), before, gradients):
        np.testing.assert_allclose(a, b - 0.5 * g, atol=2e-6)
    assert Fixed.drawn == 1
    # Evaluated and used as it is.
    np.testing.assert_array_equal(
        model.predict(X, verbose=0), net.predict(X, verbose=0)
    )
    plain = ops.convert_to_numpy(model(X))
    np.testing.assert_allclose(
        model.evaluate(X, Y, verbose=0), ((plain - Y) ** 2).mean(), rtol=1e-5
    )


def test_the_model_stays_as_it_was(tmp_path):
    net = nested()
    net.compile("sgd", "mse")
    config, layer_list = net.to_json(), list(net.layers)
    count = len(net.weights)
    with pytest.warns(UserWarning, match="took over"):
        model = dlkit.attach(net, ManifoldMixUp(at="backbone/hidden", seed=1))
    model.fit(X, Y, verbose=0)
    assert json.loads(net.to_json())["config"] == json.loads(config)["config"]
    assert net.layers == layer_list and len(net.weights) == count
    assert len(model.model.weights) == count
    assert type(net.get_layer("out")).call is layers.Dense.call
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    for m in (model, again):
        m.fit(X, Y, batch_size=3, shuffle=False, verbose=0)
    for a, b in zip(weights_of(model.model), weights_of(again.model)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    dlkit.detach(again).save(tmp_path / "b.keras")
    assert keras.saving.load_model(tmp_path / "b.keras").count_params()


@slow_to_compile
def test_with_no_draw_the_second_graph_is_the_first():
    """Dict inputs, several outputs, dropout, masks, own dtypes."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    row = keras.Input((3,), name="row")
    h = layers.Embedding(9, 4, mask_zero=True, name="embedding")(tokens)
    h = layers.LSTM(5, name="lstm")(h)
    h = layers.Concatenate(name="both")([h, row])
    outputs = {
        "a": layers.Dense(2, name="a", dtype="float32")(h),
        "b": layers.Dense(1, name="b")(h),
    }
    net = keras.Model({"tokens": tokens, "row": row}, outputs)
    model = dlkit.attach(net, ManifoldMixUp(at="embedding"))
    x = {
        "tokens": ops.convert_to_tensor(RNG.integers(0, 9, (6, 6)), "int32"),
        "row": ops.convert_to_tensor(RNG.normal(size=(6, 3)), "float32"),
    }
    draw = ops.ones(6), ops.convert_to_tensor(PERMUTATION)
    mixed, plain = model(Inputs(x, [draw])), net(x)
    assert mixed.keys() == plain.keys()
    for name in plain:
        assert mixed[name].dtype == plain[name].dtype
        np.testing.assert_array_equal(
            ops.convert_to_numpy(ops.cast(mixed[name], "float32")),
            ops.convert_to_numpy(ops.cast(plain[name], "float32")),
        )


@keras.saving.register_keras_serializable("tests_manifold")
class Lazy(Subclassed):
    """Built by its first batch."""


def test_a_model_built_by_its_first_batch():
    model = dlkit.attach(Lazy(), ManifoldMixUp(at="hidden", seed=0))
    model.compile("sgd", "mse")
    model.fit(X, Y, batch_size=3, epochs=2, verbose=0)
    assert len(model.model.weights) == 4


def test_one_of_several_layers_a_batch():
    """The paper's rule; those not drawn must leave their points alone."""
    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, "tanh", name="first"),
            layers.Dense(5, "tanh", name="second"),
            layers.Dense(2),
        ]
    )
    choice = RandomChoice(
        [
            MixUp(1.0),
            ManifoldMixUp(1.0, at="first"),
            ManifoldMixUp(1.0, at="second"),
        ],
        seed=0,
    )
    model = dlkit.attach(net, choice)
    assert choice.mixes_at == ["first", "second"]
    model.compile("sgd", "mse")
    model.fit(X, Y, batch_size=3, epochs=2, verbose=0)
    index, draws = choice.draw(6, choice.seed_generator)
    for number in range(3):
        hidden = choice.hidden_draws((ops.convert_to_tensor(number), draws))
        moved = [
            bool(ops.convert_to_numpy(lam != 1).any()) for lam, _ in hidden
        ]
        assert moved == [number == 1, number == 2]


def test_layers_that_are_not_there():
    with pytest.raises(ValueError, match=r"near it are \['hidden'\]"):
        dlkit.attach(sequential(), ManifoldMixUp(at="hiden"))
    with pytest.raises(ValueError, match="near it are.*'backbone/hidden'"):
        dlkit.attach(nested(), ManifoldMixUp(at="hidden"))
    with pytest.raises(ValueError, match="use `MixUp`"):
        net = functional()
        dlkit.attach(net, ManifoldMixUp(at=net.layers[0].name))


def test_models_it_cannot_get_into():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match=r"Own has a `call`.*MixPoint"):
        dlkit.attach(Own(), ManifoldMixUp(at="hidden"))
    net = keras.Sequential([layers.Dense(2, name="hidden")])
    with pytest.raises(ValueError, match="must be built.*Input"):
        dlkit.attach(net, ManifoldMixUp(at="hidden"))
    dense = layers.Dense(4, name="hidden")
    x = keras.Input((4,))
    with pytest.raises(ValueError, match="called once"):
        dlkit.attach(
            keras.Model(x, dense(dense(x))), ManifoldMixUp(at="hidden")
        )
    block = keras.Sequential([keras.Input((4,)), dense], name="block")
    with pytest.raises(ValueError, match="called once.*'block/hidden'"):
        dlkit.attach(
            keras.Model(x, block(block(x))), ManifoldMixUp(at="block/hidden")
        )


def test_points_that_are_not_reached_or_not_told_apart():
    class Forgets(Subclassed):
        def call(self, x):
            return self.blocks[2](self.blocks[0](x))

    model = dlkit.attach(Forgets(), ManifoldMixUp(at="hidden"))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="'hidden' must be called"):
        model.fit(X, Y, verbose=0)

    class Repeats(Subclassed):
        def call(self, x):
            for block in (*self.blocks, self.blocks[1]):
                x = block(x)
            return x

    model = dlkit.attach(Repeats(), ManifoldMixUp(at="hidden"))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="called once in a pass"):
        model.fit(X, Y, verbose=0)
    net = Subclassed()
    net.blocks[2] = MixPoint(name="hidden")
    with pytest.raises(ValueError, match="two called 'hidden'"):
        dlkit.attach(net, ManifoldMixUp(at="hidden"))


def test_the_mask_is_that_of_both_rows():
    point, lengths = MixPoint(name="p"), np.array([1, 4, 2, 3, 4, 1])
    mask = np.arange(4) < lengths[:, None]
    draw = LAM, ops.convert_to_tensor(PERMUTATION)
    with mixing({point: Draws([draw])}):
        point(ops.convert_to_tensor(X))
        got = point.compute_mask(X, ops.convert_to_tensor(mask))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(got), mask | mask[PERMUTATION]
    )
    assert point.compute_mask(X, mask) is mask


def test_hidden_values_that_cannot_be_mixed():
    net = keras.Sequential(
        [keras.Input((4,)), layers.Lambda(lambda x: x[:1], name="first_row")]
    )
    model = dlkit.attach(net, ManifoldMixUp(at="first_row"))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="a row for each sample"):
        model(Inputs(X, [(np.ones(6), PERMUTATION)]))


def test_where_it_is_refused():
    part = ManifoldMixUp(at="hidden")
    with pytest.raises(ValueError, match="keras_dlkit.attach"):
        part((X, Y))
    with pytest.raises(ValueError, match="keras_dlkit.attach"):
        RandomChoice([part])((X, Y))
    model = dlkit.attach(sequential(), part)
    with pytest.raises(ValueError, match="micro_batches=2"):
        model.compile(
            dlkit.optimizers.SAM(keras.optimizers.SGD(), micro_batches=2), "mse"
        )
    with pytest.raises(TypeError, match="at=3"):
        ManifoldMixUp(at=3)


def test_a_point_alone_is_the_identity():
    point = MixPoint(name="p")
    assert point(x := ops.convert_to_tensor(X)) is x
    config = keras.saving.serialize_keras_object(point)
    assert keras.saving.deserialize_keras_object(config).name == "p"
    part = ManifoldMixUp(0.5, at="a/b", num_classes=3, seed=2)
    config = keras.saving.serialize_keras_object(part)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == part.get_config()
