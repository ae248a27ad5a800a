"""What the three train steps share, in terms of `keras.ops` alone."""

import contextlib

import keras
from keras import ops

from keras_dlkit import _keras
from keras_dlkit._train_step import lists
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


def build(model, data):
    """Builds a lazy model, with layers that are called in training alone."""
    x = keras.utils.unpack_x_y_sample_weight(data)[0]
    if not model.built:
        model(x, training=False)
    if not (model.optimizer.built or _keras.is_built_throughout(model.model)):
        with keras.StatelessScope():
            model(x, training=True)


def forward(model, part, training=True):
    """One part of the batch: what to differentiate, and the predictions.

    That is a list with the loss, or with the losses of the tasks and the rest
    where each has a gradient of its own.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part)
    y_pred = model(x, training=training)
    if training and model.takes_task_gradients:
        losses, rest = model.task_losses(x, y, y_pred, sample_weight)
        return [*model.task_weighting.ordered(losses), rest], y_pred
    loss = model.compute_loss(x, y, y_pred, sample_weight, training=training)
    return [loss], y_pred


def moved(weights, perturbations):
    """Weights plus perturbations, those without one as they are."""
    if perturbations is None:
        return weights
    return lists.sums(weights, perturbations)


def scaled(gradients, scale):
    """Gradients times `scale`; the float 1.0 stands for no loss scaling."""
    if isinstance(scale, float) and scale == 1.0:
        return gradients
    return [
        None if g is None else g * ops.cast(scale, g.dtype) for g in gradients
    ]


def inverse(scale):
    return 1.0 / scale


def same_gradients(gradients, clean, variables):
    """Raises where a weight that had a gradient has none at w + e."""
    for gradient, first, variable in zip(gradients, clean, variables):
        if gradient is None and first is not None:
            raise ValueError(
                "The second gradient of a step must reach every weight that "
                "the first one reached. Received none for "
                f"{variable.path!r}: its layer uses the weight by another way "
                "than its `keras.Variable` (as `TorchModuleWrapper` does), so "
                "that it cannot be moved. Leave that layer frozen, or use an "
                "optimizer that takes one gradient."
            )
    return gradients


class Plain:
    """In the place of a method, where the inner optimizer is all there is."""

    micro_batches = 1
    takes_second = False
    is_linear = True

    def __init__(self, method):
        self.method = method

    def lookahead(self, weights, variables):
        return None

    def attached(self, memory=(), variables=()):
        if self.method is None:
            return contextlib.nullcontext()
        return self.method.attached()


def outcome(method, clean, ascent, variables, scale):
    """What comes of one part of the batch: gradients to apply, and a memory.

    Args:
        method: `AttachedOptimizer`.
        clean: Gradients at w, scaled.
        ascent: Those at w + e, scaled; `None` where there is no second pass.
        variables: The trainable variables.
        scale: The loss scale.
    """
    if isinstance(method, Plain):
        return clean, []
    at_w = method.masked(scaled(clean, inverse(scale)), variables)
    if ascent is None:
        gradients = method.coast(at_w, variables)
    else:
        ascent = method.masked(scaled(ascent, inverse(scale)), variables)
        gradients = method.combine(at_w, ascent)
    memory = method.remember(at_w, ascent, variables)
    return scaled(gradients, scale), list(memory)
