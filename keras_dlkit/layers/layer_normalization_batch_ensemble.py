"""`LayerNormalization` for the members of an ensemble."""

from typing import Any

import keras
from keras import ops

from keras_dlkit._export import export
from keras_dlkit.layers._affine_members import AffineMembers


@export
class LayerNormalizationBatchEnsemble(
    AffineMembers, keras.layers.LayerNormalization
):
    """A layer normalization, each member with its own scale and shift.

    Args:
        ensemble_size: Integer, at least 1. The number of members.
        **kwargs: `fast_learning_rate` as of
            `keras_dlkit.layers.DenseBatchEnsemble`, and those of
            `keras.layers.LayerNormalization`.

    Call arguments:
        inputs: Tensor of shape `(ensemble_size * rows, ...)`.

    State: layer weights: `gamma` and `beta` with an axis of members first.
    Runs: in every forward pass.
    Cost: that of the plain layer.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range and
            for `rms_scaling`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    layer = dlkit.layers.LayerNormalizationBatchEnsemble(ensemble_size=2)
    layer(keras.ops.ones((2 * 3, 5))).shape  # (6, 5)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
    """

    plain = keras.layers.LayerNormalization
    unknown = (*AffineMembers.unknown, "rms_scaling")

    def __init__(self, ensemble_size: int, **kwargs: Any):
        super().__init__(ensemble_size=ensemble_size, **kwargs)

    def standardized(self, inputs):
        return ops.layer_normalization(
            inputs, None, None, self.axis, self.epsilon
        )
