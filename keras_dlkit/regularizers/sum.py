"""Several regularizers in the place of one."""

from typing import Any

import keras
from keras import ops

from keras_dlkit._export import export
from keras_dlkit.ops._dtypes import wide_dtype


@export
class Sum(keras.Regularizer):
    r"""Adds up regularizers, where Keras has a place for one.

    Args:
        regularizers: List of what Keras takes as a regularizer: objects,
            names, functions of a tensor.

    State: none.
    Runs: in every training and evaluation step, once a weight.
    Cost: none of its own.

    Raises:
        ValueError: For an empty list.

    The sum is in float32 (float64 where one of them is) whatever the dtype
    policy. `keras_dlkit.detach` makes it a regularizer of Keras again where
    there is one for the rest: `L1`, `L2` and `L1L2` become an `L1L2`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    energy = dlkit.regularizers.HypersphericalEnergy(0.1)
    layer = keras.layers.Dense(
        8,
        kernel_regularizer=dlkit.regularizers.Sum(
            [keras.regularizers.L2(5e-4), energy]
        ),
    )
    ```
    """

    def __init__(self, regularizers: list[Any]):
        self.regularizers = [keras.regularizers.get(r) for r in regularizers]
        if not self.regularizers or None in self.regularizers:
            raise ValueError(
                "`regularizers` must be a list of one or more. "
                f"Received: regularizers={regularizers}"
            )

    def __call__(self, x):
        values = [ops.convert_to_tensor(r(x)) for r in self.regularizers]
        dtype = wide_dtype(*values)
        values = [ops.cast(value, dtype) for value in values]
        return sum(values[1:], values[0])

    def get_config(self):
        return {
            "regularizers": [
                keras.regularizers.serialize(r) for r in self.regularizers
            ]
        }
