"""`DepthwiseConv1D` for the members of an ensemble."""

from typing import Any

import keras

from keras_dlkit._export import export
from keras_dlkit.layers._conv_members import DepthwiseMembers


@export
class DepthwiseConv1DBatchEnsemble(
    DepthwiseMembers, keras.layers.DepthwiseConv1D
):
    r"""A depthwise convolution with a version for each member.

    Member \(m\) sees the kernel times \(r_m\), an entry an input channel, and
    times \(s_m\), an entry an output channel, and adds a bias of its own. The
    members are folded into the batch: it is one convolution.

    Args:
        kernel_size: Integer or tuple of integers.
        ensemble_size: Integer, at least 1. The number of members.
        **kwargs: `rank`, `fast_initializer`, `fast_learning_rate` and `seed`
            as of `keras_dlkit.layers.DenseBatchEnsemble`, and those of
            `keras.layers.DepthwiseConv1D`.

    Call arguments:
        inputs: Tensor of shape
            `(ensemble_size * rows, steps, channels)`, or with
            channels first.

    State: layer weights: `kernel`, shared; `input_scale` and `output_scale` of
        shape `(ensemble_size, rank, channels)` and `bias` of shape
        `(ensemble_size, channels)`.
    Runs: in every forward pass.
    Cost: two products and a sum with a row a member; `rank` times the plain
        layer's.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range;
            when called, for rows that are no multiple of `ensemble_size`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    layer = dlkit.layers.DepthwiseConv1DBatchEnsemble(3, ensemble_size=2)
    layer(keras.ops.ones((2 * 3, 6, 5))).shape  # (6, 4, 5)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
    """

    plain = keras.layers.DepthwiseConv1D

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        ensemble_size: int,
        **kwargs: Any,
    ):
        super().__init__(kernel_size, ensemble_size=ensemble_size, **kwargs)
