"""How sparse a model is, and what that saves."""

import dataclasses
import gzip
import math

import keras
import numpy as np

from keras_dlkit import _keras
from keras_dlkit._kernels import is_kernel
from keras_dlkit.sparsity import _models
from keras_dlkit.sparsity._encoding import as_array
from keras_dlkit.sparsity._encoding import encode
from keras_dlkit.sparsity.strip import masked_kernels

PACKED = ("int4", "gptq", "awq")
SPEED = (
    "Zeros within a dense kernel are multiplied like any other number: they "
    "make no layer faster. What is faster is a smaller kernel "
    "(sparsity.shrink), or a runtime with sparse kernels."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel, or the whole model."""

    name: str
    shape: tuple[int, ...]
    size: int
    nonzero: int
    # Bytes: all values, and a bitmask with the values that are not zero.
    dense: int
    compact: int

    @property
    def density(self) -> float:
        return self.nonzero / self.size if self.size else 1.0


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` returns; `print` it."""

    kernels: tuple[Row, ...]
    # All weights, biases and statistics included.
    total: Row
    dense_gzip: int
    compact_gzip: int
    speed: str = SPEED

    @property
    def density(self) -> float:
        """The share of the kernels' weights that are not zero."""
        size = sum(row.size for row in self.kernels)
        live = sum(row.nonzero for row in self.kernels)
        return live / size if size else 1.0

    def __str__(self):
        width = max(len(row.name) for row in (*self.kernels, self.total))
        lines = [
            f"{'':{width}}  {'density':>7}  {'weights':>11}  {'dense':>12}"
            f"  {'compact':>12}"
        ]
        lines += [
            f"{row.name:{width}}  {row.density:7.4f}  {row.size:11,}"
            f"  {row.dense:12,}  {row.compact:12,}"
            for row in (*self.kernels, self.total)
        ]
        lines.append(
            f"{'gzipped':{width}}  {'':7}  {'':11}  {self.dense_gzip:12,}"
            f"  {self.compact_gzip:12,}"
        )
        return "\n".join([*lines, "Sizes in bytes.", self.speed])


def report(model: keras.Model) -> Report:
    """The density of each kernel and of the model, and its size in bytes.

    Sizes are those of the weights, as they are in the model (dense), and as
    `save_compact` writes them: a bitmask and the values that are not zero. Of
    both also gzipped, for that is what a plain file shrinks by. A `Supermask`
    counts as what `strip` makes of it.

    Args:
        model: `keras.Model`, built.

    Returns:
        `Report`: `.kernels`, a row a kernel (`name`, `shape`, `size`,
        `nonzero`, `density`, `dense` and `compact` bytes), `.total`, the
        same of all weights, `.density` of the kernels, `.dense_gzip`,
        `.compact_gzip`, and `.speed`, a word on what zeros do not do.

    Raises:
        TypeError, ValueError: For what is not a model, or is not built, and
            for layers that are quantized to less than a byte a weight.

    State: none.
    Runs: once.
    Cost: gzip of all weights, twice.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    layer = dlkit.layers.Supermask(keras.layers.Dense(64), sparsity=0.8)
    model = keras.Sequential([keras.Input((32,)), layer])
    print(dlkit.sparsity.report(model))
    ```
    """
    model = _models.checked(model, "report")
    _refuse_packed(model)
    kernels, arrays = [], []
    for variable, array in _arrays(model):
        arrays.append(array)
        if is_kernel(variable) or _is_quantized_kernel(variable):
            kernels.append(_row(variable.path, [array], array.shape))
    dense = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    compact = b"".join(encode(a)[1] for a in arrays)
    return Report(
        tuple(kernels),
        _row("all weights", arrays),
        len(gzip.compress(dense, 6)),
        len(gzip.compress(compact, 6)),
    )


def _is_quantized_kernel(variable):
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return dtype == "int8" and variable.name in ("kernel", "embeddings")


def _refuse_packed(model):
    packed = {
        layer.name: layer.quantization_mode
        for layer in _keras.all_layers(model)
        if getattr(layer, "quantization_mode", None) in PACKED
    }
    if packed:
        raise ValueError(
            "`report` counts weights, and of some layers several are in one "
            f"number: call it before `quantize`. Received: {packed}"
        )


def _arrays(model):
    """The weights with their values, as they would be stripped."""
    masked, scores = {}, set()
    for layer in _models.supermasks(model):
        masked.update(masked_kernels(layer))
        scores.update(id(s) for s in layer.scores)
    for variable in model.weights:
        if id(variable) not in scores:
            array = masked.get(id(variable))
            yield variable, as_array(variable) if array is None else array


def _row(name, arrays, shape=()):
    return Row(
        name,
        tuple(shape),
        sum(math.prod(a.shape) for a in arrays),
        sum(int(np.count_nonzero(a)) for a in arrays),
        sum(a.nbytes for a in arrays),
        sum(len(encode(a)[1]) for a in arrays),
    )
