"""The loss of each output, noted on its way into the sum of Keras."""

import contextlib

import keras
from keras import ops


class RecordedLoss(keras.losses.Loss):
    """A loss that notes its value under the key of its output.

    While it does, the value that it returns has no gradient: that of the sum
    of Keras is the gradient of what regularizers and `add_loss` give.
    """

    def __init__(self, loss, key, weight):
        inner = keras.losses.get(loss)
        name = getattr(inner, "name", None) or inner.__name__
        super().__init__(name=name.strip("<>"))  # of a lambda
        self.inner, self.key, self.weight = inner, key, weight
        self.notes = None

    def __call__(self, y_true, y_pred, sample_weight=None):
        if isinstance(self.inner, keras.losses.Loss):
            value = self.inner(y_true, y_pred, sample_weight)
        else:
            value = super().__call__(y_true, y_pred, sample_weight)
        if self.notes is None:
            return value
        self.notes[self.key] = self.weight * value
        return ops.stop_gradient(value)

    def call(self, y_true, y_pred):
        return self.inner(y_true, y_pred)


def record(loss, loss_weights):
    """`loss` of `compile` with every entry recorded."""
    if not isinstance(loss, (dict, list, tuple)):
        raise ValueError(
            "A task weighting needs a loss an output, as a dict or a list. "
            f"Received: loss={loss!r}"
        )
    weights = _by_key(loss_weights)
    entries = {
        key: None
        if entry is None
        else RecordedLoss(entry, key, weights.get(key, 1.0))
        for key, entry in _by_key(loss).items()
    }
    return entries if isinstance(loss, dict) else list(entries.values())


def recorded(loss):
    """The `RecordedLoss` entries of `loss`."""
    entries = _by_key(loss).values()
    return [e for e in entries if isinstance(e, RecordedLoss)]


@contextlib.contextmanager
def noting(loss):
    """Gives the dict that the losses are noted in, weighted, while open."""
    notes = {}
    for entry in recorded(loss):
        entry.notes = notes
    try:
        yield notes
    finally:
        for entry in recorded(loss):
            entry.notes = None


def given(loss):
    """`loss` as it was before `record`."""
    entries = {
        key: e.inner if isinstance(e, RecordedLoss) else e
        for key, e in _by_key(loss).items()
    }
    if isinstance(loss, dict):
        return entries
    return list(entries.values()) if isinstance(loss, (list, tuple)) else loss


def _by_key(structure):
    if isinstance(structure, dict):
        return dict(structure)
    if isinstance(structure, (list, tuple)):
        return dict(enumerate(structure))
    return {}
