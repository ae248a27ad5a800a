"""CutOut (DeVries and Taylor, 2017): train on images with squares left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops
from keras import random

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit.layers._inputs import as_keys
from keras_dlkit.layers._inputs import dtype_of
from keras_dlkit.layers._inputs import map_inputs
from keras_dlkit.layers._inputs import named
from keras_dlkit.layers._space import Space
from keras_dlkit.layers._space import as_data_format
from keras_dlkit.layers._space import check_model
from keras_dlkit.layers._space import pixels
from keras_dlkit.layers.batch_part import BatchPart
from keras_dlkit.ops._boxes import as_row
from keras_dlkit.ops._boxes import boxes_around
from keras_dlkit.ops.cut_out import DEVRIES
from keras_dlkit.ops.cut_out import cut_out


@cites(DEVRIES)
@export
class CutOut(BatchPart):
    r"""Fills squares of every image of a batch; targets stay as they are.

    The centre of a square is a pixel drawn uniformly, and what lies beyond the
    border is cut off, as in the paper: with \(n\) pixels a side and a square
    of \(s\), half the square or more is in the image, along each axis. Of odd
    sizes nothing is lost.

    Inputs are sequences `(batch, time, channels)`, images `(batch, height,
    width, channels)` or volumes of rank 5, of any dtype, which is kept.
    Several inputs are cut at the same place, in proportion to their sizes.
    Integer targets need no `num_classes`, and sparse losses stay possible.

    Args:
        size: Float in `(0, 1]`, the share of each side of the image that is
            cut (rounded to pixels, one at least), so a rectangle where that is
            no square; or integer, the pixels of all sides. Defaults to `0.5`,
            as in the paper for CIFAR-10 (16 of 32 pixels).
        count: Integer, at least 1. The number of squares in an image; they may
            overlap.
        fill: Number, or a list of numbers, one a channel. What is put in;
            0 is the mean of an image that is standardised. An integer from 0
            to 255 for uint8 images.
        probability: Float in `[0, 1]`. The chance that an image is cut at all:
            with 1, the default, every image is.
        inputs: `None` (every entry of `x`), or the keys or indices of those
            that are images.
        data_format: `"channels_last"` or `"channels_first"`, by default that
            of the Keras configuration.
        active_epochs: `None`, or `(start, end)`, the half-open range of epochs
            in which images are cut.
        seed: Integer, or `None` for a random one.
        name: String. The name of the layer.

    Call arguments:
        data: `(x, y)` or `(x, y, sample_weight)`.
        training: Boolean. With `False` nothing is cut. Defaults to `True`.

    State: layer weights, the random seed (and the epoch); not trainable.
    Runs: in the train step of `keras_dlkit.attach`, once a batch, before both
        passes of SAM; in a data pipeline, wherever it is called.
    Cost: one selection of the batch; measured in `benchmarks/README.md`.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range; when
            called, for inputs without spatial axes, and for a `fill` that the
            inputs cannot hold.

    Example:

    ```python
    import numpy as np
    import keras_dlkit as dlkit

    cut = dlkit.layers.CutOut(8, fill=0.5, seed=0)
    images = np.ones((32, 28, 28, 1), "float32")
    x, y = cut((images, np.arange(32) % 10))
    (x == 0.5).sum(axis=(1, 2, 3))  # 64, less at the border
    ```

    References:
        - [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552)
    """

    def __init__(
        self,
        size: float | int = 0.5,
        *,
        count: int = 1,
        fill: float | Sequence[float] = 0.0,
        probability: float = 1.0,
        inputs: Any = None,
        data_format: str | None = None,
        active_epochs: tuple[int, int] | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(active_epochs=active_epochs, seed=seed, name=name)
        self.size = _check_size(size)
        self.count = _checks.check_count("count", count, at_least=1)
        self.fill = _check_fill(fill)
        self.probability = _checks.check_number(
            "probability", probability, at_least=0, at_most=1
        )
        self.inputs = as_keys(inputs)
        self.data_format = as_data_format(data_format)

    def check_model(self, model):
        check_model(model, self.inputs, self.data_format)

    def draw(self, batch_size, seed):
        if not self.probability:
            return None
        # For as many spatial axes as there may be.
        places = random.uniform((batch_size, 3 * self.count), seed=seed)
        cut = ops.broadcast_to(self.is_active(), (batch_size,))
        if self.probability < 1:
            chance = random.uniform((batch_size,), seed=seed)
            cut = ops.logical_and(cut, chance < self.probability)
        return places, cut

    def apply(self, x, y, sample_weight, draw):
        if draw is None:
            return x, y, sample_weight

        def cut(image, path):
            space = Space(image, path, self.data_format)
            fill = self._fill_for(image, path)
            boxes = self._boxes(space.sizes, *draw)
            return cut_out(image, boxes, fill, axis=space.axis)

        return map_inputs(cut, x, self.inputs), y, sample_weight

    def metric_targets(self, x, y, sample_weight, draw):
        return y  # with no image cut a second time

    def _boxes(self, sizes, places, cut):
        """Of shape `(batch, count, 2 * d)`; empty where nothing is cut."""
        lengths = as_row([self.size] * len(sizes), "int32")
        if isinstance(self.size, float):
            side = ops.round(self.size * as_row(sizes, "float32"))
            lengths = ops.maximum(ops.cast(side, "int32"), 1)
        lengths = ops.where(cut[:, None], lengths, 0)
        boxes = [
            boxes_around(
                pixels(places[:, 3 * i : 3 * i + 3], sizes), lengths, sizes
            )
            for i in range(self.count)
        ]
        return ops.stack(boxes, axis=1)

    def _fill_for(self, image, path):
        values = np.array(self.fill)
        channel_axis = 1 if self.data_format == "channels_first" else -1
        if values.ndim and image.shape[channel_axis] not in (None, values.size):
            raise ValueError(
                "`fill` must be a number, or one a channel. Received: "
                f"fill={self.fill}, and {named('input', path)} of shape "
                f"{tuple(image.shape)}"
            )
        if not _holds(dtype_of(image), values):
            raise ValueError(
                "`fill` must be a value that the input can hold. Received: "
                f"fill={self.fill}, and {named('input', path)} of dtype "
                f"{dtype_of(image)}"
            )
        if values.ndim and channel_axis == 1:
            values = values.reshape(-1, *[1] * (len(image.shape) - 2))
        return values

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "count": self.count,
            "fill": self.fill,
            "probability": self.probability,
            "inputs": self.inputs,
            "data_format": self.data_format,
        }


def _check_size(size):
    if isinstance(size, float):
        size = _checks.check_number("size", size, at_least=0, at_most=1)
        if size == 0:
            raise ValueError(
                "`size` must be above 0: the share of a side, or the pixels. "
                "To cut nothing say `probability=0`. Received: size=0.0"
            )
        return size
    return _checks.check_count("size", size, at_least=1)


def _check_fill(fill):
    if isinstance(fill, (list, tuple)):
        return [_checks.check_number("fill", value) for value in fill]
    return _checks.check_number("fill", fill)


def _holds(dtype, values):
    """Whether a tensor of this dtype can hold all the values."""
    if dtype == "bool":
        return np.isin(values, (0, 1)).all()
    if "int" not in dtype:
        return True
    limits = np.iinfo(dtype)
    inside = (values >= limits.min) & (values <= limits.max)
    return (inside & (values == np.rint(values))).all()
