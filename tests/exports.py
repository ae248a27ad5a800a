"""The ways in which a network leaves Keras, each as a function to serve with.

A way is a function of a model and a folder; it writes the model there, loads
it again by other means and returns a function of an input array.
"""

import importlib.util
import subprocess
import sys

import keras
import numpy as np
import pytest

BACKEND = keras.config.backend()


def saved_model(model, folder):
    """Exports once a folder."""
    path = folder / "saved"
    if not path.exists():
        model.export(str(path), verbose=False)
    return str(path)


def by_tensorflow(model, folder):
    import tensorflow as tf

    loaded = tf.saved_model.load(saved_model(model, folder))
    return lambda x: loaded.serve(x)


def by_tensorflow_hub(model, folder):
    import tensorflow_hub

    loaded = tensorflow_hub.load(saved_model(model, folder))
    return lambda x: loaded.serve(x)


def as_layer(model, folder):
    """In a network of Keras."""
    layer = keras.layers.TFSMLayer(
        saved_model(model, folder), call_endpoint="serve"
    )
    return keras.Sequential([layer])


def by_onnxruntime(model, folder):
    import onnxruntime

    path = str(folder / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    return lambda x: session.run(None, {given.name: x})[0]


def by_litert(model, folder):
    path = folder / "model.tflite"
    model.export(str(path), format="litert", verbose=False)
    return interpreter(path.read_bytes())


def interpreter(content):
    """The LiteRT runtime, which needs no TensorFlow."""
    from ai_edge_litert.interpreter import Interpreter

    runtime = Interpreter(model_content=content)

    def serve(x):
        (given,) = runtime.get_input_details()
        runtime.resize_tensor_input(given["index"], x.shape)
        runtime.allocate_tensors()
        runtime.set_tensor(given["index"], x)
        runtime.invoke()
        (found,) = runtime.get_output_details()
        return runtime.get_tensor(found["index"])

    return serve


def by_torch(model, folder):
    """An exported program of PyTorch, which Keras makes for one row."""
    import torch

    path = str(folder / "model.pt2")
    try:
        model.export(path, format="torch", verbose=False)
    except ValueError as error:
        if "Unrecognized format=torch" not in str(error):
            raise
        pytest.skip("this Keras does not export programs of PyTorch")
    program = torch.export.load(path).module()
    rows = lambda x: torch.from_numpy(x).split(1)  # noqa: E731
    return lambda x: torch.cat([program(row) for row in rows(x)]).detach()


def in_a_fresh_process(model, folder):
    """A `.keras` file, where keras_dlkit cannot be imported."""
    path = folder / "model.keras"
    model.save(path)

    def serve(x):
        np.save(folder / "x.npy", x)
        run_without_us([path], folder / "x.npy")
        return np.load(path.with_suffix(".npy"))

    return serve


WITHOUT_US = """
import pathlib, sys
sys.modules["keras_dlkit"] = None  # an import of it is an ImportError
import keras, numpy as np
for path in map(pathlib.Path, sys.argv[2:]):
    model = keras.saving.load_model(path)
    x = np.load(sys.argv[1])
    y = model.predict(x, verbose=0)
    np.save(path.with_suffix(".npy"), y)
"""


def run_without_us(paths, inputs):
    """Predicts with many saved models in one process, beside their files."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, inputs, *paths],
        cwd=inputs.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


# Where Keras 3.15.1 itself has such a way: on JAX its ONNX export needs
# jax2onnx, its LiteRT export is of TensorFlow and PyTorch, its TFSMLayer is of
# TensorFlow alone, and its SavedModel from PyTorch fails for any model.
WAYS = {
    "tensorflow": (
        by_tensorflow,
        by_tensorflow_hub,
        as_layer,
        by_onnxruntime,
        by_litert,
    ),
    "jax": (by_tensorflow, by_tensorflow_hub),
    "torch": (by_onnxruntime, by_torch),
}[BACKEND]
NEEDS = {
    by_tensorflow: ("tensorflow",),
    # tensorflow_hub 0.16 imports pkg_resources, which setuptools 82 has not.
    by_tensorflow_hub: ("tensorflow", "tensorflow_hub", "pkg_resources"),
    as_layer: ("tensorflow",),
    by_onnxruntime: ("onnx", "onnxruntime")
    + (("onnxscript",) if BACKEND == "torch" else ("tf2onnx",)),
    by_litert: ("ai_edge_litert",),
}


def check_way(way):
    """Skips the test where a package is not installed."""
    missing = [n for n in NEEDS.get(way, ()) if not importlib.util.find_spec(n)]
    if missing:
        pytest.skip(f"needs {missing}")


def assert_served(serve, x, expected, atol=1e-5):
    found = keras.ops.convert_to_numpy(serve(x))
    np.testing.assert_allclose(found, expected, atol=atol)
