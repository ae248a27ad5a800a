"""The seam of task weightings: any `combine` of the losses of the outputs."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from tests import zoo
from tests.running import run
from tests.running import slow_to_compile
from tests.running import weights_of


@keras.saving.register_keras_serializable("tests")
class Doubled(dlkit.losses.TaskWeighting):
    """Twice the first loss and half of the second."""

    def weigh(self, losses):
        return ops.convert_to_tensor([2.0, 0.5])


@keras.saving.register_keras_serializable("tests")
class Learned(dlkit.losses.TaskWeighting):
    def make_state(self):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def weigh(self, losses):
        return ops.square(self.scale) * ops.ones_like(losses)


class Lazy(keras.Model):
    def call(self, x):
        return [x, x]


def start(part, name, wrap=lambda o: o, **arguments):
    model, data, given = zoo.make(name)
    if part is not None:
        model = dlkit.attach(model, part)
    given = {**given, **arguments}
    model.compile(wrap(keras.optimizers.SGD(0.1)), **given)
    return model, data


@pytest.mark.parametrize("name", ["dict_in_dict_out", "list_in_list_out"])
@pytest.mark.parametrize("sam", [False, True])
def test_combine_is_what_is_minimised(name, sam):
    """The weights of `combine` act as `loss_weights` of Keras do."""
    keys = ("kind", "size") if name.startswith("dict") else (0, 1)
    weights = dict(zip(keys, (2.0, 0.5)))
    if name.startswith("list"):
        weights = list(weights.values())
    if sam:
        stock, data = start(
            None, name, loss_weights=weights, wrap=dlkit.optimizers.SAM
        )
        stock = dlkit.attach(zoo.make(name)[0])
        given = {**zoo.make(name)[2], "loss_weights": weights}
        stock.compile(dlkit.optimizers.SAM(keras.optimizers.SGD(0.1)), **given)
    else:
        stock, data = start(None, name, loss_weights=weights)
    wrap = dlkit.optimizers.SAM if sam else lambda o: o
    model, _ = start(Doubled(), name, wrap=wrap, loss_weights=None)
    expected, history = run(stock, data), run(model, data)
    logged = {name: history.pop(f"{name}_weight") for name in ("kind", "size")}
    assert history.keys() == expected.keys()
    for name, weight in (("kind", 2.0), ("size", 0.5)):
        np.testing.assert_array_equal(logged[name], weight)
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=1e-4)
    network = stock.model if sam else stock
    for a, b in zip(weights_of(model.model), weights_of(network)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_evaluation_is_the_plain_sum():
    model, data = start(Doubled(), "list_in_list_out")
    run(model, data)
    stock, _ = start(None, "list_in_list_out")
    stock.set_weights(model.model.get_weights())
    assert model.evaluate(data["x"], data["y"], verbose=0) == pytest.approx(
        stock.evaluate(data["x"], data["y"], verbose=0)
    )


def test_weights_of_the_weighting_are_trained_and_saved(tmp_path):
    model, data = start(Learned(), "dict_in_dict_out")
    run(model, data)
    scale = float(ops.convert_to_numpy(model.parts[0].scale))
    assert scale < 0.999
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(ops.convert_to_numpy(loaded.parts[0].scale)) == scale
    run(loaded, data)
    plain = dlkit.detach(loaded)
    run(plain, data)
    plain.save(tmp_path / "plain.keras")
    assert b"keras_dlkit" not in (tmp_path / "plain.keras").read_bytes()


def test_what_is_refused():
    net, _, _ = zoo.make("list_in_list_out")
    with pytest.raises(
        ValueError, match=r"one task weighting.*'Doubled', 'Learned'"
    ):
        dlkit.attach(net, Doubled(), Learned())
    with pytest.raises(ValueError, match="one task weighting"):
        dlkit.attach(dlkit.attach(net, Doubled()), Doubled())
    lazy = Lazy()  # its outputs are not known
    with pytest.raises(ValueError, match="loss an output.*loss='mse'"):
        dlkit.attach(lazy, Doubled()).compile("sgd", "mse")
    with pytest.raises(ValueError, match="`compute_loss`"):
        dlkit.attach(zoo.make("own_loss")[0], Doubled())


# How `compile` may be told of losses: as Keras takes them.

NAMES = {
    "dict": (lambda a, b: {"p": a, "q": b}, ["p", "q"]),
    # Not in the order of the alphabet.
    "list": (lambda a, b: [b, a], ["b", "a"]),
    "tuple": (lambda a, b: (b, a), ["b", "a"]),
    "nested": (lambda a, b: {"u": {"a": a}, "v": [b]}, ["u/a", "v/b"]),
}
LOSSES = {
    "dict": [
        ({"p": "mse", "q": "mae"}, {"p": 2.0, "q": 0.5}),
        ({"q": "mae", "p": "mse"}, [2.0, 0.5]),
        (["mse", "mae"], {"p": 2.0, "q": 0.5}),
        ("mse", None),
    ],
    "list": [
        ({"a": "mae", "b": "mse"}, {"a": 0.5, "b": 2.0}),
        ({"a": "mae", "b": "mse"}, [2.0, 0.5]),
        (["mse", "mae"], [2.0, 0.5]),
        ("mse", None),
    ],
    "tuple": [(["mse", "mae"], [2.0, 0.5])],
    "nested": [
        ({"u": {"a": "mse"}, "v": ["mae"]}, {"u": {"a": 2.0}, "v": [0.5]}),
        (["mse", "mae"], [2.0, 0.5]),
    ],
}


def two_outputs(structure):
    keras.utils.set_random_seed(2)
    x = keras.Input((4,))
    a, b = (keras.layers.Dense(1, name=name)(x) for name in "ab")
    model = keras.Model(x, NAMES[structure][0](a, b))
    y = NAMES[structure][0](*np.random.default_rng(0).normal(size=(2, 8, 1)))
    return model, np.random.default_rng(1).normal(size=(8, 4)), y


@pytest.mark.parametrize(
    ("structure", "loss", "weights"),
    [(name, *row) for name, rows in LOSSES.items() for row in rows],
    ids=str,
)
def test_losses_are_read_as_keras_reads_them(structure, loss, weights):
    if structure == "nested" and keras.backend.backend() == "tensorflow":
        pytest.skip("the trainer of Keras fails on TensorFlow")
    logs = []
    for part in (None, dlkit.losses.EqualWeighting()):
        model, x, y = two_outputs(structure)
        if part is not None:
            model = dlkit.attach(model, part)
        model.compile(keras.optimizers.SGD(0.1), loss, loss_weights=weights)
        logs.append(model.train_on_batch(x, y, return_dict=True))
        logs[-1] |= model.test_on_batch(x, y, return_dict=True)
    stock, ours = logs
    names = NAMES[structure][1]
    assert ours.keys() - stock.keys() == {f"{name}_weight" for name in names}
    for key, value in stock.items():
        assert ours[key] == pytest.approx(value, rel=1e-5), key


def test_a_function_and_a_name_of_several_losses():
    """Targets without the last axis, and "crossentropy", that is one of 3."""
    logs = []
    for part in (None, dlkit.losses.EqualWeighting()):
        model, x, y = two_outputs("list")
        if part is not None:
            model = dlkit.attach(model, part)
        loss = [lambda y, p: ops.square(y - p), "crossentropy"]
        model.compile("sgd", loss)
        targets = [y[0][:, 0], (y[1] > 0).astype("float32")]
        logs.append(model.train_on_batch(x, targets, return_dict=True))
    for key, value in logs[0].items():
        assert logs[1][key] == pytest.approx(value, rel=1e-5), key


@slow_to_compile
def test_all_names_of_an_output_will_do():
    kind = "regression"
    for tasks in (["p", "q"], ["a", "b"], [0, 1], ["q", 0]):
        model, x, y = two_outputs("dict")
        part = dlkit.losses.UncertaintyWeighting(dict.fromkeys(tasks, kind))
        model = dlkit.attach(model, part)
        model.compile("sgd", "mse")
        logs = model.train_on_batch(x, y, return_dict=True)
        assert {"p_weight", "q_weight"} < logs.keys()
    part = dlkit.losses.UncertaintyWeighting({"u/a": kind, "v/b": kind})
    model = dlkit.attach(two_outputs("nested")[0], part)
    model.compile("sgd", "mse")
    assert part.names == ("u/a", "v/b")


@pytest.mark.parametrize(
    ("loss", "weights", "match"),
    [
        (["mse"] * 3, None, "each output.*'a', 'b'.*3 losses"),
        ({"p": "mse", "q": "mae"}, [1.0], "each loss.*1.0.*2 losses"),
        (None, None, "loss an output.*None"),
        ({"p": "mse", "r": "mse"}, None, "must be the outputs.*'r'"),
        ({"p": "mse", "q": "no"}, None, "loss identifier: no"),
    ],
)
def test_losses_that_do_not_fit(loss, weights, match):
    part = dlkit.losses.PCGrad(["p", "q"])
    model = dlkit.attach(two_outputs("dict")[0], part)
    with pytest.raises(ValueError, match=match):
        model.compile("sgd", loss, loss_weights=weights)
