"""The model of a file that `save_compact` wrote."""

import json
import os
import zipfile
import zlib
from typing import Any

import keras

from keras_dlkit.sparsity import _state
from keras_dlkit.sparsity._encoding import decode
from keras_dlkit.sparsity.save_compact import FORMAT
from keras_dlkit.sparsity.save_compact import MANIFEST
from keras_dlkit.sparsity.save_compact import VERSION

# What `zipfile` raises for bytes that are not those that were written.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # and NotImplementedError
    ValueError,  # of names that are no text
)


def load_compact(
    path: str | os.PathLike,
    *,
    custom_objects: dict[str, Any] | None = None,
    safe_mode: bool = True,
) -> keras.Model:
    """Loads a model that `keras_dlkit.sparsity.save_compact` saved.

    Args:
        path: String or path of the file.
        custom_objects: `None`, or a dictionary of the classes and functions
            that are not registered with Keras, by name.
        safe_mode: Boolean. With `False`, `Lambda` layers are loaded: only for
            files that you trust. Defaults to `True`.

    Returns:
        The model, not compiled, with the same weights bit for bit.

    Raises:
        FileNotFoundError: Where there is no file.
        ValueError: For a file of another kind or one that is damaged, and
            where the weights in the file are not those of the model.

    State: none.
    Runs: once.
    Cost: that of building the model.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    dlkit.sparsity.save_compact(model, "model.compact")
    same = dlkit.sparsity.load_compact("model.compact")
    ```
    """
    content = _read(path)
    manifest = _manifest(path, content)
    model = keras.saving.deserialize_keras_object(
        manifest["model"],
        custom_objects=custom_objects,
        safe_mode=safe_mode,
    )
    _assign(model, manifest["weights"], content)
    _assign_states(model, manifest.get("states", []), content)
    return model


def _read(path):
    """All of the file, before a model is made of any of it."""
    if not os.path.exists(path):
        raise FileNotFoundError(
            "`path` must be a file that `save_compact` wrote. Received: "
            f"path={str(path)!r}, which does not exist"
        )
    with open(path, "rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise ValueError(
                _expected(path, "another kind of file, or a part of one, in it")
            )
        try:
            with zipfile.ZipFile(stream) as file:
                return {name: file.read(name) for name in file.namelist()}
        except DAMAGE as error:
            raise ValueError(
                _expected(path, f"damage in it ({error})")
            ) from error


def _manifest(path, content):
    if MANIFEST not in content:
        raise ValueError(_expected(path, f"{list(content)[:5]} in it"))
    manifest = json.loads(content[MANIFEST])
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise ValueError(_expected(path, f"version {manifest.get('version')}"))
    missing = [name for name in _names(manifest) if name not in content]
    if missing:
        raise ValueError(_expected(path, f"no {missing[:5]} in it"))
    return manifest


def _names(manifest):
    """Of all that must be in the file."""
    for index, _ in enumerate(manifest["weights"]):
        yield f"weights/{index}"
    for index, entry in enumerate(manifest.get("states", [])):
        for kind in ("arrays", "files"):
            for name in entry[kind]:
                yield f"states/{index}/{kind}/{name}"


def _assign(model, entries, content):
    expected = [
        (list(v.shape), keras.backend.standardize_dtype(v.dtype))
        for v in model.weights
    ]
    received = [(entry["shape"], entry["dtype"]) for entry in entries]
    if expected != received:
        raise ValueError(
            "The file must hold the weights of the model that its "
            f"configuration makes, {expected[:5]}, ... Received: "
            f"{received[:5]}, ... A subclassed model must make all its "
            "weights in `build`."
        )
    for index, (variable, entry) in enumerate(zip(model.weights, entries)):
        variable.assign(_decoded(entry, content[f"weights/{index}"]))


def _assign_states(model, entries, content):
    layers = _state.layers_with_state(model)
    expected = [layer.name for layer in layers]
    received = [entry["layer"] for entry in entries]
    if expected != received:
        raise ValueError(
            "The file must hold the state of the layers that have one beside "
            f"their weights, {expected}. Received: {received}"
        )
    for index, (layer, entry) in enumerate(zip(layers, entries)):
        arrays = {
            name: _decoded(array, content[f"states/{index}/arrays/{name}"])
            for name, array in entry["arrays"].items()
        }
        files = {
            name: content[f"states/{index}/files/{name}"]
            for name in entry["files"]
        }
        _state.write(layer, arrays, files)


def _decoded(entry, data):
    return decode(entry["kind"], data, entry["shape"], entry["dtype"])


def _expected(path, received):
    return (
        "`path` must be a file that `save_compact` wrote, of version "
        f"{VERSION}. Received: path={str(path)!r}, with {received}. Save the "
        "model again, or copy the file anew."
    )
