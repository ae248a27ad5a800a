"""What an attached model answers, in the place of its network."""

import keras
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests import zoo
from tests.running import assert_same


def test_it_answers_for_the_network(capsys):
    net, _, _ = zoo.make("list_in_list_out")
    model = dlkit.attach(net)
    assert model.layers == net.layers
    assert model.get_layer("kind") is net.get_layer("kind")
    assert model.get_layer(index=0) is net.layers[0]
    for name in ("inputs", "outputs", "output_names"):
        assert getattr(model, name) is getattr(net, name) or getattr(
            model, name
        ) == getattr(net, name)
    assert model.input_shape == net.input_shape
    assert model.output_shape == net.output_shape
    assert model.count_params() == net.count_params()
    model.summary()
    attached_summary = capsys.readouterr().out
    net.summary()
    assert attached_summary == capsys.readouterr().out


def test_quantize_and_lora():
    net = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model = dlkit.attach(net)
    with pytest.warns(UserWarning, match="InputLayer"):  # as Keras does
        model.quantize("int8")
    assert net.layers[0].quantization_mode == "int8"
    model.predict(zoo.rows(), verbose=0)

    class Adaptable(keras.Sequential):
        def enable_lora(self, rank):
            self.layers[0].enable_lora(rank)

    net = Adaptable([keras.Input((4,)), layers.Dense(3)])
    model = dlkit.attach(net)
    model.enable_lora(2)
    assert len(net.trainable_variables) == 3
    model.compile(dlkit.optimizers.SAM("sgd"), "mse")
    model.fit(zoo.rows(), zoo.rows(3), verbose=0)


def test_functional_use_of_an_attached_model():
    net, data, _ = zoo.make("sequential")
    model = dlkit.attach(net)
    x = ops.convert_to_tensor(data["x"])
    assert_same(
        [ops.convert_to_numpy(model(x))], [ops.convert_to_numpy(net(x))]
    )


class Watched(keras.layers.Layer):
    """A layer with a metric of its own."""

    def __init__(self, name):
        super().__init__()
        self.inner = keras.layers.Dense(3)
        self.size = keras.metrics.Mean(name=name)

    def call(self, x):
        y = self.inner(x)
        self.size.update_state(ops.mean(ops.abs(y)))
        return y


def test_metrics_inside_of_the_network_are_those_of_keras():
    if keras.config.backend() == "jax":
        return  # `fit` of Keras itself fails where a `call` updates a metric
    logs = []
    for wrap in (lambda net: net, dlkit.attach):
        keras.utils.set_random_seed(0)
        layers = [keras.Input((4,)), Watched("inner")]
        layers = [layers[0], keras.Sequential(layers), Watched("outer")]
        model = wrap(keras.Sequential(layers))
        model.compile("sgd", "mse")
        history = model.fit(zoo.rows(), zoo.rows(3), verbose=0).history
        evaluated = model.evaluate(
            zoo.rows(), zoo.rows(3), verbose=0, return_dict=True
        )
        logs.append((history, evaluated))
    assert logs[0] == logs[1]
    assert "outer" in logs[0][0]
