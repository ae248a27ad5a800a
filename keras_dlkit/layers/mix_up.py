"""MixUp (Zhang et al., 2018): train on blends of pairs of samples.

Each row of a batch is blended with another row, inputs and targets alike, by
a share drawn from Beta(alpha, alpha).
"""

from typing import Any

import numpy as np
from keras import backend
from keras import ops
from keras import random
from keras import tree

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._tree import map_leaves
from keras_dlkit._tree import map_with_path
from keras_dlkit.layers.batch_part import BatchPart
from keras_dlkit.ops._dtypes import wide_dtype
from keras_dlkit.ops.mixing import mix_up
from keras_dlkit.ops.mixing import sample_beta
from keras_dlkit.ops.mixing import sample_permutation


@export
class MixUp(BatchPart):
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
    data, where nothing is blended.

    Args:
        alpha: Float, at least 0. Strength: 0 blends nothing, 0.2 a little
            (ImageNet), 1 draws \(\lambda\) uniformly (CIFAR). Defaults to
            `0.2`.
        num_classes: `None`, an integer for every output, or a structure like
            `y` with an integer or `None` an output. Integer targets of such
            an output, of shape `(batch, ...)` or `(batch, 1)`, become one-hot
            float32 of shape `(batch, ..., num_classes)`, in training and
            evaluation, so that one categorical loss serves both. Targets that
            are floats already stay. Integer targets of an output without
            `num_classes` are refused.
        inputs: `None` (every entry of `x`), or the keys (for a dict) or
            indices (for a list or tuple) of those to blend. Integer inputs
            such as token ids, and boolean masks, cannot be blended and must
            be left out; uint8 images are blended as float32.
        per_sample: Boolean. One \(\lambda\) a sample, or one a batch.
        probability: Float in `[0, 1]`. The chance that a sample (a batch, with
            `per_sample=False`) is blended at all.
        label_smoothing: Float in `[0, 1]`. Targets of outputs with
            `num_classes` become `(1 - s) * y + s / num_classes`, in training
            only.
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
            boolean inputs, batch sizes that differ, and, for NumPy arrays and
            in `fit` of an attached model, labels outside
            `[0, num_classes)`. In a compiled step, which cannot raise, a label
            out of range gives NaN targets, and so a NaN loss at once.

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
        active_epochs: tuple[int, int] | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(active_epochs=active_epochs, seed=seed, name=name)
        self.alpha = _checks.check_number("alpha", alpha, at_least=0)
        for count in tree.flatten(num_classes):
            if count is not None:
                _checks.check_count("num_classes", count, at_least=2)
        self.num_classes = num_classes
        self.inputs = _as_keys(inputs)
        self.per_sample = bool(per_sample)
        self.probability = _checks.check_number(
            "probability", probability, at_least=0, at_most=1
        )
        self.label_smoothing = _checks.check_number(
            "label_smoothing", label_smoothing, at_least=0, at_most=1
        )
        if self.label_smoothing and not self.encodes():
            raise ValueError(
                "`label_smoothing` needs `num_classes`, to know the targets "
                "that are classes. Received: "
                f"label_smoothing={label_smoothing}, num_classes={num_classes}"
            )

    def encodes(self, output=None):
        classes = self.num_classes
        if output is not None and tree.is_nested(classes):
            classes = dict(tree.flatten_with_path(classes)).get((output,))
        return any(n is not None for n in tree.flatten(classes))

    @property
    def _blends(self):
        return self.alpha > 0 and self.probability > 0

    # Randomness: the share of the row itself and its partner.

    def draw(self, batch_size, seed):
        if not self._blends:
            return None
        shape = (batch_size,) if self.per_sample else (1,)
        lam = sample_beta(self.alpha, shape, seed)
        keep = ops.logical_not(self.is_active())
        if self.probability < 1:
            chance = random.uniform(shape, seed=seed)
            keep = ops.logical_or(keep, chance >= self.probability)
        return ops.where(keep, 1.0, lam), sample_permutation(batch_size, seed)

    # The batch.

    def apply(self, x, y, sample_weight, draw):
        y = self._smooth(y)
        if draw is None:
            return x, y, sample_weight
        lam, permutation = draw
        if sample_weight is None:
            y = map_leaves(lambda t: _blend_target(t, permutation, lam), y)
        else:
            y, sample_weight = _blend_weighted(
                y, sample_weight, permutation, lam
            )
        return self._blend_inputs(x, permutation, lam), y, sample_weight

    def _blend_inputs(self, x, permutation, lam):
        keys = [path[0] for path, _ in tree.flatten_with_path(x) if path]
        unknown = [key for key in self.inputs or () if key not in keys]
        if unknown:
            raise ValueError(
                "`inputs` must name entries of `x`. Received: "
                f"inputs={self.inputs}, and `x` with "
                + (f"the entries {keys}" if keys else "a single tensor")
            )

        def blend(path, leaf):
            if not self._takes_input(path):
                return leaf
            return mix_up(_as_image(leaf, path), permutation, lam)

        return map_with_path(blend, x)

    def _takes_input(self, path):
        return self.inputs is None or (bool(path) and path[0] in self.inputs)

    # Targets.

    def encode(self, y):
        return self._map_targets(_one_hot, y)

    def check_targets(self, y):
        self._map_targets(_check_range, y)

    def _smooth(self, y):
        if not self.label_smoothing:
            return y
        share = ops.where(self.is_active(), self.label_smoothing, 0.0)

        def smooth(target, classes, path):
            if classes is None:
                return target
            if target.shape[-1] != classes:
                raise ValueError(
                    "Only one-hot targets can be smoothed. Received: "
                    f"{_named('target', path)} of shape {tuple(target.shape)} "
                    f"with num_classes={classes}. Give `num_classes` as a "
                    "structure, with None for outputs that are no classes."
                )
            share_ = ops.cast(share, target.dtype)
            return (1 - share_) * target + share_ / classes

        return self._map_targets(smooth, y)

    def _map_targets(self, function, y):
        """`function(target, classes, path)` over the outputs of `y`."""
        if y is None or (not self.encodes() and not self._blends):
            return y
        if not tree.is_nested(self.num_classes):
            return map_with_path(
                lambda path, t: function(t, self.num_classes, path), y
            )
        try:
            # Lists and tuples, and the order of keys, need not agree.
            tree.assert_same_paths(self.num_classes, y)
        except ValueError as error:
            raise ValueError(
                "`num_classes` must have the structure of the targets. "
                f"Received: num_classes={self.num_classes}, targets "
                f"{map_leaves(lambda t: t.shape, y)}"
            ) from error
        classes = dict(tree.flatten_with_path(self.num_classes))
        return map_with_path(
            lambda path, t: function(t, classes[path], path), y
        )

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "num_classes": self.num_classes,
            "inputs": self.inputs,
            "per_sample": self.per_sample,
            "probability": self.probability,
            "label_smoothing": self.label_smoothing,
        }


