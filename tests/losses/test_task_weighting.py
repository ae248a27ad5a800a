"""The seam of task weightings: any `combine` of the losses of the outputs."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from tests import zoo
from tests.test_attach import run
from tests.test_attach import weights_of


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
    with pytest.raises(ValueError, match="loss an output.*loss='mse'"):
        dlkit.attach(net, Doubled()).compile("sgd", "mse")
    with pytest.raises(ValueError, match="`compute_loss`"):
        dlkit.attach(zoo.make("own_loss")[0], Doubled())
