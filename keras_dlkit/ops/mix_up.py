"""MixUp as a pure function of tensors."""

import math
from typing import Any

import keras
from keras import ops

from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.ops._in_place import changes_in_place

ZHANG = Paper(
    "mixup: Beyond Empirical Risk Minimization",
    "Hongyi Zhang and Moustapha Cisse and Yann N. Dauphin and David Lopez-Paz",
    2018,
    "International Conference on Learning Representations",
    arxiv="1710.09412",
)


@cites(ZHANG)
def mix_up(values: Any, permutation: Any, lam: Any) -> Any:
    r"""Mixes every row of a batch with another: \(\lambda x_i + (1-\lambda)
    x_{\pi(i)}\).

    Args:
        values: Float tensor of shape `(batch, ...)`.
        permutation: Integer tensor of shape `(batch,)`, the partner of each
            row.
        lam: Scalar, or float tensor of shape `(batch,)`, in `[0, 1]`: the
            share of the row itself. Where it is 1 the row comes back as it
            was, bit for bit, if its difference to its partner is finite.

    Returns:
        Tensor with the shape and dtype of `values`.

    Example:

    ```python
    from keras import ops
    import keras_dlkit as dlkit

    x = ops.array([[0.0], [10.0]])
    dlkit.ops.mix_up(x, ops.array([1, 0]), 0.75)  # [[2.5], [7.5]]
    ```

    References:
        - [Zhang et al., 2018](https://arxiv.org/abs/1710.09412)
    """
    values = ops.convert_to_tensor(values)
    dtype = keras.backend.standardize_dtype(values.dtype)
    if "float" not in dtype:
        raise ValueError(
            "`values` must be floats to be blended: cast images to float32, "
            f"and make classes one-hot. Received: values of dtype {dtype}"
        )
    lam = ops.convert_to_tensor(lam, dtype="float32")
    if changes_in_place(values) and not values.is_contiguous():
        # A convolution gives channels last as a view of channels first: mixed
        # in the order of memory nothing is copied, here and in the next layer.
        axes = sorted(range(values.ndim), key=values.stride, reverse=True)
        ordered = values.permute(axes)
        if axes[0] == 0 and ordered.is_contiguous():
            back = sorted(range(values.ndim), key=axes.__getitem__)
            return mix_up(ordered, permutation, lam).permute(back)
    shape = ops.shape(values)
    if all(isinstance(size, int) for size in shape[1:]):
        # Rows as vectors: gathered and broadcast in the fastest way.
        values = ops.reshape(values, (-1, math.prod(shape[1:])))
    mixed = ops.take(values, permutation, axis=0)
    if changes_in_place(mixed):  # one pass over memory
        mixed.lerp_(values, like_rows(lam, values).to(values.dtype))
    else:
        other = ops.cast(like_rows(1.0 - lam, values), values.dtype)
        mixed = values + other * (mixed - values)
    return ops.reshape(mixed, shape)


def like_rows(rows, values):
    """Reshapes `(batch,)` to broadcast along the rows of `values`."""
    if len(rows.shape) == 0:
        return rows
    return ops.reshape(rows, (-1,) + (1,) * (len(values.shape) - 1))
