"""A stripped model leaves Keras as any other does."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlkit as dlkit
from tests.sparsity import nets
from tests.sparsity.nets import array

BACKEND = keras.config.backend()
only_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the converter is TensorFlow's"
)


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


@only_tensorflow
def test_saved_model(tmp_path):
    import tensorflow as tf

    model = stripped()
    x, expected = rows(model)
    model.export(str(tmp_path / "saved"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(array(loaded.serve(x)), expected, atol=1e-6)


@only_tensorflow
@pytest.mark.filterwarnings("ignore")
def test_litert_with_sparse_tensors(tmp_path):
    import tensorflow as tf

    model = stripped(256)
    x, expected = rows(model)
    model.export(str(tmp_path / "saved"), verbose=False)

    def converted(optimizations):
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(tmp_path / "saved")
        )
        converter.optimizations = optimizations
        return converter.convert()

    dense = converted([])
    sparse = converted([tf.lite.Optimize.EXPERIMENTAL_SPARSITY])
    assert len(sparse) < 0.6 * len(dense)
    interpreter = tf.lite.Interpreter(model_content=sparse)
    (given,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    (found,) = interpreter.get_output_details()
    np.testing.assert_allclose(
        interpreter.get_tensor(found["index"]), expected, atol=1e-5
    )


def missing():
    """What the ONNX export of Keras needs on this backend."""
    needed = ["onnx", "onnxruntime"]
    needed += ["onnxscript"] if BACKEND == "torch" else ["tf2onnx"]
    return [name for name in needed if not importlib.util.find_spec(name)]


@pytest.mark.skipif(
    BACKEND == "jax",
    reason="Keras 3.15.1 exports no model to ONNX on JAX: it was 'never called'",
)
@pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}")
@pytest.mark.filterwarnings("ignore")
def test_onnx(tmp_path):
    import onnxruntime

    model = stripped()
    x, expected = rows(model)
    path = str(tmp_path / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    (found,) = session.run(None, {given.name: x})
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_keras_file_needs_nothing_of_ours(tmp_path):
    import subprocess
    import sys

    model = stripped()
    x, expected = rows(model)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", expected)
    script = (
        "import sys, keras, numpy as np; "
        "m = keras.saving.load_model('model.keras'); "
        "y = m.predict(np.load('x.npy'), verbose=0); "
        "np.testing.assert_allclose(y, np.load('y.npy'), atol=1e-6); "
        "assert 'keras_dlkit' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
