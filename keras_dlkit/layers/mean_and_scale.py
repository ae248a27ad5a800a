"""The last layer of a network that says how sure it is of a number."""

from typing import Any

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites

NIX = Paper(
    "Estimating the mean and variance of the target probability distribution",
    "D. A. Nix and A. S. Weigend",
    1994,
    "IEEE International Conference on Neural Networks",
    doi="10.1109/ICNN.1994.374138",
)


@cites(NIX)
@export
class MeanAndScale(keras.layers.Layer):
    r"""A dense layer for means and standard deviations.

    The outputs are `units` means, then `units` scales, each
    \(\operatorname{softplus}(\cdot)\) + `min_scale`, side by side, as
    `keras_dlkit.losses.GaussianNegativeLogLikelihood` takes them.

    Args:
        units: Integer, at least 1. The number of targets. Defaults to `1`.
        min_scale: Float, at least 0. Defaults to `1e-3`.
        **kwargs: Those of `keras.layers.Layer`.

    State: the weights of one `Dense(2 * units)`.
    Runs: in every forward pass.
    Cost: that of the dense layer. Scales are in float32, whatever the policy.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(16, "relu"),
            dlkit.layers.MeanAndScale(),
        ]
    )
    model.compile("adam", dlkit.losses.GaussianNegativeLogLikelihood())
    ```

    References:
        - [Nix and Weigend, 1994](https://doi.org/10.1109/ICNN.1994.374138)
    """

    def __init__(
        self, units: int = 1, *, min_scale: float = 1e-3, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.units = _checks.check_count("units", units, at_least=1)
        self.min_scale = _checks.check_number(
            "min_scale", min_scale, at_least=0
        )
        self.dense = keras.layers.Dense(2 * self.units, dtype=self.dtype_policy)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        outputs = self.dense(inputs)
        if keras.backend.standardize_dtype(outputs.dtype) != "float64":
            outputs = ops.cast(outputs, "float32")
        mean, scale = ops.split(outputs, 2, axis=-1)
        scale = ops.softplus(scale) + self.min_scale
        return ops.concatenate([mean, scale], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 2 * self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "min_scale": self.min_scale,
        }
