"""Where inputs come from that a network is to know nothing about."""

import keras
import numpy as np
from keras import ops

from keras_dlkit._tree import leaves
from keras_dlkit._tree import map_leaves
from keras_dlkit.ops._dtypes import wide_dtype


def make_source(ood, scale, seed_generator):
    """The layer that gives unknown inputs, of the shape of known ones."""
    if isinstance(ood, str) and ood == "gaussian":
        return Gaussian(scale, seed_generator)
    if isinstance(ood, dict) and "__rows__" in ood:
        return Rows([Empty(**spec) for spec in ood["__rows__"]], seed_generator)
    if callable(ood):
        return Function(ood)
    if isinstance(ood, str) or not hasattr(ood, "__len__"):
        raise TypeError(
            "`ood` must be 'gaussian', a function of a batch of inputs, or "
            "data: arrays, or a data set of batches of known number (as a "
            "`tf.data.Dataset`, a `keras.utils.PyDataset` or a PyTorch "
            f"DataLoader). Received: ood={ood!r} of type {type(ood)}"
        )
    return Rows(read_rows(ood), seed_generator)


class Source(keras.layers.Layer):
    def __init__(self):
        super().__init__(autocast=False, dtype="float32")
        self.built = True


class Gaussian(Source):
    """The inputs with noise on top, as in the paper."""

    def __init__(self, scale, seed_generator):
        super().__init__()
        self.scale, self.seed_generator = scale, seed_generator

    def call(self, inputs):
        for x in leaves(inputs):
            if "float" not in str(x.dtype) and "uint8" not in str(x.dtype):
                raise ValueError(
                    "`ood='gaussian'` adds noise to the inputs, which must be "
                    "floats, or images of uint8. Received: inputs of dtype "
                    f"{keras.backend.standardize_dtype(x.dtype)}. Give `ood` "
                    "a function of the inputs, or data."
                )
        return map_leaves(self._noisy, inputs)

    def _noisy(self, x):
        dtype = wide_dtype(x)
        noise = keras.random.normal(
            ops.shape(x), seed=self.seed_generator, dtype=dtype
        )
        return ops.cast(x, dtype) + self.scale * noise

    def get_source(self):
        return "gaussian"


class Function(Source):
    """A function of the inputs, or a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        if isinstance(self.function, keras.layers.Layer):
            unknown = self.function(inputs, training=True)
        else:
            unknown = self.function(inputs)
        check_same_shapes(inputs, unknown)
        return unknown

    def get_source(self):
        return keras.saving.serialize_keras_object(self.function)


class Rows(Source):
    """Random rows of data that the model keeps."""

    def __init__(self, arrays, seed_generator):
        super().__init__()
        self.seed_generator = seed_generator
        self.count = arrays[0].shape[0]
        self.rows = [
            self.add_weight(
                shape=array.shape,
                dtype=str(array.dtype),
                initializer="zeros",
                trainable=False,
                autocast=False,
                name=f"rows_{index}",
            )
            for index, array in enumerate(arrays)
        ]
        for variable, array in zip(self.rows, arrays):
            if not isinstance(array, Empty):
                variable.assign(array)

    def call(self, inputs):
        known = leaves(inputs)
        chosen = keras.random.randint(
            (ops.shape(known[0])[0],), 0, self.count, seed=self.seed_generator
        )
        unknown = [
            ops.take(ops.convert_to_tensor(rows), chosen, axis=0)
            for rows in self.rows
        ]
        self.check(inputs)
        unknown = iter([ops.cast(u, x.dtype) for u, x in zip(unknown, known)])
        return map_leaves(lambda _: next(unknown), inputs)

    def check(self, inputs):
        known = [tuple(x.shape[1:]) for x in leaves(inputs)]
        own = [tuple(rows.shape[1:]) for rows in self.rows]
        if known != own:
            _refuse(known, own)

    def get_source(self):
        return {
            "__rows__": [
                {"shape": list(v.shape), "dtype": v.dtype} for v in self.rows
            ]
        }


class Empty:
    """The place of an array that comes with the weights of a file."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = tuple(shape), dtype


def read_rows(data):
    """All rows of arrays, or of a data set of batches, as a list of arrays."""
    if _is_arrays(data):
        arrays = [np.asarray(array) for array in leaves(data)]
    else:
        batches = _batches(data)
        columns = zip(*(leaves(_inputs_of(batch)) for batch in batches))
        arrays = [np.concatenate([_numpy(b) for b in c]) for c in columns]
    if not arrays or min(len(array) for array in arrays) < 1:
        raise ValueError(
            "`ood` must hold at least one row. "
            f"Received: ood={data!r} of type {type(data)}"
        )
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(
            "The arrays of `ood` must have the same number of rows. "
            f"Received: {[array.shape for array in arrays]}"
        )
    narrow = {"float64": "float32", "int64": "int32"}
    return [a.astype(narrow.get(str(a.dtype), a.dtype)) for a in arrays]


def _is_arrays(data):
    if isinstance(data, (list, tuple, dict)):
        return all(hasattr(leaf, "shape") for leaf in leaves(data))
    return hasattr(data, "shape")


def _batches(data):
    count = len(data)
    if hasattr(data, "__getitem__"):
        return [data[index] for index in range(count)]
    return list(data)


def _inputs_of(batch):
    return batch[0] if isinstance(batch, (list, tuple)) else batch


def _numpy(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def check_same_shapes(inputs, unknown):
    known = [tuple(x.shape[1:]) for x in leaves(inputs)]
    own = [tuple(u.shape[1:]) for u in leaves(unknown)]
    if known != own:
        _refuse(known, own)


def _refuse(known, own):
    raise ValueError(
        "What `ood` gives must have the shape of the inputs, a row each. "
        f"Received: inputs of shape {known}, and from `ood` {own}, without "
        "the batch"
    )
