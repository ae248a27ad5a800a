"""The loss of a network that says how sure it is of a number."""

import math
from typing import Any

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit.layers.mean_and_scale import NIX
from keras_dlkit.ops._dtypes import as_dtype
from keras_dlkit.ops._dtypes import wide_dtype


@cites(NIX)
@export
class GaussianNegativeLogLikelihood(keras.losses.Loss):
    r"""Negative log-likelihood of targets under predicted normal laws.

    For a mean \(\mu\) and a standard deviation \(s\), in nats and averaged over
    the k targets,

    $$\tfrac12 \log 2\pi + \log s + \frac{(y - \mu)^2}{2 s^2}$$

    Args:
        min_scale: Float, more than 0. A smaller scale counts as this one.
            Defaults to `1e-3`.
        reduction: That of `keras.losses.Loss`.
        name: String. The name of the loss.
        dtype: That of `keras.losses.Loss`.

    `y_true` is `(batch, ..., k)`, `y_pred` `(batch, ..., 2k)`: the means, then
    the scales, as `keras_dlkit.layers.MeanAndScale` gives them. A rank of
    `y_true` that is one less stands for k = 1.

    State: none.
    Runs: in `compute_loss`, once a pass.
    Cost: a few operations on the predictions, in float32 or wider.

    Raises:
        ValueError: In the first step, for predictions that are not twice as
            many as targets.

    Example:

    ```python
    import numpy as np
    import keras_dlkit as dlkit

    loss = dlkit.losses.GaussianNegativeLogLikelihood()
    loss(np.array([[1.0]]), np.array([[1.0, 1.0]]))  # log(2 pi) / 2
    ```

    References:
        - [Nix and Weigend, 1994](https://doi.org/10.1109/ICNN.1994.374138)
    """

    def __init__(
        self,
        min_scale: float = 1e-3,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "gaussian_negative_log_likelihood",
        dtype: Any = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.min_scale = _checks.check_number("min_scale", min_scale)
        if self.min_scale <= 0:
            raise ValueError(
                "`min_scale` must be more than 0. "
                f"Received: min_scale={min_scale!r}"
            )

    def call(self, y_true, y_pred):
        if len(y_true.shape) == len(y_pred.shape) - 1:
            y_true = ops.expand_dims(y_true, -1)
        count = y_true.shape[-1]
        if y_pred.shape[-1] != 2 * count:
            raise ValueError(
                "There must be a mean and a scale for each target: with "
                f"{count} targets predictions of shape (..., {2 * count}). "
                f"Received: y_true of shape {tuple(y_true.shape)}, y_pred of "
                f"shape {tuple(y_pred.shape)}"
            )
        dtype = wide_dtype(y_pred)
        y_pred, y_true = as_dtype(y_pred, dtype), ops.cast(y_true, dtype)
        scale = ops.maximum(y_pred[..., count:], self.min_scale)
        error = (y_true - y_pred[..., :count]) / scale
        values = ops.log(scale) + 0.5 * ops.square(error)
        return ops.mean(values, axis=-1) + 0.5 * math.log(2 * math.pi)

    def get_config(self):
        return {**super().get_config(), "min_scale": self.min_scale}
