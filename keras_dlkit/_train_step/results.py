"""What the parts of a batch give, put together."""

from keras import ops
from keras import tree

from keras_dlkit import _keras


class Results:
    """What the parts of a batch gave, each with its share of the rows."""

    def __init__(self):
        self.parts = []

    def add(self, loss, y_pred, rows, share, gradients, memory):
        self.parts.append(([loss], y_pred, rows, share, gradients, memory))

    def join(self):
        """Of the whole batch: loss, predictions, gradients, memory."""
        losses, predictions, rows, shares, gradients, memories = zip(
            *self.parts
        )
        return (
            weighted_sum(losses, shares)[0],
            join(predictions, rows),
            weighted_sum(gradients, shares),
            weighted_sum(memories, shares),
        )


def weighted_sum(values, shares):
    """Sum of lists of tensors (`None` entries alike), weighted by shares."""
    if len(values) == 1:
        return values[0]
    return [
        None
        if entries[0] is None
        else sum(e * ops.cast(s, e.dtype) for e, s in zip(entries, shares))
        for entries in zip(*values)
    ]


def join(predictions, rows):
    """The predictions of all micro-batches, as of the whole batch."""
    if len(predictions) == 1:
        return predictions[0]

    def concatenate(*parts):
        return ops.concatenate([p[:count] for p, count in zip(parts, rows)])

    def join_leaves(*parts):
        whole = concatenate(*parts)
        masks = [_keras.get_mask(part) for part in parts]
        if all(mask is not None for mask in masks):
            _keras.set_mask(whole, concatenate(*masks))
        return whole

    return tree.map_structure(join_leaves, *predictions)
