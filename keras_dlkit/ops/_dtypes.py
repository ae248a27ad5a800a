"""The dtype of sums, norms and blends, whatever the dtype policy."""

import functools

from keras import backend
from keras import ops

# There is one look a weight, and Keras takes microseconds for each.
_name = functools.cache(backend.standardize_dtype)


def wide_dtype(*tensors):
    """`"float64"` if any of the tensors is, else `"float32"`."""
    dtypes = {_name(t.dtype) for t in tensors}
    return "float64" if "float64" in dtypes else "float32"


def as_dtype(x, dtype):
    """`ops.cast`, and nothing at all where there is nothing to do."""
    dtype = _name(dtype)
    return x if _name(x.dtype) == dtype else ops.cast(x, dtype)
