"""One of several parts a batch, or a sample."""

import itertools
from collections.abc import Sequence

import keras
from keras import ops
from keras import random
from keras import tree

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._tree import leaves
from keras_dlkit._tree import map_leaves
from keras_dlkit.layers._inputs import dtype_of
from keras_dlkit.layers.batch_part import BatchPart
from keras_dlkit.ops.mix_up import like_rows


@export
class RandomChoice(BatchPart):
    r"""Applies one of several parts, drawn anew for each batch or sample.

    Part \(k\) is applied with probability \(p_k\), the others are not. All of
    them encode the targets, in training and evaluation, so that these are of
    one form whatever was drawn; and all of them draw, so that a seed gives the
    same numbers to each. Choices nest: a part may be a choice itself.

    A part that is not active in an epoch (`active_epochs`) is drawn all the
    same, and then changes nothing.

    Args:
        layers: List of parts, such as `[MixUp(...), CutMix(...)]`.
        probabilities: `None` (all alike), or a list with the probability of
            each part: at least 0, with the sum 1.
        per_batch: Boolean. One choice a batch, or one a sample. For the latter
            all parts are applied to the whole batch.
        seed: Integer, or `None` for a random one. The parts have their own.
        name: String. The name of the layer.

    Call arguments:
        data: `(x, y)` or `(x, y, sample_weight)`.
        training: Boolean. With `False` targets are encoded and no part is
            applied. Defaults to `True`.

    Returns:
        A tuple of the same structure. Inputs are of one dtype whatever was
        drawn: uint8 images are float32 if any part needs that.

    State: layer weights, the random seed and those of the parts; not trainable.
    Runs: in the train step of `keras_dlkit.attach`, once a batch, before both
        passes of SAM; in a data pipeline, wherever it is called.
    Cost: that of the part that was drawn, or, for a choice a sample, of all.
        Each `ManifoldMixUp` blends its hidden values in every batch, with
        shares of 1 where another part was drawn.

    Raises:
        TypeError: For what is no part.
        ValueError: For probabilities that do not fit, and for a part of one's
            own whose `apply` gives another shape or dtype than it got.

    Example:

    ```python
    import numpy as np
    import keras_dlkit as dlkit

    choice = dlkit.layers.RandomChoice(
        [
            dlkit.layers.MixUp(0.2, num_classes=10),
            dlkit.layers.CutMix(1.0, num_classes=10),
        ],
        probabilities=[0.3, 0.7],
        seed=0,
    )
    images = np.random.uniform(size=(32, 28, 28, 1)).astype("float32")
    x, y = choice((images, np.arange(32) % 10))
    y.shape  # (32, 10)
    ```
    """

    def __init__(
        self,
        layers: Sequence[BatchPart],
        *,
        probabilities: Sequence[float] | None = None,
        per_batch: bool = True,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(seed=seed, name=name)
        self.layers = _check_layers(layers)
        self.probabilities = _check_probabilities(probabilities, self.layers)
        self.per_batch = bool(per_batch)

    # What it is by its parts.

    @property
    def dominant_metrics(self):
        return any(layer.dominant_metrics for layer in self.layers)

    @property
    def mixes_at(self):
        return [name for layer in self.layers for name in layer.mixes_at]

    @property
    def follows_epochs(self):
        return any(layer.follows_epochs for layer in self.layers)

    def set_epoch(self, epoch):
        for layer in self.layers:
            layer.set_epoch(epoch)

    def check_model(self, model):
        for layer in self.layers:
            layer.check_model(model)

    def check_targets(self, y):
        for layer in self.layers:
            layer.check_targets(y)

    def check_labels(self, y):
        for layer in self.layers:
            layer.check_labels(y)

    def encodes(self, output=None):
        return any(layer.encodes(output) for layer in self.layers)

    def encode(self, y):
        for layer in self.layers:
            y = layer.encode(y)
        return y

    def prepare(self, x, y, sample_weight):
        for layer in self.layers:
            x, y, sample_weight = layer.prepare(x, y, sample_weight)
        return x, y, sample_weight

    # The choice. All is drawn before it: nothing random lies in a branch.

    def draw(self, batch_size, seed):
        shape = () if self.per_batch else (batch_size,)
        chance = random.uniform(shape, seed=seed)
        bounds = itertools.accumulate(self._probabilities()[:-1])
        index = sum(
            (ops.cast(chance >= bound, "int32") for bound in bounds),
            ops.zeros(shape, "int32"),
        )
        draws = [
            layer.draw(batch_size, layer.seed_generator)
            for layer in self.layers
        ]
        return index, draws

    def apply(self, x, y, sample_weight, draw):
        batch = x, y, sample_weight

        def changed(layer, draw):
            return layer.apply(*batch, draw)

        return self._choose(changed, batch, draw)

    def metric_targets(self, x, y, sample_weight, draw):
        x, y, sample_weight = self.prepare(x, self.encode(y), sample_weight)

        def seen(layer, draw):
            return layer.metric_targets(x, y, sample_weight, draw)

        return self._choose(seen, y, draw)

    def hidden_draws(self, draw):
        index, draws = draw
        return [
            (ops.where(index == number, lam, 1.0), permutation)
            for number, (layer, own) in enumerate(zip(self.layers, draws))
            for lam, permutation in layer.hidden_draws(own)
        ]

    def _choose(self, function, like, draw):
        """`function(layer, draw)` of the layer drawn, of the form of `like`."""
        index, draws = draw

        def branch(layer, draw):
            return lambda: _same_form(layer, function(layer, draw), like)

        branches = [branch(*pair) for pair in zip(self.layers, draws)]
        if not self.per_batch:
            chosen = _choose_rows(index, [run() for run in branches])
        elif (known := _as_integer(index)) is not None:
            # A conditional would be compiled anew for each batch.
            chosen = branches[known]()
        else:
            chosen = ops.switch(index, branches)
        chosen = iter(chosen)
        return map_leaves(lambda _: next(chosen), like)

    def _probabilities(self):
        count = len(self.layers)
        return self.probabilities or [1.0 / count] * count

    def get_config(self):
        config = super().get_config()
        config.pop("active_epochs")
        return {
            **config,
            "layers": [
                keras.saving.serialize_keras_object(layer)
                for layer in self.layers
            ],
            "probabilities": self.probabilities,
            "per_batch": self.per_batch,
        }

    @classmethod
    def from_config(cls, config):
        layers = [
            keras.saving.deserialize_keras_object(layer)
            for layer in config["layers"]
        ]
        return cls(**{**config, "layers": layers})


def _as_integer(index):
    """The value of a tensor, or `None` in a step that is compiled."""
    try:
        return int(index)
    except TypeError:
        return None


def _choose_rows(index, outcomes):
    """For each row, the leaves of the outcome with its index."""
    chosen = outcomes[0]
    for number, outcome in enumerate(outcomes[1:], start=1):
        chosen = [
            ops.where(like_rows(index == number, new), new, old)
            for old, new in zip(chosen, outcome)
        ]
    return chosen


def _same_form(layer, outcome, like):
    """The leaves of `outcome`, which must be of the form of those of `like`."""
    outcome, like = leaves(outcome), leaves(like)
    forms = [
        [(dtype_of(leaf), tuple(leaf.shape)) for leaf in tensors]
        for tensors in (outcome, like)
    ]
    if len(outcome) != len(like) or any(
        a != b or not _compatible(s, t) for (a, s), (b, t) in zip(*forms)
    ):
        raise ValueError(
            "The parts of a `RandomChoice` must give what they get: the same "
            "dtypes and shapes, whichever is drawn. Received: "
            f"{type(layer).__name__} with {forms[0]} for {forms[1]}. Change "
            "the form in its `prepare`."
        )
    return outcome


def _compatible(a, b):
    return len(a) == len(b) and all(
        m is None or n is None or m == n for m, n in zip(a, b)
    )


def _check_layers(layers):
    if not isinstance(layers, (list, tuple)) or not layers:
        raise TypeError(
            "`layers` must be a list of parts, one at least. "
            f"Received: layers={layers!r}"
        )
    for layer in layers:
        if not isinstance(layer, BatchPart):
            raise TypeError(
                "`layers` must be parts, as `keras_dlkit.layers.MixUp`. "
                f"Received: {layer!r} of type {type(layer)}"
            )
    counts = [getattr(layer, "num_classes", None) for layer in layers]
    by_output: dict = {}
    for path, count in tree.flatten_with_path(counts):
        if count is not None:
            by_output.setdefault(path[1:], set()).add(count)
    if any(len(found) > 1 for found in by_output.values()):
        raise ValueError(
            "Parts of one choice must have the same classes, for a loss takes "
            f"one shape of targets. Received: num_classes={counts}"
        )
    return list(layers)


def _check_probabilities(probabilities, layers):
    if probabilities is None:
        return None
    if not isinstance(probabilities, (list, tuple)):
        raise TypeError(
            "`probabilities` must be a list of numbers, one a part. "
            f"Received: probabilities={probabilities!r}"
        )
    values = [
        _checks.check_number("probabilities", p, at_least=0, at_most=1)
        for p in probabilities
    ]
    if len(values) != len(layers) or abs(sum(values) - 1) > 1e-6:
        raise ValueError(
            f"`probabilities` must be {len(layers)} numbers, one a part, with "
            f"the sum 1. Received: probabilities={probabilities!r}, with the "
            f"sum {sum(values)}"
        )
    return values
