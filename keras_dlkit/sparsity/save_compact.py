"""A model in a file without its zeros."""

import json
import os
import pathlib
import zipfile

import keras

from keras_dlkit.sparsity import _models
from keras_dlkit.sparsity import _state
from keras_dlkit.sparsity._encoding import as_array
from keras_dlkit.sparsity._encoding import encode

FORMAT = "keras_dlkit.compact"
VERSION = 1
MANIFEST = "manifest.json"


def save_compact(
    model: keras.Model, path: str | os.PathLike, *, compress: bool = True
) -> int:
    r"""Saves a model with a bit for each zero.

    A tensor of \(n\) weights, \(k\) of them not zero, of \(b\) bytes each,
    takes \(n / 8 + k b\) bytes, or \(n b\) where that is less. The file is a
    zip of these and of the configuration of the model, with what layers have
    beside their weights, such as vocabularies; neither the optimizer nor the
    random states are in it. `load_compact` gives the weights back bit
    for bit, in every dtype. A plain `.keras` or `.h5` file has every zero in
    it, and shrinks only when it is gzipped.

    Args:
        model: `keras.Model`, built; of one that is attached, the network. A
            `Supermask` is saved as it is, with all its weights: `strip` the
            model first.
        path: String or path of the file.
        compress: Boolean. Deflates the file, too. Defaults to `True`.

    Returns:
        The size of the file in bytes.

    Raises:
        TypeError, ValueError: For what is not a model, or is not built.

    State: none.
    Runs: once.
    Cost: a copy of one tensor at a time.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    dlkit.sparsity.save_compact(model, "model.compact")
    same = dlkit.sparsity.load_compact("model.compact")
    ```
    """
    model = _models.checked(model, "save_compact")
    with _models.not_compiled(model):
        config = keras.saving.serialize_keras_object(model)
    path = pathlib.Path(path)
    unfinished = path.with_name(path.name + ".part")
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(unfinished, "w", method) as file:
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "keras": keras.__version__,
            "model": config,
            "weights": [
                {"path": variable.path, **_write_array(file, place, array)}
                for place, variable, array in _weights(model)
            ],
            "states": [
                _write_state(file, f"states/{index}", layer)
                for index, layer in enumerate(_state.layers_with_state(model))
            ],
        }
        _write(file, MANIFEST, json.dumps(manifest))
    os.replace(unfinished, path)
    return path.stat().st_size


def _weights(model):
    for index, variable in enumerate(model.weights):
        yield f"weights/{index}", variable, as_array(variable)


def _write_array(file, place, array):
    kind, data = encode(array)
    _write(file, place, data)
    shape, dtype = list(array.shape), array.dtype.name
    return {"shape": shape, "dtype": dtype, "kind": kind}


def _write_state(file, place, layer):
    """What a layer has beside its variables, as `.keras` files have it."""
    arrays, files = _state.read(layer)
    for name, data in files.items():
        _write(file, f"{place}/files/{name}", data)
    return {
        "layer": layer.name,
        "files": list(files),
        "arrays": {
            name: _write_array(file, f"{place}/arrays/{name}", array)
            for name, array in arrays.items()
        },
    }


def _write(file, name, data):
    entry = zipfile.ZipInfo(name)  # of a fixed date: the same file each time
    entry.compress_type = file.compression
    file.writestr(entry, data)
