"""The dtype of sums, norms and blends, whatever the dtype policy."""

import keras


def wide_dtype(*tensors):
    """`"float64"` if any of the tensors is, else `"float32"`."""
    dtypes = {keras.backend.standardize_dtype(t.dtype) for t in tensors}
    return "float64" if "float64" in dtypes else "float32"
