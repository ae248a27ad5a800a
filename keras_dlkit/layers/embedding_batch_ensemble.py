"""`Embedding` for the members of an ensemble."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlkit._export import export
from keras_dlkit.layers._members import FastLayer
from keras_dlkit.ops.batch_ensemble import per_member


@export
class EmbeddingBatchEnsemble(FastLayer, keras.layers.Embedding):
    r"""An embedding with a version for each member of an ensemble.

    Member \(m\) sees the table \(E \odot r_m s_m^\top\): a row of \(E\), which
    is shared, times the entry of \(r_m\) for the token and times \(s_m\).

    Args:
        input_dim: Integer. As of `keras.layers.Embedding`.
        output_dim: Integer.
        ensemble_size: Integer, at least 1. The number of members.
        **kwargs: `rank`, `fast_initializer`, `fast_learning_rate` and `seed`
            as of `keras_dlkit.layers.DenseBatchEnsemble`, and those of
            `keras.layers.Embedding`.

    Call arguments:
        inputs: Integers of shape `(ensemble_size * rows, ...)`.

    State: layer weights: `embeddings`, shared; `input_scale` of shape
        `(ensemble_size, rank, input_dim)` and `output_scale` of shape
        `(ensemble_size, rank, output_dim)`.
    Runs: in every forward pass.
    Cost: a second look-up, of `rank` numbers a token, and a product with what
        was found.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range;
            when called, for rows that are no multiple of `ensemble_size`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    layer = dlkit.layers.EmbeddingBatchEnsemble(9, 4, ensemble_size=2)
    layer(keras.ops.ones((2 * 3, 5), "int32")).shape  # (6, 5, 4)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
    """

    plain = keras.layers.Embedding
    kernels = {"embeddings": ""}

    def __init__(
        self, input_dim: int, output_dim: int, ensemble_size: int, **kwargs: Any
    ):
        super().__init__(
            input_dim, output_dim, ensemble_size=ensemble_size, **kwargs
        )

    def build(self, input_shape=None):
        self.add_scales("embeddings", (self.input_dim,), (self.output_dim,))
        super().build(input_shape)

    def call(self, inputs):
        tokens = ops.cast(inputs, "int32")
        found = ops.take(self.embeddings, tokens, axis=0)
        factor = per_member(tokens, self._factors, self.ensemble_size)
        return ops.cast(found * factor, self.compute_dtype)

    def _factors(self, tokens):
        """`(members, rows, ...)` to the same with `output_dim` numbers."""
        r, s = map(ops.convert_to_tensor, self.scales_of("embeddings"))
        members, terms = r.shape[:2]
        # One look-up in the tables of all members, one below the other.
        table = ops.reshape(ops.transpose(r, (0, 2, 1)), (-1, terms))
        first = self.input_dim * ops.arange(members, dtype="int32")
        first = ops.reshape(first, (-1, *(1,) * (len(tokens.shape) - 1)))
        shape = ops.shape(tokens)
        found = ops.take(table, tokens + first, axis=0)
        factors = ops.matmul(ops.reshape(found, (members, -1, terms)), s)
        return ops.reshape(factors, (*shape, self.output_dim))

    def kernel_factor(self, name, r, s):
        return np.einsum("ki,ko->io", r, s)
