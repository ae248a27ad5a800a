"""The time as one more channel of a state."""

import keras
from keras import ops

from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites

KONG = Paper(
    "SDE-Net: Equipping Deep Neural Networks with Uncertainty Estimates",
    "Lingkai Kong and Jimeng Sun and Chao Zhang",
    2020,
    "International Conference on Machine Learning",
    arxiv="2008.10546",
)


@cites(KONG)
@export
class ConcatenateTime(keras.layers.Layer):
    """Puts the time in front of the channels: for a drift that depends on it.

    A drift net of two inputs, the state and the time, is given both by
    `SDEBlock`. This layer makes one tensor of them. It takes the arguments of
    `keras.layers.Layer`.

    It has no `data_format`, and saves none: channels are where
    `keras.config.image_data_format()` says when it is called, and last in
    states of rank 2. So it fits layers around it that are left at that.

    Call arguments:
        inputs: The state, `(batch, ..., channels)` or `(batch, channels, ...)`,
            and the time, `(batch, 1)`.

    State: none.
    Runs: in every forward pass.
    Cost: one concatenation.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    state, time = keras.Input((6, 6, 8)), keras.Input((1,))
    x = dlkit.layers.ConcatenateTime()([state, time])
    x = keras.layers.Conv2D(8, 3, padding="same")(x)
    drift = keras.Model([state, time], x)
    ```

    References:
        - [Kong et al., 2020](https://arxiv.org/abs/2008.10546)
    """

    def build(self, input_shape):
        if len(input_shape) != 2:
            raise ValueError(
                "ConcatenateTime takes the state and the time. "
                f"Received: inputs of shapes {input_shape}"
            )

    def call(self, inputs):
        state, time = inputs
        axis = self._axis(len(state.shape))
        shape = list(ops.shape(state))
        shape[axis] = 1
        ones = (1,) * (len(shape) - 1)
        channel = ops.broadcast_to(ops.reshape(time, (-1, *ones)), shape)
        return ops.concatenate(
            [ops.cast(channel, state.dtype), state], axis=axis
        )

    @staticmethod
    def _axis(rank):
        first = keras.config.image_data_format() == "channels_first"
        return 1 if first and rank > 2 else rank - 1

    def compute_output_shape(self, input_shape):
        shape = list(input_shape[0])
        axis = self._axis(len(shape))
        if shape[axis] is not None:
            shape[axis] += 1
        return tuple(shape)
