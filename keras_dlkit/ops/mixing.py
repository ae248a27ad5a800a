"""Batch mixing as pure functions of tensors, free of samplers XLA lacks."""

import math
from typing import Any

import keras
from keras import ops


def mix_up(values: Any, permutation: Any, lam: Any) -> Any:
    r"""Mixes every row of a batch with another: \(\lambda x_i + (1-\lambda)
    x_{\pi(i)}\).

    Args:
        values: Float tensor of shape `(batch, ...)`.
        permutation: Integer tensor of shape `(batch,)`, the partner of each
            row.
        lam: Scalar, or float tensor of shape `(batch,)`, in `[0, 1]`: the
            share of the row itself. Where it is 1 the row comes back as it
            was, bit for bit, if its partner is finite.

    Returns:
        Tensor with the shape and dtype of `values`.

    Example:

    ```python
    from keras import ops
    import keras_dlkit as dlkit

    x = ops.array([[0.0], [10.0]])
    dlkit.ops.mix_up(x, ops.array([1, 0]), 0.75)  # [[2.5], [7.5]]
    ```
    """
    values = ops.convert_to_tensor(values)
    lam = ops.convert_to_tensor(lam, dtype="float32")
    partners = ops.take(values, permutation, axis=0)
    own, other = (
        ops.cast(_like_rows(share, values), values.dtype)
        for share in (lam, 1.0 - lam)
    )
    return own * values + other * partners


def _like_rows(share, values):
    """Reshapes `(batch,)` to broadcast along the rows of `values`."""
    if len(share.shape) == 0:
        return share
    return ops.reshape(share, (-1,) + (1,) * (len(values.shape) - 1))


def sample_beta(alpha: float, shape: tuple, seed: Any) -> Any:
    r"""Draws from the symmetric Beta(alpha, alpha) distribution.

    The closed form (no gamma sampler, which XLA lacks in TensorFlow, and no
    rejection): with \(u, v\) uniform on \((0, 1)\) and \(s\) a random sign,

    $$t^2 = (u^{-1/\alpha} - 1)\cos^2(2 \pi v), \qquad
      \lambda = \tfrac12 \Bigl(1 + \frac{s}{\sqrt{1 + 1/t^2}}\Bigr)$$

    Args:
        alpha: Float above 0. 1 is the uniform distribution, less is U-shaped.
        shape: Tuple of integers (or scalar integer tensors).
        seed: Integer or `keras.random.SeedGenerator`.

    Returns:
        float32 tensor of the given shape, in `[0, 1]`.

    References:
        - [Devroye, 1996](https://doi.org/10.1145/256562.256710), the
          one-line method for the symmetric beta distribution, after Ulrich.
    """
    if not alpha > 0:
        raise ValueError(f"`alpha` must be above 0. Received: alpha={alpha}")
    draws = keras.random.uniform((3, *shape), dtype="float32", seed=seed)
    u, v, sign = draws[0], draws[1], draws[2]
    # expm1 keeps the digits that u**(-1/alpha) - 1 loses for large alpha; both
    # ends are safe: u = 0 gives lam 0 or 1, t = 0 gives lam 1/2.
    t_squared = ops.expm1(-ops.log(u) / alpha) * ops.square(
        ops.cos(2.0 * math.pi * v)
    )
    distance = 1.0 / ops.sqrt(1.0 + 1.0 / t_squared)
    return 0.5 * (1.0 + ops.where(sign < 0.5, -distance, distance))


def sample_permutation(size, seed):
    """Draws a random permutation of `range(size)`, `size` known or dynamic."""
    return ops.argsort(keras.random.uniform((size,), seed=seed))
