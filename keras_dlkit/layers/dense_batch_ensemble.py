"""`Dense` for the members of an ensemble."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlkit._export import export
from keras_dlkit.layers._members import FastLayer


@export
class DenseBatchEnsemble(FastLayer, keras.layers.Dense):
    r"""A dense layer of which each member of an ensemble has its own version.

    Member \(m\) sees the kernel \(W \odot r_m s_m^\top\): the kernel \(W\) is
    shared, the vectors \(r_m\) (an entry an input) and \(s_m\) (an entry an
    output) and the bias \(b_m\) are the member's own:

    $$y = s_m \odot ((r_m \odot x) W) + b_m$$

    The rows of a batch are those of the first member, then those of the
    second, and so on. `keras_dlkit.models.BatchEnsemble` gives them that way.

    Args:
        units: Integer. As of `keras.layers.Dense`.
        ensemble_size: Integer, at least 1. The number of members.
        **kwargs: Those of `keras.layers.Dense`, and these, which every layer
            of this kind takes. `rank=1`: the number of terms \(r s^\top\);
            those after the first begin with \(s = 0\).
            `fast_initializer="random_sign"`: that (plus or minus 1),
            `"normal"` (of mean 1 and deviation 0.5), `"ones"` (the members
            begin as one), `"tabm"` (signs for \(r\), ones for \(s\)), or an
            initializer of Keras. `fast_learning_rate=1.0`: what the learning
            rate of \(r\), \(s\) and the biases is multiplied by, where the
            optimizer is a `keras_dlkit.optimizers.LearningRateMultiplier`.
            `seed=None`: an integer, or `None` for a random one, of \(r\) and
            \(s\).

    Call arguments:
        inputs: Tensor of shape `(ensemble_size * rows, ..., channels)`.

    State: layer weights: `kernel`, shared; `input_scale` and `output_scale` of
        shape `(ensemble_size, rank, channels)` and `bias` of shape
        `(ensemble_size, units)`.
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

    layer = dlkit.layers.DenseBatchEnsemble(3, ensemble_size=4)
    layer(keras.ops.ones((4 * 8, 5))).shape  # (32, 3)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
    """

    plain = keras.layers.Dense
    kernels = {"kernel": ""}

    def __init__(self, units: int, ensemble_size: int, **kwargs: Any):
        super().__init__(units, ensemble_size=ensemble_size, **kwargs)

    def build(self, input_shape):
        self.add_scales("kernel", input_shape[-1:], (self.units,))
        super().build(input_shape)

    def call(self, inputs):
        return self.activated(
            self.scaled(
                inputs,
                lambda x: ops.matmul(x, self.kernel),
                biases=self.biases(),
            )
        )

    def kernel_factor(self, name, r, s):
        return np.einsum("ki,ko->io", r, s)
