"""The masks of the next round, and when they stop to change."""

import numpy as np

from keras_dlkit import _checks
from keras_dlkit.callbacks._criteria import CRITERIA
from keras_dlkit.ops import _pruning

CONTROLS = (None, "reinitialize", "random_masks", "shuffle_masks")


class MaskRule:
    """Which weights go after a round; arguments as in `LotteryTicket`."""

    def __init__(
        self, pruning_rate, output_pruning_rate, scope, score, control
    ):
        self.rate = _checks.check_rate("pruning_rate", pruning_rate)
        self.output_rate = self.rate
        self.has_output_rate = output_pruning_rate is not None
        if self.has_output_rate:
            self.output_rate = _checks.check_rate(
                "output_pruning_rate", output_pruning_rate
            )
        self.scope = _checks.check_one_of("scope", scope, _pruning.SCOPES)
        if not callable(score):
            _checks.check_one_of("score", score, tuple(CRITERIA))
        self.score = CRITERIA.get(score, score)
        self.control = _checks.check_one_of("control", control, CONTROLS)

    def check(self, weights):
        """Raises for a function that gives no score to each weight."""
        if self.score in CRITERIA.values():
            return
        for array in weights:
            with np.errstate(all="ignore"):
                found = np.shape(self.score(array, array.copy()))
            if found != array.shape:
                raise ValueError(
                    "`score` must return an array of the shape of the kernel, "
                    f"{array.shape}. Received: one of shape {found}"
                )

    def next(self, masks, output, initial, final, rng, control=True):
        """The masks after a round.

        Args:
            masks: Dictionary of arrays, by path.
            output: The path of the last kernel of the model.
            initial: List of arrays, the weights before training.
            final: Those after.
            rng: Function that returns a `numpy.random.Generator`.
            control: Boolean. `False` for those of the ticket that the control
                is compared with.
        """
        control = self.control if control else None
        old = list(masks.values())
        rates = [self.output_rate if p == output else self.rate for p in masks]
        if control == "random_masks":
            scores = _random(old, rng())
        else:
            scores = [self.score(a, b) for a, b in zip(initial, final)]
        new = _pruning.prune_by_rate(
            _pruning.as_scores(scores), old, rates, self.scope
        )
        if control == "shuffle_masks":
            counts = [int(a.sum()) - int(b.sum()) for a, b in zip(old, new)]
            members = _pruning.groups("layer", len(old))
            scores = _random(old, rng())
            new = _pruning.prune_groups(scores, old, members, counts)
        return dict(zip(masks, new))


def _random(arrays, rng):
    return [rng.uniform(size=a.shape) for a in arrays]


class EarlyBird:
    """Says when the masks of successive epochs are alike.

    Args:
        threshold: `None` for never, or the share of entries in which a mask
            may differ from each of those before.
    """

    # How many masks there must be before.
    count = 4

    def __init__(self, threshold):
        if threshold is not None:
            threshold = _checks.check_number(
                "early_bird", threshold, at_least=0, at_most=1
            )
            if threshold == 0:
                raise ValueError(
                    "`early_bird` must be above 0: masks that differ in no "
                    "less would never be alike. Received: early_bird=0"
                )
        self.threshold = threshold
        self.clear()

    def clear(self):
        self.packed = []

    def hatches(self, masks):
        bits = np.concatenate([m.ravel() for m in masks.values()]).astype(bool)
        before = [np.unpackbits(p, count=bits.size) for p in self.packed]
        near = [(bits != b).mean() < self.threshold for b in before]
        self.packed = [*self.packed, np.packbits(bits)][-self.count :]
        return len(near) == self.count and all(near)
