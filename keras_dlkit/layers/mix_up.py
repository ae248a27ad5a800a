"""MixUp (Zhang et al., 2018): train on blends of pairs of samples.

Each row of a batch is blended with another row, inputs and targets alike, by
a share drawn from Beta(alpha, alpha).
"""

from typing import Any

from keras import ops

from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit.layers._inputs import dtype_of
from keras_dlkit.layers._inputs import is_integer
from keras_dlkit.layers._inputs import named
from keras_dlkit.layers.mixing_part import MixingPart
from keras_dlkit.ops.mix_up import ZHANG


@cites(ZHANG)
@export
class MixUp(MixingPart):
    r"""Blends every sample of a batch with another one, targets included.

    With a random permutation \(\pi\) and
    \(\lambda_i \sim \text{Beta}(\alpha, \alpha)\),

    $$x'_i = \lambda_i x_i + (1 - \lambda_i) x_{\pi(i)}, \qquad
      y'_i = \lambda_i y_i + (1 - \lambda_i) y_{\pi(i)}$$

    and with sample weights \(w\), such that for a loss linear in the target
    the weighted loss is the blend of the two weighted losses,

    $$w'_i = \lambda_i w_i + (1 - \lambda_i) w_{\pi(i)}, \qquad
      y'_i = \frac{\lambda_i w_i y_i
        + (1 - \lambda_i) w_{\pi(i)} y_{\pi(i)}}{w'_i}$$

    (where \(w'_i = 0\), the plain blend of the targets with weight 0). One
    \(\lambda\) and one \(\pi\) serve all inputs, targets and weights: images,
    sequences, tabular rows, any structure of them, any batch size.

    Training accuracy is measured on blended targets: compare on validation
    data, where nothing is blended, or say `dominant_metrics=True`.

    Args:
        alpha: Float, at least 0. Strength: 0 blends nothing, 0.2 a little
            (ImageNet), 1 draws \(\lambda\) uniformly (CIFAR). Defaults to
            `0.2`.
        num_classes: `None`, an integer for every output, or a structure like
            `y` with an integer or `None` an output. Integer targets of such
            an output, of shape `(batch, ...)` or `(batch, 1)`, become one-hot
            float32 of shape `(batch, ..., num_classes)`, in training and
            evaluation, so that one categorical loss serves both; so do boolean
            ones, unless their last axis is of `num_classes` already. Targets
            that are floats stay. Integer targets of an output without
            `num_classes` are refused, unless they are `multi_label`.
        inputs: `None` (every entry of `x`), or the keys (for a dict) or
            indices (for a list or tuple) of those to blend. Integer inputs
            such as token ids, and boolean masks, cannot be blended and must
            be left out; uint8 images are blended as float32.
        per_sample: Boolean. One \(\lambda\) a sample, or one a batch.
        probability: Float in `[0, 1]`. The chance that a sample (a batch, with
            `per_sample=False`) is blended at all.
        label_smoothing: Float in `[0, 1]`. Targets of outputs with
            `num_classes` become `(1 - s) * y + s / num_classes`, those of
            `multi_label` outputs `(1 - s) * y + s / 2`, in training only.
        multi_label: Boolean for every output, or a structure like `y` with one
            an output: whether a sample has any number of labels, each 0 or 1,
            for a binary loss. Integer targets of such an output become
            float32 as they are, in training and evaluation.
        dominant_metrics: Boolean. With `True` the metrics of `fit`, in an
            attached model, are measured on the targets of whichever row has
            the larger share, not smoothed. The loss stays that of the blend.
            Of several parts each has to say so, and takes in its turn one of
            the targets that the part before it left.
        active_epochs: `None`, or `(start, end)`, the half-open range of epochs
            in which samples are blended and labels smoothed.
        seed: Integer, or `None` for a random one.
        name: String. The name of the layer.

    Call arguments:
        data: `(x, y)` or `(x, y, sample_weight)`.
        training: Boolean. With `False` integer targets are encoded and
            nothing is blended. Defaults to `True`.

    Returns:
        A tuple of the same structure. Blended inputs and float targets keep
        their dtype; encoded targets are float32, blended weights at least.

    State: layer weights, the random seed (and the epoch); not trainable.
    Runs: in the train step of `keras_dlkit.attach`, once a batch, before both
        passes of SAM; in a data pipeline, wherever it is called.
    Cost: one gather and one blend of the batch; measured in
        `benchmarks/README.md`.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range;
            when called, for integer targets without `num_classes`, integer or
            boolean inputs, batch sizes that differ, and labels outside
            `[0, num_classes)`. These are found in NumPy arrays, in what `fit`
            of an attached model is given as arrays and tensors, and in the
            batches of a data set: on PyTorch and JAX as far as a step gets
            them in the memory of the host, on TensorFlow without XLA, as its
            `InvalidArgumentError`. Elsewhere a compiled step cannot raise, and
            gives NaN targets, and so a NaN loss at once.

    Example:

    ```python
    import numpy as np
    import keras_dlkit as dlkit

    mix = dlkit.layers.MixUp(0.2, num_classes=10, seed=0)
    images = np.random.uniform(size=(32, 28, 28, 1)).astype("float32")
    x, y = mix((images, np.arange(32) % 10))
    y.shape  # (32, 10)
    ```

    References:
        - [Zhang et al., 2018](https://arxiv.org/abs/1710.09412)
    """

    def __init__(
        self,
        alpha: float = 0.2,
        *,
        num_classes: Any = None,
        inputs: Any = None,
        per_sample: bool = True,
        probability: float = 1.0,
        label_smoothing: float = 0.0,
        multi_label: Any = False,
        dominant_metrics: bool = False,
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

    def prepare_input(self, x: Any, path: Any) -> Any:
        """Floats, and uint8 images as float32."""
        dtype = dtype_of(x)
        if dtype == "uint8":
            return ops.cast(x, "float32")
        if is_integer(x) or dtype == "bool":
            raise ValueError(
                "Only floats and uint8 images can be blended; "
                f"{named('input', path)} has dtype {dtype}. Say which entries "
                "of `x` to blend with `inputs=[...]`, or cast this one to "
                "float32."
            )
        return x
