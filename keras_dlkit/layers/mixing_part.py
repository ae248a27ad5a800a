"""The base of parts that mix the rows of a batch, targets included."""

from typing import Any

from keras import ops
from keras import random
from keras import tree

from keras_dlkit import _checks
from keras_dlkit._tree import map_leaves
from keras_dlkit._tree import map_with_path
from keras_dlkit.layers import _targets
from keras_dlkit.layers._inputs import as_float
from keras_dlkit.layers._inputs import as_keys
from keras_dlkit.layers._inputs import is_integer
from keras_dlkit.layers._inputs import map_inputs
from keras_dlkit.layers._mixtures import Blend
from keras_dlkit.layers._mixtures import mix_targets
from keras_dlkit.layers._mixtures import weights_by_target
from keras_dlkit.layers.batch_part import BatchPart
from keras_dlkit.ops._dtypes import wide_dtype
from keras_dlkit.ops.sample_beta import sample_beta
from keras_dlkit.ops.sample_beta import sample_permutation


class MixingPart(BatchPart):
    """Rows mixed in pairs: a share and a partner for each, drawn at random.

    A subclass says what inputs it takes (`prepare_input`) and what a mixture
    of rows is (`mixture`). The arguments are those of `MixUp`.
    """

    def __init__(
        self,
        alpha: float,
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
        super().__init__(active_epochs=active_epochs, seed=seed, name=name)
        self.alpha = _checks.check_number("alpha", alpha, at_least=0)
        for count in tree.flatten(num_classes):
            if count is not None:
                _checks.check_count("num_classes", count, at_least=2)
        self.num_classes = num_classes
        self.multi_label = multi_label
        self._check_multi_label()
        self.inputs = as_keys(inputs)
        self.per_sample = bool(per_sample)
        self.probability = _checks.check_number(
            "probability", probability, at_least=0, at_most=1
        )
        self.label_smoothing = _checks.check_number(
            "label_smoothing", label_smoothing, at_least=0, at_most=1
        )
        self.dominant_metrics = bool(dominant_metrics)
        if self.label_smoothing and not (self.encodes() or self._multi_label):
            raise ValueError(
                "`label_smoothing` needs `num_classes` or `multi_label`, to "
                "know the targets that are classes. Received: "
                f"label_smoothing={label_smoothing}, num_classes={num_classes}"
            )

    def _check_multi_label(self):
        flags = tree.flatten(self.multi_label)
        if not all(isinstance(flag, bool) for flag in flags):
            raise TypeError(
                "`multi_label` must be a boolean, or one an output. "
                f"Received: multi_label={self.multi_label!r}"
            )
        if not (self.encodes() and self._multi_label):
            return
        counts = dict(tree.flatten_with_path(self.num_classes))
        flags = dict(tree.flatten_with_path(self.multi_label))
        if counts.keys() != flags.keys() or any(
            flags[path] and counts[path] is not None for path in flags
        ):
            raise ValueError(
                "An output has either one class a sample (`num_classes`) or "
                "several labels (`multi_label`). Received: num_classes="
                f"{self.num_classes}, multi_label={self.multi_label}. Give "
                "both as structures of the outputs."
            )

    @property
    def _multi_label(self):
        return any(tree.flatten(self.multi_label))

    @property
    def _mixes(self):
        return self.alpha > 0 and self.probability > 0

    # What a part is.

    def prepare_input(self, x, path):
        """An input in the dtype in which it can be mixed."""
        del path
        return x

    def prepare_target(self, path, y):
        """Targets that can be mixed; integers are left by `encode` alone."""
        if is_integer(y):
            _targets.refuse_integers(y, path)
        return as_float(y)

    def mixture(self, x, draw):
        """What becomes of the rows, for this draw."""
        del x
        return Blend(*draw)

    def mix_inputs(self, x, mixture):
        return map_inputs(
            lambda leaf, path: mixture.input(leaf), x, self.inputs
        )

    # Randomness: the share of the row itself, and its partner.

    def draw(self, batch_size, seed):
        if not self._mixes:
            return None
        shape = (batch_size,) if self.per_sample else (1,)
        lam = sample_beta(self.alpha, shape, seed)
        keep = ops.logical_not(self.is_active())
        if self.probability < 1:
            chance = random.uniform(shape, seed=seed)
            keep = ops.logical_or(keep, chance >= self.probability)
        return ops.where(keep, 1.0, lam), sample_permutation(batch_size, seed)

    # The batch.

    def prepare(self, x, y, sample_weight):
        if not self._mixes:
            return x, y, sample_weight
        return (
            map_inputs(self.prepare_input, x, self.inputs),
            map_with_path(self.prepare_target, y),
            map_leaves(lambda w: ops.cast(w, wide_dtype(w)), sample_weight),
        )

    def apply(self, x, y, sample_weight, draw):
        y = self._smooth(y)
        if draw is None:
            return x, y, sample_weight
        mixture = self.mixture(x, draw)
        y, sample_weight = mix_targets(mixture, y, sample_weight)
        return self.mix_inputs(x, mixture), y, sample_weight

    # Targets.

    def encodes(self, output=None):
        classes = self.num_classes
        if output is not None and tree.is_nested(classes):
            path = output if isinstance(output, tuple) else (output,)
            classes = dict(tree.flatten_with_path(classes)).get(path)
        return any(n is not None for n in tree.flatten(classes))

    def encode(self, y):
        if not (self._mixes or self.encodes() or self._multi_label):
            return y
        return self._map_targets(self._encode, y)

    def _encode(self, y, classes, multi_label, path):
        del path
        if classes is not None and _targets.are_classes(y, classes):
            return _targets.one_hot(y, classes)
        if multi_label and is_integer(y):
            return ops.cast(y, "float32")
        return y  # another part may know what they are

    def check_targets(self, y):
        self.check_labels(y)
        self._check(_targets.refuse_one_hot, y)

    def check_labels(self, y):
        self._check(_targets.check_range, y)

    def _check(self, function, y):
        def check(target, *options):
            function(target, *options)
            return target

        self._map_targets(check, y)

    def metric_targets(self, x, y, sample_weight, draw):
        if not self.dominant_metrics:
            return super().metric_targets(x, y, sample_weight, draw)
        y = self.encode(y)
        if draw is None:
            return y
        mixture = self.mixture(x, draw)
        weight_of = weights_by_target(sample_weight)
        return map_with_path(
            lambda path, target: mixture.dominant(target, weight_of(path)), y
        )

    def _smooth(self, y):
        if not self.label_smoothing:
            return y
        strength = ops.where(self.is_active(), self.label_smoothing, 0.0)

        def smooth(target, classes, multi_label, path):
            return _targets.smooth(
                as_float(target), strength, classes, multi_label, path
            )

        return self._map_targets(smooth, y)

    def _map_targets(self, function, y):
        return _targets.map_targets(
            function, y, self.num_classes, self.multi_label
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
            "multi_label": self.multi_label,
            "dominant_metrics": self.dominant_metrics,
        }
