"""What the fast weights of an ensemble begin with."""

import keras
import numpy as np
from keras import ops

KINDS = ("random_sign", "normal", "ones", "tabm")
# Of `"normal"`, around 1.
DEVIATION = 0.5


def checked(initializer):
    """A kind by name, or an initializer of Keras."""
    if isinstance(initializer, str) and initializer in KINDS:
        return initializer
    try:
        return keras.initializers.get(initializer)
    except ValueError:
        pass
    raise ValueError(
        f"`fast_initializer` must be one of {list(KINDS)}, or an initializer "
        f"of Keras. Received: fast_initializer={initializer!r}"
    )


def serialized(initializer):
    if isinstance(initializer, str):
        return initializer
    return keras.initializers.serialize(initializer)


class FastDraw:
    """An initializer of scales `(members, terms, ...)`.

    Terms after the first begin with `s` = 0: they add nothing yet, and learn,
    for their `r` is not 0.

    Args:
        kind: As of `checked`.
        side: `"input"` (r) or `"output"` (s).
        seed: List of integers: the same on every backend.
    """

    def __init__(self, kind, side, seed):
        self.side, self.seed = side, seed
        if kind == "tabm":
            kind = "random_sign" if side == "input" else "ones"
        elif not isinstance(kind, str):
            # The same object would give the same values again.
            kind = type(kind).from_config(kind.get_config())
        self.kind = kind

    def __call__(self, shape, dtype=None):
        if not isinstance(self.kind, str):
            values = self.kind(shape, dtype=dtype)
        else:
            values = ops.convert_to_tensor(self._drawn(shape), dtype=dtype)
        if self.side == "output" and shape[1] > 1:
            first = np.arange(shape[1]).reshape(-1, *(1,) * (len(shape) - 2))
            values = values * ops.cast(first == 0, values.dtype)
        return values

    def _drawn(self, shape):
        rng = np.random.default_rng(self.seed)
        signs = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
        if self.kind == "normal":
            return rng.normal(1.0, DEVIATION, shape)
        if self.kind == "ones":
            signs[:, 0] = 1.0
        return signs
