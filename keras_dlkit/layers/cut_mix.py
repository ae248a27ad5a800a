"""CutMix (Yun et al., 2019): train on images with a box of another pasted in.

The label of the other image counts as much as its pixels do.
"""

from typing import Any

from keras import ops
from keras import random
from keras import tree

from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit._tree import map_leaves
from keras_dlkit._tree import map_with_path
from keras_dlkit.layers import _space
from keras_dlkit.layers._mixtures import Paste
from keras_dlkit.layers.mixing_part import MixingPart
from keras_dlkit.ops._dtypes import wide_dtype
from keras_dlkit.ops.cut_mix import YUN
from keras_dlkit.ops.cut_mix import cut_mix_boxes


@cites(YUN)
@export
class CutMix(MixingPart):
    r"""Pastes a box of another sample into every sample of a batch.

    With a random permutation \(\pi\), \(\lambda_i \sim
    \text{Beta}(\alpha, \alpha)\) and a box that is meant to cover the share
    \(1 - \lambda_i\), of the proportions of the image, about a pixel drawn
    uniformly and cut off at the border,

    $$x'_i = x_{\pi(i)} \text{ in the box}, \; x_i \text{ elsewhere}, \qquad
      y'_i = \bar\lambda_i y_i + (1 - \bar\lambda_i) y_{\pi(i)}$$

    with \(\bar\lambda_i\) the exact share of the pixels of \(x_i\). Boxes
    are of whole pixels, with lengths rounded, not truncated, and of odd ones
    nothing is lost; any height and width will do. For all that is cut off,
    \(\bar\lambda\) is larger than \(\lambda\) in the mean.

    Inputs are sequences `(batch, time, channels)`, images `(batch, height,
    width, channels)` or volumes of rank 5; several of them share one box and
    must have the same spatial sizes. Nothing is computed with them: any dtype
    is kept.

    Targets a sample are blended, weights too, as in `MixUp`. Targets a pixel,
    of shape `(batch, *sizes)` or `(batch, *sizes, channels)`, are pasted with
    the box; integers stay integers unless they have `num_classes`. Weights of
    such targets become weights a pixel, `(batch, *sizes)`, and are pasted too
    (for `fit`, Keras itself wants them as `(batch, 1, 1)` at least). Of
    sequences, integer targets of rank 2 are a value a time step, and float
    targets of rank 2 a row of values a sample.

    Args:
        alpha: Float, at least 0. 0 pastes nothing, 1 draws \(\lambda\)
            uniformly. Defaults to `1.0`, as in the paper.
        exact_area: Boolean. With `False` labels are blended by the
            \(\lambda\) that was drawn, not by the share of pixels. The
            reference code corrects it; on images where the object fills the
            middle the correction was seen to hurt.
        num_classes: As in `MixUp`. Integer targets a sample are refused
            without it, integer targets a pixel are not.
        inputs: `None` (every entry of `x`), or the keys or indices of those
            that are images.
        per_sample: Boolean. One box a sample, or one a batch.
        probability: Float in `[0, 1]`. The chance that anything is pasted
            into a sample (a batch, with `per_sample=False`).
        label_smoothing: Float in `[0, 1]`. As in `MixUp`.
        multi_label: Boolean, or one an output. As in `MixUp`.
        dominant_metrics: Boolean. With `True` the metrics of `fit`, in an
            attached model, are measured on the targets of whichever row has
            the larger share; targets a pixel, which are exact, stay pasted.
        data_format: `"channels_last"` or `"channels_first"`, by default that
            of the Keras configuration.
        active_epochs: `None`, or `(start, end)`, the half-open range of epochs
            in which boxes are pasted and labels smoothed.
        seed: Integer, or `None` for a random one.
        name: String. The name of the layer.

    Call arguments:
        data: `(x, y)` or `(x, y, sample_weight)`.
        training: Boolean. With `False` integer targets are encoded and
            nothing is pasted. Defaults to `True`.

    Returns:
        A tuple of the same structure; with several outputs of which some are
        a pixel, `sample_weight` gets the structure of `y`.

    State: layer weights, the random seed (and the epoch); not trainable.
    Runs: in the train step of `keras_dlkit.attach`, once a batch, before both
        passes of SAM; in a data pipeline, wherever it is called.
    Cost: one gather and one selection of the batch; measured in
        `benchmarks/README.md`.

    Raises:
        TypeError, ValueError: As `MixUp`; and for inputs without spatial axes,
            inputs or targets a pixel whose sizes differ.

    Example:

    ```python
    import numpy as np
    import keras_dlkit as dlkit

    mix = dlkit.layers.CutMix(num_classes=10, seed=0)
    images = np.random.uniform(size=(32, 28, 28, 1)).astype("float32")
    x, y = mix((images, np.arange(32) % 10))
    y.shape  # (32, 10)

    # Masks are pasted: they stay integers, for a sparse loss.
    masks = np.random.randint(0, 5, size=(32, 28, 28))
    x, y = dlkit.layers.CutMix(seed=0)((images, masks))
    y.shape  # (32, 28, 28)
    ```

    References:
        - [Yun et al., 2019](https://arxiv.org/abs/1905.04899)
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        exact_area: bool = True,
        num_classes: Any = None,
        inputs: Any = None,
        per_sample: bool = True,
        probability: float = 1.0,
        label_smoothing: float = 0.0,
        multi_label: Any = False,
        dominant_metrics: bool = False,
        data_format: str | None = None,
        active_epochs: tuple[int, int] | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            alpha,
            num_classes=num_classes,
            inputs=inputs,
            per_sample=per_sample,
            probability=probability,
            label_smoothing=label_smoothing,
            multi_label=multi_label,
            dominant_metrics=dominant_metrics,
            active_epochs=active_epochs,
            seed=seed,
            name=name,
        )
        self.exact_area = bool(exact_area)
        self.data_format = _space.as_data_format(data_format)

    def check_model(self, model):
        _space.check_model(model, self.inputs, self.data_format)

    def draw(self, batch_size, seed):
        draw = super().draw(batch_size, seed)
        if draw is None:
            return None
        rows = batch_size if self.per_sample else 1
        # For as many spatial axes as there may be.
        return *draw, random.uniform((rows, 3), seed=seed)

    def prepare(self, x, y, sample_weight):
        if not self._mixes:
            return x, y, sample_weight
        space = self._space(x)

        def prepare_target(path, target):
            axis = space.dense_axis(target, path)
            if axis is not None:
                return space.fitted(target, axis)
            return self.prepare_target(path, target)

        y = map_with_path(prepare_target, y)
        return x, y, _prepare_weights(sample_weight, y, space)

    def mixture(self, x, draw):
        lam, permutation, places = draw
        space = self._space(x)
        boxes, exact = cut_mix_boxes(
            lam, _space.pixels(places, space.sizes), *space.sizes
        )
        lam = exact if self.exact_area else lam
        return Paste(lam, permutation, boxes, space)

    def _space(self, x):
        return _space.space_of(x, self.inputs, self.data_format)

    def get_config(self):
        return {
            **super().get_config(),
            "exact_area": self.exact_area,
            "data_format": self.data_format,
        }


def _prepare_weights(weights, y, space):
    """Weights a pixel for targets a pixel."""
    weights = map_leaves(lambda w: ops.cast(w, wide_dtype(w)), weights)
    dense = {
        path
        for path, target in tree.flatten_with_path(y)
        if target is not None and space.dense_axis(target, path) is not None
    }
    if weights is None or not dense:
        return weights
    if tree.is_nested(y) and not tree.is_nested(weights):
        # No one tensor has the shape of both: one for each output.
        weights = map_leaves(lambda _: weights, y)
    return map_with_path(
        lambda path, w: space.spread(w, path) if path in dense else w, weights
    )
