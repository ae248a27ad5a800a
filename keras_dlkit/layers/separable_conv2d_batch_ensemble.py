"""`SeparableConv2D` for the members of an ensemble."""

from typing import Any

import keras

from keras_dlkit._export import export
from keras_dlkit.layers._conv_members import SeparableMembers


@export
class SeparableConv2DBatchEnsemble(
    SeparableMembers, keras.layers.SeparableConv2D
):
    r"""A separable convolution with a version for each member.

    Both kernels are shared, and each has its own \(r_m\) and \(s_m\), an entry
    a channel that goes in and out; the bias is the member's own. The members
    are folded into the batch.

    Args:
        filters: Integer. As of `keras.layers.SeparableConv2D`.
        kernel_size: Integer or tuple of integers.
        ensemble_size: Integer, at least 1. The number of members.
        **kwargs: `rank`, `fast_initializer`, `fast_learning_rate` and `seed`
            as of `keras_dlkit.layers.DenseBatchEnsemble`, and those of
            `keras.layers.SeparableConv2D`.

    Call arguments:
        inputs: Tensor of shape
            `(ensemble_size * rows, height, width, channels)`, or with
            channels first.

    State: layer weights: `depthwise_kernel` and `pointwise_kernel`, shared;
        `depthwise_input_scale`, `depthwise_output_scale`, `input_scale` and
        `output_scale` of shape `(ensemble_size, rank, channels)`; `bias` of
        shape `(ensemble_size, filters)`.
    Runs: in every forward pass.
    Cost: four products and a sum with a row a member; `rank` times the plain
        layer's.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range;
            when called, for rows that are no multiple of `ensemble_size`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    layer = dlkit.layers.SeparableConv2DBatchEnsemble(4, 3, ensemble_size=2)
    layer(keras.ops.ones((2 * 3, 6, 6, 5))).shape  # (6, 4, 4, 4)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
    """

    plain = keras.layers.SeparableConv2D

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        ensemble_size: int,
        **kwargs: Any,
    ):
        super().__init__(
            filters, kernel_size, ensemble_size=ensemble_size, **kwargs
        )
