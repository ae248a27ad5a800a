"""A stripped model leaves Keras as any other does."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlkit as dlkit
from tests import exports
from tests.sparsity import nets

BACKEND = keras.config.backend()
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the converters


def stripped(units=64):
    net = keras.Sequential(
        [
            keras.Input((32,)),
            layers.Dense(units, "relu"),
            layers.Dense(4, "softmax"),
        ]
    )
    return dlkit.sparsity.strip(dlkit.sparsity.supermask(net, 0.9, seed=0))


def rows(model):
    x = nets.data(model)
    return x, model.predict(x, verbose=0)


@pytest.mark.parametrize("way", exports.WAYS, ids=lambda way: way.__name__)
def test_it_is_served(way, tmp_path):
    exports.check_way(way)
    model = stripped()
    x, expected = rows(model)
    exports.assert_served(way(model, tmp_path), x, expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", exports.WAYS, ids=lambda way: way.__name__)
def test_convolutions_pruned_by_masked_are_served(way, tmp_path):
    exports.check_way(way)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.SeparableConv2D(6, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    model.compile("adam", "mse")
    pruning = dlkit.callbacks.MagnitudePruning(
        dlkit.schedules.ConstantSparsity(0.7)
    )
    x = nets.data(model)
    model.fit(x, np.ones((5, 3)), epochs=2, callbacks=[pruning], verbose=0)
    plain = dlkit.sparsity.strip(model)
    assert dlkit.sparsity.report(plain).density == pytest.approx(0.3, abs=0.01)
    expected = model.predict(x, verbose=0)
    exports.assert_served(way(plain, tmp_path), x, expected)


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the converter is TensorFlow's"
)
def test_litert_with_sparse_tensors(tmp_path):
    import tensorflow as tf

    exports.check_way(exports.by_litert)
    model = stripped(256)
    x, expected = rows(model)
    path = exports.saved_model(model, tmp_path)

    def converted(optimizations):
        converter = tf.lite.TFLiteConverter.from_saved_model(path)
        converter.optimizations = optimizations
        return converter.convert()

    dense = converted([])
    sparse = converted([tf.lite.Optimize.EXPERIMENTAL_SPARSITY])
    assert len(sparse) < 0.6 * len(dense)
    exports.assert_served(exports.interpreter(sparse), x, expected)


@pytest.mark.slow
def test_keras_file_needs_nothing_of_ours(tmp_path):
    model = stripped()
    x, expected = rows(model)
    serve = exports.in_a_fresh_process(model, tmp_path)
    exports.assert_served(serve, x, expected, atol=1e-6)
