"""What a task weighting asks of a train step, in `keras.ops` alone."""

import keras
from keras import ops

from keras_dlkit._train_step import common
from keras_dlkit._train_step import lists


def merged(model, gradients):
    """The gradient to follow, from those of what `forward` gave."""
    if len(gradients) == 1:
        return gradients[0]
    unscale = common.inverse(model.optimizer.scale_loss(1.0))
    products = [
        [lists.inner_product(g, h) * unscale * unscale for h in gradients[:-1]]
        for g in gradients[:-1]
    ]
    weights = model.task_weighting.weigh_gradients(
        ops.stack([ops.stack(row) for row in products])
    )
    model.task_weighting.last_weights.assign(weights)
    factors = [*ops.unstack(weights), 1.0]
    return [weighted(entries, factors) for entries in zip(*gradients)]


def weighted(tensors, factors):
    """The weighted sum of tensors; `None` entries count as zeros."""
    terms = [
        t * ops.cast(factor, t.dtype)
        for t, factor in zip(tensors, factors)
        if t is not None
    ]
    return sum(terms[1:], terms[0]) if terms else None


def states_to_look_again(model):
    """Copies of what a step changes beside weights, to repeat its pass."""
    weighting = model.task_weighting
    if weighting is None or not weighting.looks_again:
        return None
    return [(v, ops.copy(v)) for v in model.non_trainable_variables]


def finish(model, data, states, logs):
    """Shows a task weighting what the step did, and logs its weights."""
    weighting = model.task_weighting
    if weighting is None:
        return logs
    if states is not None:
        weights = [
            (v, ops.convert_to_tensor(v)) for v in model.trainable_variables
        ]
        with keras.StatelessScope([*weights, *states], collect_losses=True):
            losses = losses_again(model, data)
        weighting.look_again(losses)
    return {**logs, **weighting.logs()}


def losses_again(model, data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    y_pred = model(x, training=True)
    losses, _ = model.task_losses(x, y, y_pred, sample_weight)
    losses, _ = model.of_all_replicas(losses)
    return model.task_weighting.vector(losses)
