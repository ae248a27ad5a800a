"""What becomes of the rows of a batch: blended, or pasted together."""

from keras import ops
from keras import tree

from keras_dlkit._tree import map_leaves
from keras_dlkit._tree import map_with_path
from keras_dlkit.layers._inputs import as_float
from keras_dlkit.layers._inputs import named
from keras_dlkit.ops._dtypes import wide_dtype
from keras_dlkit.ops.cut_mix import cut_mix
from keras_dlkit.ops.mix_up import like_rows
from keras_dlkit.ops.mix_up import mix_up


class Blend:
    """Every row blended with its partner.

    Args:
        lam: float32 tensor of shape `(batch,)` or `(1,)`, the row's own share.
        permutation: Integer tensor of shape `(batch,)`, the partners.
    """

    def __init__(self, lam, permutation):
        self.lam, self.permutation = lam, permutation

    def input(self, x):
        return mix_up(x, self.permutation, self.lam)

    def target(self, y):
        return mix_up(as_float(y), self.permutation, self.lam)

    def weight(self, w, y):
        """The weights of the targets `y` (`None` for those of all)."""
        del y
        return mix_up(w, self.permutation, self.lam)

    def weighted_target(self, y, w):
        """Targets such that a loss linear in them is blended, with weights."""
        y = as_float(y)
        wide = wide_dtype(y, w)
        target, w = ops.cast(y, wide), _aligned(ops.cast(w, wide), y)
        total = mix_up(w, self.permutation, self.lam)
        empty = total == 0
        blend = ops.where(
            empty,
            mix_up(target, self.permutation, self.lam),
            mix_up(w * target, self.permutation, self.lam)
            / ops.where(empty, 1.0, total),
        )
        return ops.cast(blend, y.dtype)

    def dominant(self, y, w=None):
        """The targets of the row with the larger share, times its weight."""
        y = ops.convert_to_tensor(y)
        partners = ops.take(y, self.permutation, axis=0)
        own, other = like_rows(self.lam, y), like_rows(1.0 - self.lam, y)
        if w is not None:
            w = _aligned(ops.cast(w, wide_dtype(w)), y)
            own, other = own * w, other * ops.take(w, self.permutation, axis=0)
        return ops.where(own >= other, y, partners)


class Paste(Blend):
    """A box of its partner in every row.

    Args:
        lam: The share of the row itself, for targets that have no pixels.
        permutation: Integer tensor of shape `(batch,)`.
        boxes: int32 tensor of shape `(batch, 2 * d)` or `(1, 2 * d)`.
        space: `Space` of the images.
    """

    def __init__(self, lam, permutation, boxes, space):
        super().__init__(lam, permutation)
        self.boxes, self.space = boxes, space

    def input(self, x):
        return cut_mix(x, self.permutation, self.boxes, axis=self.space.axis)

    def target(self, y):
        axis = self.space.dense_axis(y)
        if axis is None:
            return super().target(y)
        return cut_mix(y, self.permutation, self.boxes, axis=axis)

    def weight(self, w, y):
        if y is None or self.space.dense_axis(y) is None:
            return super().weight(w, y)
        return cut_mix(w, self.permutation, self.boxes)

    def weighted_target(self, y, w):
        if self.space.dense_axis(y) is None:
            return super().weighted_target(y, w)
        return self.target(y)

    def dominant(self, y, w=None):
        if self.space.dense_axis(y) is None:
            return super().dominant(y, w)
        return self.target(y)


def _aligned(w, y):
    """Weights of the rank of the targets, to broadcast with them."""
    rank = len(y.shape)
    # Weights (batch, 1) of targets (batch,), or (batch,) of (batch, n).
    if any(size not in (1, None) for size in w.shape[rank:]):
        raise ValueError(
            "Sample weights must not have more dimensions than their targets. "
            f"Received: sample weights of shape {tuple(w.shape)} for targets "
            f"of shape {tuple(y.shape)}"
        )
    while len(w.shape) > rank:
        w = ops.squeeze(w, axis=-1)
    while len(w.shape) < rank:
        w = ops.expand_dims(w, -1)
    return w


def weights_by_target(sample_weight):
    """A function of the path of a target, to its weights or `None`."""
    if not tree.is_nested(sample_weight):
        return lambda path: sample_weight
    weights = dict(tree.flatten_with_path(sample_weight))

    def weight_of(path):
        if path not in weights:
            raise ValueError(
                "`sample_weight` must be a tensor or have the structure of "
                f"the targets. Received: {named('target', path)}, and "
                f"sample weights at {list(weights)}"
            )
        return weights[path]

    return weight_of


def mix_targets(mixture, y, sample_weight):
    """Targets and weights, the latter a tensor or a structure like `y`."""
    if sample_weight is None:
        return map_leaves(mixture.target, y), None
    nested = tree.is_nested(sample_weight)
    weight_of = weights_by_target(sample_weight)
    targets = dict(tree.flatten_with_path(y))

    def mix_target(path, target):
        weight = weight_of(path)
        if weight is None:
            return mixture.target(target)
        return mixture.weighted_target(target, weight)

    def mix_weight(path, weight):
        target = targets.get(path) if nested or not tree.is_nested(y) else None
        return mixture.weight(weight, target)

    return (
        map_with_path(mix_target, y),
        map_with_path(mix_weight, sample_weight),
    )
