"""A tensor as bytes: a bit a place and the values that are not zero."""

import keras
import ml_dtypes
import numpy as np
from keras import ops


def as_array(variable):
    """The value in the dtype that it has; torch's NumPy has no bfloat16."""
    name = keras.backend.standardize_dtype(variable.dtype)
    array = np.asarray(ops.convert_to_numpy(variable.value))
    return array.astype(as_numpy_dtype(name), copy=False)


def as_numpy_dtype(name):
    if hasattr(ml_dtypes, name):
        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def encode(array):
    """`(kind, bytes)`, the shortest form.

    - `"raw"`: all values.
    - `"sparse"`: a bit a place, and the values that are not zero.
    - `"signed"`: a bit a place, a bit a zero for its sign, and these values.
      Weights times a mask are negative zeros for half of them.
    """
    array = np.ascontiguousarray(array).reshape(-1)
    live, negative = _places(array)
    if live is None:
        return "raw", array.tobytes()
    signs = np.packbits(negative[~live]).tobytes() if negative.any() else b""
    data = np.packbits(live).tobytes() + signs + array[live].tobytes()
    if len(data) >= array.nbytes:
        return "raw", array.tobytes()
    return ("signed" if signs else "sparse"), data


def _places(array):
    """Where values are not zero, and where they are negative zeros.

    By their bits: a process may take tiny numbers for zeros.
    """
    if array.itemsize not in (1, 2, 4, 8):
        return None, None
    bits = array.view(f"u{array.itemsize}")
    negative = np.zeros(array.shape, bool)
    if array.dtype.name in ("float16", "bfloat16", "float32", "float64"):
        negative = bits == 1 << (8 * array.itemsize - 1)
    return (bits != 0) & ~negative, negative


def decode(kind, data, shape, dtype):
    """The array that `encode` had."""
    dtype, size = as_numpy_dtype(dtype), int(np.prod(shape, dtype="int64"))
    if kind == "raw":
        return np.frombuffer(data, dtype).reshape(shape)
    live, data = _bits(data, size)
    array = np.zeros(size, dtype)
    if kind == "signed":
        signs, data = _bits(data, int(size - live.sum()))
        array[~live] = np.where(signs, -0.0, 0.0).astype(dtype)
    array[live] = np.frombuffer(data, dtype)
    return array.reshape(shape)


def _bits(data, size):
    length = (size + 7) // 8
    bits = np.unpackbits(np.frombuffer(data[:length], "uint8"), count=size)
    return bits.astype(bool), data[length:]
