"""Which entries of `x` a part changes, and how tensors are named in errors."""

from keras import backend
from keras import ops
from keras import tree

from keras_dlkit._tree import map_with_path


def as_keys(inputs):
    """The argument `inputs` of a part, as a list of keys or `None`."""
    if inputs is None:
        return None
    keys = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not keys or not all(isinstance(key, (str, int)) for key in keys):
        raise ValueError(
            "`inputs` must be None for all, or keys or indices of entries of "
            "`x`, one at least. "
            f"Received: inputs={inputs!r}"
        )
    return keys


def map_inputs(function, x, keys):
    """`function(input, path)` over the entries of `x` that `keys` names."""
    if keys is None:
        return map_with_path(lambda path, leaf: function(leaf, path), x)
    present = [path[0] for path, _ in tree.flatten_with_path(x) if path]
    unknown = [key for key in keys if key not in present]
    if unknown:
        raise ValueError(
            "`inputs` must name entries of `x`. Received: "
            f"inputs={keys}, and `x` with "
            + (f"the entries {present}" if present else "a single tensor")
        )

    def change(path, leaf):
        return function(leaf, path) if path and path[0] in keys else leaf

    return map_with_path(change, x)


def named(kind, path):
    return f"{kind} {'/'.join(map(str, path))!r}" if path else f"the {kind}"


def dtype_of(x):
    return backend.standardize_dtype(x.dtype)


def is_integer(x):
    return "int" in dtype_of(x)


def as_float(x):
    return ops.cast(x, "float32") if dtype_of(x) == "bool" else x
