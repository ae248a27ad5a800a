"""A place in a network where hidden values are mixed."""

import contextlib
import contextvars
from typing import Any

import keras
from keras import ops

from keras_dlkit._export import export
from keras_dlkit._tree import map_leaves
from keras_dlkit.ops.mix_up import mix_up

# What to mix in the pass that runs: `{id of the MixPoint: draws}`.
_draws = contextvars.ContextVar("draws", default=None)


@export
class MixPoint(keras.layers.Layer):
    """Marks, in a model of your own, where `ManifoldMixUp` mixes.

    It gives back what it gets, but in the training pass of a model that was
    attached with `ManifoldMixUp(at=...)` of its name: there rows are blended
    as the targets are. Sequential and Functional models need none: `at` can
    name any of their layers.

    Not within a layer that is rematerialised (`keras.RematScope`): it runs
    again outside of the pass.

    Args:
        name: String. The name, which `at` refers to.

    Call arguments:
        inputs: Float tensor of shape `(batch, ...)`, or a structure of such.

    Returns:
        The same structure, with the shapes and dtypes of the inputs.

    State: none.
    Runs: in the forward pass.
    Cost: one gather and one blend of the inputs in training, else nothing.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem = keras.layers.Dense(8, "relu")
            self.middle = dlkit.layers.MixPoint(name="middle")
            self.head = keras.layers.Dense(3)

        def call(self, x):
            return self.head(self.middle(self.stem(x)))

    part = dlkit.layers.ManifoldMixUp(at="middle", num_classes=3)
    model = dlkit.attach(Net(), part)
    ```
    """

    def __init__(self, *, name: str | None = None, **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.supports_masking = True
        self.built = True

    def call(self, inputs):
        draws = self._draws()
        if draws is None:
            return inputs
        if draws.reached:
            raise ValueError(
                "A `MixPoint` must be called once in a pass: targets are mixed "
                f"once. Received: two calls of {self.name!r}. Place one point "
                "where values are to be mixed, outside of what is called twice."
            )
        for draw in draws:
            inputs = map_leaves(lambda x: _mixed(x, *draw, self), inputs)  # noqa: B023
        draws.reached = True
        return inputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Of both rows: what is there in one of them has a share."""
        for _, permutation in self._draws() or ():
            previous_mask = map_leaves(
                lambda m: ops.logical_or(m, ops.take(m, permutation, axis=0)),  # noqa: B023
                previous_mask,
            )
        return previous_mask

    def _draws(self):
        return (_draws.get() or {}).get(id(self))

    def compute_output_shape(self, input_shape):
        return input_shape


class Draws(list):
    """Draws `(lam, permutation)` for a point, and whether it was reached."""

    reached = False


@contextlib.contextmanager
def mixing(draws):
    """Within it, points mix by `draws`, a dict of `MixPoint` to `Draws`."""
    token = _draws.set({id(point): own for point, own in draws.items()})
    try:
        yield
    finally:
        _draws.reset(token)
    for point, own in draws.items():
        if not own.reached:
            raise ValueError(
                f"The `MixPoint` {point.name!r} must be called in the forward "
                "pass of the model: targets were mixed for it. It was not."
            )


def _mixed(x, lam, permutation, point):
    dtype = keras.backend.standardize_dtype(x.dtype)
    if "float" not in dtype:
        raise ValueError(
            "Only floats can be blended. Received: a hidden value of dtype "
            f"{dtype} at {point.name!r}. Mix at another layer."
        )
    rows, partners = x.shape[0], permutation.shape[0]
    if None not in (rows, partners) and rows != partners:
        raise ValueError(
            "Hidden values must have a row for each sample. Received: shape "
            f"{tuple(x.shape)} at {point.name!r}, with a batch of {partners}. "
            "Mix at another layer."
        )
    return mix_up(x, permutation, lam)