def _as_keys(inputs):
    if inputs is None:
        return None
    keys = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not all(isinstance(key, (str, int)) for key in keys):
        raise ValueError(
            "`inputs` must be None, or keys or indices of entries of `x`. "
            f"Received: inputs={inputs!r}"
        )
    return keys


def _is_integer(x):
    dtype = backend.standardize_dtype(x.dtype)
    return "int" in dtype


def _is_boolean(x):
    return backend.standardize_dtype(x.dtype) == "bool"


def _named(kind, path):
    return f"{kind} {'/'.join(map(str, path))!r}" if path else f"the {kind}"


def _as_image(x, path):
    """Inputs that can be blended: floats, and uint8 images as float32."""
    dtype = backend.standardize_dtype(x.dtype)
    if dtype == "uint8":
        return ops.cast(x, "float32")
    if _is_integer(x) or _is_boolean(x):
        raise ValueError(
            f"Only floats and uint8 images can be blended; "
            f"{_named('input', path)}"
            f" has dtype {dtype}. Say which entries of `x` to blend with "
            "`inputs=[...]`, or cast this one to float32."
        )
    return x


def _one_hot(y, classes, path):
    """Integers of `classes` as one-hot rows; anything else as it is."""
    if not _is_integer(y):
        return y
    if classes is None:
        raise ValueError(
            "Integer targets cannot be blended. Received: "
            f"{_named('target', path)} with dtype "
            f"{backend.standardize_dtype(y.dtype)} and shape "
            f"{tuple(y.shape)}. For class labels pass `num_classes=...` and "
            "use a categorical loss; for counts and binary labels cast them "
            "to float32."
        )
    if len(y.shape) == 2 and y.shape[1] == 1:
        y = ops.squeeze(y, axis=1)
    y = ops.expand_dims(ops.cast(y, "int32"), -1)
    rows = ops.cast(y == ops.arange(classes, dtype="int32"), "float32")
    outside = ops.logical_or(y < 0, y >= classes)
    return ops.where(outside, float("nan"), rows)


def _check_range(y, classes, path):
    if classes is None or not isinstance(y, np.ndarray) or not y.size:
        return y
    if y.dtype.kind in "iu" and (y.min() < 0 or y.max() >= classes):
        raise ValueError(
            f"Labels must be in [0, num_classes={classes}). Received: "
            f"{_named('target', path)} with labels from {y.min()} to {y.max()}"
        )
    return y


def _blend_target(y, permutation, lam):
    return mix_up(_as_float(y), permutation, lam)


def _as_float(y):
    return ops.cast(y, "float32") if _is_boolean(y) else y


def _blend_weighted(y, sample_weight, permutation, lam):
    """Blends targets by share times weight, and the weights by share."""

    def blend_target(path, target):
        if nested and path not in weights:
            raise ValueError(
                "`sample_weight` must be a tensor or have the structure of "
                f"the targets. Received: {_named('target', path)}, and "
                f"sample weights at {list(weights)}"
            )
        weight = weights[path] if nested else sample_weight
        if weight is None:
            return _blend_target(target, permutation, lam)
        return _blend_by_weight(target, weight, permutation, lam)

    nested = tree.is_nested(sample_weight)
    weights = dict(tree.flatten_with_path(sample_weight)) if nested else {}
    y = map_with_path(blend_target, y)
    return y, map_leaves(
        lambda w: mix_up(ops.cast(w, wide_dtype(w)), permutation, lam),
        sample_weight,
    )


def _blend_by_weight(y, w, permutation, lam):
    y = _as_float(y)
    wide = wide_dtype(y, w)
    target, w = ops.cast(y, wide), ops.cast(w, wide)
    rank = len(y.shape)
    # Weights (batch, 1) of targets (batch,), or (batch,) of (batch, classes).
    while len(w.shape) > rank:
        w = ops.squeeze(w, axis=-1)
    while len(w.shape) < rank:
        w = ops.expand_dims(w, -1)
    total = mix_up(w, permutation, lam)
    empty = total == 0
    blend = ops.where(
        empty,
        mix_up(target, permutation, lam),
        mix_up(w * target, permutation, lam) / ops.where(empty, 1.0, total),
    )
    return ops.cast(blend, y.dtype)
