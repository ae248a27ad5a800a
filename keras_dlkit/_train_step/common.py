"""What the three train steps share, in terms of `keras.ops` alone."""

from keras import ops
from keras import tree

from keras_dlkit import _keras
from keras_dlkit._tree import leaves
from keras_dlkit._tree import map_leaves


def batch_size(x):
    """Rows of the first tensor of a structure, known or dynamic."""
    return ops.shape(leaves(x)[0])[0]


def micro_batches(data, count):
    """Cuts a batch into `count` parts of sizes that differ by one at most.

    Yields `(part, rows, share)`, the share of the batch being 1.0 for a
    single part. There are no more parts than rows; where the number of rows
    is not known, a part that would be empty holds one, with share 0.
    """
    total = batch_size(data)
    static = isinstance(total, int)
    count = min(count, total) if static else count
    if count == 1:
        yield data, None, 1.0
        return
    least, most = (min, max) if static else (ops.minimum, ops.maximum)
    for index in range(count):
        start, end = index * total // count, (index + 1) * total // count
        rows = end - start
        first = least(start, total - 1)
        last = most(end, first + 1)
        part = map_leaves(lambda t: t[first:last], data)  # noqa: B023
        yield part, rows, ops.cast(rows, "float32") / ops.cast(total, "float32")


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


def moved(weights, perturbations):
    """Weights plus perturbations, those without one as they are."""
    return [w if e is None else w + e for w, e in zip(weights, perturbations)]


def scaled(gradients, scale):
    """Gradients times `scale`; the float 1.0 stands for no loss scaling."""
    if isinstance(scale, float) and scale == 1.0:
        return gradients
    return [
        None if g is None else g * ops.cast(scale, g.dtype) for g in gradients
    ]


def inverse(scale):
    return scale if isinstance(scale, float) else 1.0 / scale


def same_gradients(gradients, variables):
    """Raises where a weight that had a gradient has none at w + e."""
    for gradient, variable in zip(gradients, variables):
        if gradient is None:
            raise ValueError(
                "The second gradient of a step must reach every weight that "
                "the first one reached. Received none for "
                f"{variable.path!r}: its layer uses the weight by another way "
                "than its `keras.Variable` (as `TorchModuleWrapper` does), so "
                "that it cannot be moved. Leave that layer frozen, or use an "
                "optimizer that takes one gradient."
            )
    return gradients
