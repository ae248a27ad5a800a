"""The loss of each output, noted on its way into the sum of Keras."""

import contextlib
import operator

import keras
from keras import ops
from keras import tree

from keras_dlkit import _keras


class RecordedLoss(keras.losses.Loss):
    """A loss that notes its value under the key of its output.

    While it does, the value that it returns has no gradient: that of the sum
    of Keras is the gradient of what regularizers and `add_loss` give.
    """

    def __init__(self, loss, key, weight):
        super().__init__(name=_keras.loss_name(loss))
        self.given, self.key, self.weight = loss, key, weight
        self.notes = None

    def __call__(self, y_true, y_pred, sample_weight=None):
        # As late as Keras: "crossentropy" depends on the shapes.
        loss = _keras.as_loss(self.given, y_true, y_pred)
        value = loss(y_true, y_pred, sample_weight)
        if self.notes is None:
            return value
        self.notes[self.key] = self.weight * value
        return ops.stop_gradient(value)


class Outputs:
    """The outputs of a network, and the names that Keras logs them under.

    Args:
        structure: Structure of the names of the layers that make the outputs;
            `None` if that is not known, as of a subclassed model.
    """

    def __init__(self, structure=None):
        single = structure is not None and not tree.is_nested(structure)
        self.structure = [structure] if single else structure
        self.layers = dict(tree.flatten_with_path(self.structure or []))
        # What else than its key an output may be called.
        self.aliases = {}
        for index, (path, layer) in enumerate(self.layers.items()):
            self.aliases[index] = self.aliases[layer] = self.key(path)

    def key(self, path):
        """The name of an output; its index, where it has none."""
        *above, last = path
        if isinstance(last, int):
            last = self.layers.get(path, last)
        return "/".join(map(str, [*above, last])) if above else last

    def names_of(self, path):
        """Paths that the outputs at `path` of `losses` or metrics may have.

        By their place, their index or the name of their layer, in all of which
        parts may be told of them; of those of a metric, the last is its index.
        """
        if not self.layers:
            return [path[:end] for end in range(1, len(path) + 1)]
        found = []
        for index, (place, layer) in enumerate(self.layers.items()):
            names = [place, (index,), (layer,)]
            asked = [place] if path in self.layers else names
            if any(all(map(operator.eq, path, name)) for name in asked):
                found += names
        return found

    def arranged(self, values):
        """`losses` or `loss_weights` of `compile`, as the outputs are."""
        names = list(self.layers.values())
        if self.structure is None:
            return values
        if not tree.is_nested(values):
            return tree.map_structure(lambda _: values, self.structure)
        flat = values
        if isinstance(values, dict):
            if isinstance(self.structure, dict) or set(values) != set(names):
                return values
            flat = [values[name] for name in names]
        if any(map(tree.is_nested, flat)) or len(flat) != len(names):
            return values
        return tree.pack_sequence_as(self.structure, list(flat))


def outputs_of(model):
    """The `Outputs` of a network, as far as they are known."""
    names = getattr(model, "output_names", None)
    return Outputs(names and tree.pack_sequence_as(model.output, names))


def record(loss, loss_weights, outputs):
    """`loss` and `loss_weights` of `compile`, every loss recorded."""
    loss = outputs.arranged(loss)
    if not tree.is_nested(loss) or not _some(loss):
        raise ValueError(
            "A task weighting needs a loss an output, as a dict or a list. "
            f"Received: loss={loss!r}"
        )
    paths = [path for path, _ in tree.flatten_with_path(loss)]
    keys = [outputs.key(path) for path in paths]
    if outputs.layers and any(isinstance(key, int) for key in keys):
        raise ValueError(
            "`loss` must have an entry for each output, "
            f"{list(outputs.layers.values())}. Received: {len(keys)} losses"
        )
    weights = [1.0] * len(keys)
    if loss_weights is not None:
        loss_weights = _like(loss, outputs.arranged(loss_weights))
        weights = tree.flatten(loss_weights)
    losses = [
        None if one is None else RecordedLoss(one, key, weight)
        for one, key, weight in zip(tree.flatten(loss), keys, weights)
    ]
    return tree.pack_sequence_as(loss, losses), loss_weights


def _some(loss):
    return any(one is not None for one in tree.flatten(loss))


def _like(loss, weights):
    """Weights in the structure of the losses."""
    try:
        tree.assert_same_structure(loss, weights)
        return weights
    except ValueError:
        flat, count = tree.flatten(weights), len(tree.flatten(loss))
        if len(flat) != count:
            raise ValueError(
                "`loss_weights` must have an entry for each loss. Received: "
                f"loss_weights={weights} for {count} losses"
            ) from None
        return tree.pack_sequence_as(loss, flat)


def recorded(loss):
    """The `RecordedLoss` entries of `loss`."""
    return [e for e in tree.flatten(loss) if isinstance(e, RecordedLoss)]


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
    return tree.map_structure(
        lambda e: e.given if isinstance(e, RecordedLoss) else e, loss
    )
