"""`BatchNormalization` for the members of an ensemble."""

from typing import Any

import keras
from keras import ops

from keras_dlkit._export import export
from keras_dlkit.layers._members import MemberLayer
from keras_dlkit.ops.batch_ensemble import aligned
from keras_dlkit.ops.batch_ensemble import per_member


@export
class BatchNormalizationBatchEnsemble(
    MemberLayer, keras.layers.BatchNormalization
):
    """A batch normalization, each member with its own.

    Scale, shift and moving statistics are the member's own, and in training
    its rows are normalized by their own mean and variance.

    Args:
        ensemble_size: Integer, at least 1. The number of members.
        **kwargs: `fast_learning_rate` as of
            `keras_dlkit.layers.DenseBatchEnsemble`, and those of
            `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: Tensor of shape `(ensemble_size * rows, ...)`.
        training: Boolean.
        mask: `None`, or booleans of the shape of the inputs without the
            channels, which come last then: what counts in the statistics.

    State: layer weights of shape `(ensemble_size, channels)`: `gamma`, `beta`,
        `moving_mean` and `moving_variance`.
    Runs: in every forward pass.
    Cost: that of the plain layer.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range, and
            for `renorm` and `synchronized`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    layer = dlkit.layers.BatchNormalizationBatchEnsemble(ensemble_size=2)
    layer(keras.ops.ones((2 * 3, 5)), training=True).shape  # (6, 5)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
    """

    plain = keras.layers.BatchNormalization
    unknown = (*MemberLayer.unknown, "renorm", "synchronized")

    def __init__(self, ensemble_size: int, **kwargs: Any):
        super().__init__(ensemble_size=ensemble_size, **kwargs)

    def call(self, inputs, training=None, mask=None):
        learns = training and self.trainable

        def normalized(x):  # (members, rows, ...)
            return self._normalized(x, mask, learns)

        outputs = per_member(
            ops.cast(inputs, "float32"), normalized, self.ensemble_size
        )
        return ops.cast(outputs, self.compute_dtype)

    def _normalized(self, x, mask, learns):
        axis = self.axis % (len(x.shape) - 1)

        def wide(values):  # (members, channels), to broadcast
            return aligned(values, axis, len(x.shape) - 1)

        if learns:
            mean, variance = self._statistics(x, mask, axis)
            self._track(self.moving_mean, mean)
            self._track(self.moving_variance, variance)
        else:
            mean, variance = (
                _value(self.moving_mean),
                _value(self.moving_variance),
            )
        scale = ops.rsqrt(variance + self.epsilon)
        if self.scale:
            scale = scale * _value(self.gamma)
        shift = -mean * scale
        if self.center:
            shift = shift + _value(self.beta)
        return x * wide(scale) + wide(shift)

    def _statistics(self, x, mask, axis):
        """Mean and variance, `(members, channels)`."""
        axes = [a for a in range(1, len(x.shape)) if a != axis + 1]
        if mask is None:
            return ops.moments(x, axes=axes)
        weights = ops.reshape(ops.cast(mask, x.dtype), (*ops.shape(x)[:-1], 1))
        total = ops.maximum(ops.sum(weights, axis=axes), 1e-7)
        mean = ops.sum(weights * x, axis=axes) / total
        centred = x - aligned(mean, axis, len(x.shape) - 1)
        return mean, ops.sum(weights * centred**2, axis=axes) / total

    def _track(self, moving, value):
        moving.assign(
            _value(moving) * self.momentum + value * (1.0 - self.momentum)
        )


def _value(variable):
    return ops.cast(ops.convert_to_tensor(variable), "float32")
