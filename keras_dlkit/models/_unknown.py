"""Where inputs come from that a network is to know nothing about."""

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_dlkit._tree import leaves
from keras_dlkit._tree import map_leaves
from keras_dlkit.ops._dtypes import wide_dtype


def make_source(ood, scale, seed_generator):
    """The layer that gives unknown inputs, of the shape of known ones."""
    if isinstance(ood, str) and ood == "gaussian":
        return Gaussian(scale, seed_generator)
    if isinstance(ood, dict) and "__rows__" in ood:
        specs = ood["__rows__"]
        paths = [tuple(spec["path"]) for spec in specs]
        arrays = [Empty(spec["shape"], spec["dtype"]) for spec in specs]
        return Rows(paths, arrays, seed_generator)
    if callable(ood):
        return Function(ood)
    if isinstance(ood, str) or not hasattr(ood, "__len__"):
        raise TypeError(
            "`ood` must be 'gaussian', a function of a batch of inputs, or "
            "data: arrays, or a data set of batches of known number (as a "
            "`tf.data.Dataset`, a `keras.utils.PyDataset` or a PyTorch "
            f"DataLoader). Received: ood={ood!r} of type {type(ood)}"
        )
    return Rows(*read_rows(ood), seed_generator)


class Source(keras.layers.Layer):
    def __init__(self):
        super().__init__(autocast=False, dtype="float32")
        self.built = True
        self.floats_for_images = True

    def meet(self, stem):
        """Notes whether the stem takes floats in the place of uint8.

        A `keras.Input` of integers would make integers of them again.
        """
        tensors = leaves(getattr(stem, "inputs", None) or [])
        self.floats_for_images = all("float" in t.dtype for t in tensors)

    def check(self, inputs):
        """Raises for inputs unlike what it gives, and draws nothing.

        Args:
            inputs: A batch, or what has its shapes and dtypes.
        """
        try:
            specs = map_leaves(
                lambda x: keras.KerasTensor((None, *x.shape[1:]), _dtype(x)),
                inputs,
            )
        except (AttributeError, TypeError, ValueError):  # not of arrays
            return
        try:
            self(specs)
        except ValueError:
            raise
        except Exception:  # not to be traced: the step finds out
            pass


class Gaussian(Source):
    """The inputs with noise on top, as in the paper."""

    def __init__(self, scale, seed_generator):
        super().__init__()
        self.scale, self.seed_generator = scale, seed_generator

    def call(self, inputs):
        for _, _, dtype in _places(inputs):
            is_image = dtype == "uint8" and self.floats_for_images
            if "float" not in dtype and not is_image:
                raise ValueError(
                    "`ood='gaussian'` adds noise to the inputs, which must be "
                    "floats, or images of uint8 with a stem that takes floats "
                    "(a `keras.Input` of float32, then `Rescaling`). Received: "
                    f"inputs of dtype {dtype}. Give `ood` a function of the "
                    "inputs, or data."
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
        _check_fits(inputs, _places(unknown), self.floats_for_images)
        return unknown

    def get_source(self):
        return keras.saving.serialize_keras_object(self.function)


class Rows(Source):
    """Random rows of data that the model keeps."""

    def __init__(self, paths, arrays, seed_generator):
        super().__init__()
        self.paths, self.seed_generator = tuple(paths), seed_generator
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
        self.awaits_weights = any(isinstance(array, Empty) for array in arrays)
        for variable, array in zip(self.rows, arrays):
            if not isinstance(array, Empty):
                variable.assign(array)

    def check(self, inputs):
        if self.awaits_weights and not self._any_value():
            raise ValueError(
                "The rows of `ood` are weights, and come with those of a file,"
                " not with a config. Received: rows that are all 0, of a model"
                " made by `from_config` or `clone_model`. Copy the weights of "
                "the other model, or give `ood` to a new one."
            )
        super().check(inputs)

    def _any_value(self):
        try:
            return any(ops.convert_to_numpy(v).any() for v in self.rows)
        except (AttributeError, NotImplementedError, TypeError):  # in a graph
            return True

    def call(self, inputs):
        _check_fits(
            inputs,
            [
                (path, tuple(rows.shape[1:]), rows.dtype)
                for path, rows in zip(self.paths, self.rows)
            ],
        )
        known = leaves(inputs)
        chosen = keras.random.randint(
            (ops.shape(known[0])[0],), 0, self.count, seed=self.seed_generator
        )
        unknown = iter(
            [
                ops.cast(
                    ops.take(ops.convert_to_tensor(rows), chosen, axis=0),
                    x.dtype,
                )
                for rows, x in zip(self.rows, known)
            ]
        )
        return map_leaves(lambda _: next(unknown), inputs)

    def get_source(self):
        return {
            "__rows__": [
                {"path": list(path), "shape": list(v.shape), "dtype": v.dtype}
                for path, v in zip(self.paths, self.rows)
            ]
        }


class Empty:
    """The place of an array that comes with the weights of a file."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = tuple(shape), dtype


def read_rows(data):
    """All rows of arrays, or of a data set of batches: paths and arrays."""
    if _is_arrays(data):
        batches = [data]
    else:
        batches = [_inputs_of(batch) for batch in _batches(data)]
    columns = zip(*map(leaves, batches))
    arrays = [np.concatenate([*map(_rows_of, c)]) for c in columns]
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
    leaves_of_one = tree.flatten_with_path(batches[0])
    return [path for path, leaf in leaves_of_one if leaf is not None], [
        a.astype(narrow.get(str(a.dtype), a.dtype)) for a in arrays
    ]


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


def _rows_of(tensor):
    array = np.asarray(ops.convert_to_numpy(tensor))
    if not array.ndim:
        raise ValueError(
            "The inputs of a batch of `ood` must be arrays, with an axis of "
            f"rows first. Received: {tensor!r}"
        )
    return array


def _places(structure):
    """Path, shape of a row and dtype of all leaves."""
    return [
        (path, tuple(getattr(leaf, "shape", ()))[1:], _dtype(leaf))
        for path, leaf in tree.flatten_with_path(structure)
        if leaf is not None
    ]


def _dtype(leaf):
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return keras.backend.standardize_dtype(leaf.dtype)


def _check_fits(inputs, own, floats_for_images=False):
    """Raises unless places are those of the inputs, up to bits of a dtype."""
    known = _places(inputs)
    if len(known) != len(own) or not all(
        path == own_path
        and _same_shape(shape, own_shape)
        and _same_kind(dtype, own_dtype, floats_for_images)
        for (path, shape, dtype), (own_path, own_shape, own_dtype) in zip(
            known, own
        )
    ):
        raise ValueError(
            "What `ood` gives must have the shape of the inputs, a row each, "
            "their structure and their kind of dtype. Received: inputs of "
            f"{_named(known)}; from `ood` {_named(own)}, without the batch"
        )


def _same_shape(known, own):
    return len(known) == len(own) and all(
        a == b or None in (a, b) for a, b in zip(known, own)
    )


def _same_kind(known, own, floats_for_images):
    if known == "uint8":  # images: other integers have no room in it
        return own == known or (floats_for_images and "float" in own)
    return known == own or any(
        kind in known and kind in own for kind in ("float", "int")
    )


def _named(places):
    return ", ".join(
        f"{'/'.join(map(str, path))}{': ' if path else ''}{shape} {dtype}"
        for path, shape, dtype in places
    )
