"""State of layers beside their variables: vocabularies, adapted statistics.

A layer says it by the methods that a `.keras` file is written with.
"""

import pathlib
import tempfile

import keras
import numpy as np

from keras_dlkit import _keras
from keras_dlkit.sparsity._encoding import as_array

BASE = keras.layers.Layer


def layers_with_state(model):
    return [m for m in _keras.all_layers(model) if _has_state(m)]


def _has_state(layer):
    kind = type(layer)
    if hasattr(kind, "load_assets"):
        return True
    method = kind.load_own_variables
    if method is BASE.load_own_variables:
        return False
    # Dense and others of Keras have it for kernels that are quantized, which
    # are variables; a Normalization makes constants of its variables.
    of_keras = method.__module__.startswith("keras.")
    return not (of_keras and layer.variables) or isinstance(
        layer, keras.layers.Normalization
    )


def read(layer):
    """Two dictionaries: arrays, and the bytes of files."""
    store: dict = {}
    layer.save_own_variables(store)
    arrays = {str(key): _array(value) for key, value in store.items()}
    files = {}
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            for path in sorted(pathlib.Path(folder).rglob("*")):
                if path.is_file():
                    name = path.relative_to(folder).as_posix()
                    files[name] = path.read_bytes()
    return arrays, files


def _array(value):
    is_variable = isinstance(value, keras.Variable)
    return as_array(value) if is_variable else np.asarray(value)


def write(layer, arrays, files):
    """Gives a layer of the same configuration what `read` returned."""
    layer.load_own_variables(arrays)
    if not hasattr(layer, "load_assets"):
        return
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder).resolve()
        for name, data in files.items():
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise ValueError(
                    "A file of a layer must lie in the folder of the layer. "
                    f"Received: {name!r} for {layer.name!r}"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        layer.load_assets(str(root))
