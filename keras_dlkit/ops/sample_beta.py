"""Draws for batch mixing, free of samplers that XLA lacks."""

import math
from typing import Any

import keras
from keras import ops

from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites

DEVROYE = Paper(
    "Random Variate Generation in One Line of Code",
    "Luc Devroye",
    1996,
    "Winter Simulation Conference",
    doi="10.1145/256562.256710",
)


@cites(DEVROYE)
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
