"""`GroupNormalization` for the members of an ensemble."""

from typing import Any

import keras

from keras_dlkit._export import export
from keras_dlkit.layers._affine_members import AffineMembers


@export
class GroupNormalizationBatchEnsemble(
    AffineMembers, keras.layers.GroupNormalization
):
    """A group normalization, each member with its own scale and shift.

    Args:
        ensemble_size: Integer, at least 1. The number of members.
        **kwargs: `fast_learning_rate` as of
            `keras_dlkit.layers.DenseBatchEnsemble`, and those of
            `keras.layers.GroupNormalization`.

    Call arguments:
        inputs: Tensor of shape `(ensemble_size * rows, ...)`.

    State: layer weights: `gamma` and `beta` of shape
        `(ensemble_size, channels)`.
    Runs: in every forward pass.
    Cost: that of the plain layer.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    layer = dlkit.layers.GroupNormalizationBatchEnsemble(
        ensemble_size=2, groups=2
    )
    layer(keras.ops.ones((2 * 3, 5, 4))).shape  # (6, 5, 4)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
    """

    plain = keras.layers.GroupNormalization

    def __init__(self, ensemble_size: int, **kwargs: Any):
        super().__init__(ensemble_size=ensemble_size, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        # Without weights: what it does, the rows do each by itself.
        self.standardized = keras.layers.GroupNormalization(
            self.groups,
            axis=self.axis,
            epsilon=self.epsilon,
            center=False,
            scale=False,
            dtype="float32",
        )
        self.standardized.build(input_shape)
