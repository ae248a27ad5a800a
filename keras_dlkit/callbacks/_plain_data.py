"""Python data as JSON and arrays, and back: no code, no pickles."""

import json

import numpy as np
from keras import ops


class NotPlain(TypeError):
    """For what is no plain data."""


def encode(value, arrays, prefix):
    """A JSON value for it; its arrays go into `arrays`, under `prefix`.

    Args:
        value: Numbers, strings, arrays, tensors, functions of `keras.ops`, and
            lists, tuples and dictionaries of them.
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
    if _is_tensor(value):
        return {"tensor": encode(_to_array(value), arrays, prefix)}
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
    if kind == "tensor":
        return ops.convert_to_tensor(decode(content, arrays))
    if kind == "function":
        return getattr(ops, content)
    if kind == "dict":
        return {decode(k, arrays): decode(v, arrays) for k, v in content}
    values = [decode(v, arrays) for v in content]
    return values if kind == "list" else tuple(values)


def encode_items(items, arrays, prefix):
    """`encode` of each value of a dictionary, without those not plain."""
    found = {}
    for name, value in items.items():
        try:
            found[name] = encode(value, arrays, prefix)
        except NotPlain:
            continue
    return found


def fingerprint(value):
    """Bytes that are the same for the same data alone."""
    arrays = {}
    text = json.dumps(encode(value, arrays, "")).encode()
    parts = [(a.dtype.str, a.shape, a.tobytes()) for a in arrays.values()]
    return text, parts


def _is_tensor(value):
    """One that is kept for what it holds, as the logs of a vector are."""
    return ops.is_tensor(value) and not hasattr(value, "assign")


def _to_array(tensor):
    try:
        array = np.asarray(ops.convert_to_numpy(tensor))
    except RuntimeError as error:  # on JAX, one that was given away
        raise NotPlain(f"no plain data: {error}") from error
    if array.dtype.kind not in "biufcSU":  # NumPy cannot save a bfloat16
        raise NotPlain(f"no plain data: an array of {array.dtype}")
    return array


def _of_keras(function):
    return getattr(ops, getattr(function, "__name__", ""), None)
