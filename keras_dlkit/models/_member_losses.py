"""The mean of the losses of the members, never the loss of their mean."""

import keras
from keras import ops
from keras import tree

from keras_dlkit._tree import map_leaves

# These look at all rows at once: a member's rows must come by themselves.
COUPLED = ("dice", "tversky", "circle")
REDUCTIONS = ("sum_over_batch_size", "mean")


def are_row_wise(losses):
    """Whether the losses are means of one value a row, for all we know."""
    return all(_is_row_wise(loss) for loss in tree.flatten(losses))


def _is_row_wise(loss):
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if loss is None:
        return True
    name = getattr(loss, "__name__", type(loss).__name__)
    if name.lower() in COUPLED:
        return False
    if not isinstance(loss, keras.losses.Loss):
        return _is_of_keras(loss)
    return (
        loss.reduction in REDUCTIONS
        and _is_of_keras(type(loss))
        and _is_of_keras(getattr(loss, "fn", type(loss)))
    )


def _is_of_keras(thing):
    return getattr(thing, "__module__", "").split(".")[0] == "keras"


def rows_of_all(structure, members):
    """Each row as often as there are members: those of a row in sequence."""
    return map_leaves(
        lambda t: ops.repeat(ops.convert_to_tensor(t), members, axis=0),
        structure,
    )


def parts(rows, members):
    """Where each member's rows are in a batch that was split among them.

    Yields `(start, end, share)`. Where there are less rows than members, the
    part of one that has none is one row, with share 0.
    """
    each = (rows + members - 1) // members
    static = isinstance(rows, int)
    least, most = (min, max) if static else (ops.minimum, ops.maximum)
    for member in range(members):
        start = least(member * each, rows - 1)
        end = least(member * each + each, rows)
        count = most(end - member * each, 0)
        share = ops.cast(count, "float32") / ops.cast(rows, "float32")
        yield start, most(end, start + 1), share
