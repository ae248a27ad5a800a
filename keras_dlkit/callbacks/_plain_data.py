"""Python data as JSON and arrays, and back: no code, no pickles."""

import json

import numpy as np
from keras import ops


class NotPlain(TypeError):
    """For what is no plain data."""


def encode(value, arrays, prefix):
    """A JSON value for it; its arrays go into `arrays`, under `prefix`.

    Args:
        value: Numbers, strings, arrays, functions of `keras.ops`, and lists,
            tuples and dictionaries of them.
        arrays: Dictionary that gets the arrays.
        prefix: String. What the names of its arrays begin with.

    Raises:
        NotPlain: For all else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        name = f"{prefix}.{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encode(v, arrays, prefix) for v in value]}
    if isinstance(value, dict):
        pairs = [[encode(w, arrays, prefix) for w in p] for p in value.items()]
        return {"dict": pairs}
    if callable(value) and _of_keras(value) is value:
        return {"function": value.__name__}
    raise NotPlain(f"no plain data: {value!r}")


def decode(node, arrays):
    """What `encode` was given."""
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "array":
        return np.array(arrays[content])
    if kind == "function":
        return getattr(ops, content)
    if kind == "dict":
        return {decode(k, arrays): decode(v, arrays) for k, v in content}
    values = [decode(v, arrays) for v in content]
    return values if kind == "list" else tuple(values)


def fingerprint(value):
    """Bytes that are the same for the same data alone."""
    arrays = {}
    text = json.dumps(encode(value, arrays, "")).encode()
    parts = [(a.dtype.str, a.shape, a.tobytes()) for a in arrays.values()]
    return text, parts


def _of_keras(function):
    return getattr(ops, getattr(function, "__name__", ""), None)
