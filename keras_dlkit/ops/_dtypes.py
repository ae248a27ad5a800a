"""The dtype of sums, norms and blends, whatever the dtype policy."""

from keras import backend
from keras import ops


def wide_dtype(*tensors):
    """`"float64"` if any of the tensors is, else `"float32"`."""
    dtypes = {backend.standardize_dtype(t.dtype) for t in tensors}
    return "float64" if "float64" in dtypes else "float32"


def as_dtype(x, dtype):
    """`ops.cast`, and nothing at all where there is nothing to do.

    A cast to the same dtype takes microseconds, and there is one a weight.
    """
    dtype = backend.standardize_dtype(dtype)
    same = backend.standardize_dtype(x.dtype) == dtype
    return x if same else ops.cast(x, dtype)
