"""CutOut as a pure function of tensors."""

from typing import Any

import keras
from keras import ops

from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.ops._boxes import choose

DEVRIES = Paper(
    "Improved Regularization of Convolutional Neural Networks with Cutout",
    "Terrance DeVries and Graham W. Taylor",
    2017,
    arxiv="1708.04552",
)


@cites(DEVRIES)
def cut_out(images: Any, boxes: Any, fill: Any = 0.0, *, axis: int = 1) -> Any:
    """Fills boxes of every row of a batch.

    Args:
        images: Tensor of shape `(batch, *sizes, ...)`: sequences, images or
            volumes, of any dtype.
        boxes: Integer tensor of shape `(batch, count, 2 * d)`: for each box
            `d` starts, then `d` ends, half-open. An empty box fills nothing.
        fill: Number, or tensor that broadcasts to `images`, such as one a
            channel where these come last.
        axis: Integer. The first of the `d` spatial axes: 2 where the channels
            come first.

    Returns:
        Tensor with the shape and dtype of `images`.

    Example:

    ```python
    from keras import ops
    import keras_dlkit as dlkit

    images = ops.ones((1, 2, 2, 1))
    dlkit.ops.cut_out(images, ops.array([[[0, 0, 1, 2]]]))[0, :, :, 0]
    # [[0, 0], [1, 1]]
    ```

    References:
        - [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552)
    """
    images = ops.convert_to_tensor(images)
    boxes = ops.convert_to_tensor(boxes, dtype="int32")
    dtype = keras.backend.standardize_dtype(images.dtype)
    filled = ops.broadcast_to(ops.cast(fill, dtype), ops.shape(images))
    return choose(boxes, filled, images, axis)
