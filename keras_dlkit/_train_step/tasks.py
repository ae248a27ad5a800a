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
    products = inner_products(gradients[:-1]) * unscale * unscale
    weights = model.task_weighting.weigh_gradients(
        ops.cast(products, "float32")
    )
    model.task_weighting.last_weights.assign(weights)
    factors = [*ops.unstack(weights), 1.0]
    return [weighted(entries, factors) for entries in zip(*gradients)]


def inner_products(vectors):
    """The symmetric matrix of them; each is computed once."""
    rows = []
    for index, g in enumerate(vectors):
        rest = [lists.inner_product(g, h) for h in vectors[index:]]
        rows.append([*(row[index] for row in rows), *rest])
    return ops.stack([ops.stack(row) for row in rows])


def weighted(tensors, factors):
    """The weighted sum of tensors; `None` entries count as zeros."""
    terms = [
        t * ops.cast(factor, t.dtype)
        for t, factor in zip(tensors, factors)
        if t is not None
    ]
    return sum(terms[1:], terms[0]) if terms else None


def before_step(model, data):
    """What a step changes beside weights, to repeat its pass: copies.

    With the number of updates so far, of which it can be seen whether there
    was one.
    """
    weighting = model.task_weighting
    if weighting is None:
        return None
    if not model.built:  # a lazy model is built by its first pass
        model(keras.utils.unpack_x_y_sample_weight(data)[0], training=False)
    model._build_optimizer()
    if not weighting.looks_again:
        return None
    states = [(v, ops.copy(v)) for v in model.non_trainable_variables]
    return states, ops.copy(model.optimizer.iterations)


def finish(model, data, before, logs):
    """Shows a task weighting what the step did, and logs its weights."""
    weighting = model.task_weighting
    if weighting is None:
        return logs
    if before is not None:
        states, updates = before
        weights = [
            (v, ops.convert_to_tensor(v)) for v in model.trainable_variables
        ]
        with keras.StatelessScope([*weights, *states], collect_losses=True):
            losses = losses_again(model, data)
        learn(weighting, losses, model.optimizer.iterations > updates)
    return {**logs, **weighting.logs()}


def learn(weighting, losses, updated):
    """Lets it learn from the losses, if the step did change weights.

    It does not where gradients are accumulated, or overflow.
    """
    states = weighting.non_trainable_variables
    before = [(v, ops.copy(v)) for v in states]
    weighting.look_again(losses)
    for v, old in before:
        v.assign(ops.where(updated, ops.convert_to_tensor(v), old))


def losses_again(model, data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    y_pred = model(x, training=True)
    losses, _ = model.task_losses(x, y, y_pred, sample_weight)
    losses, _ = model.of_all_replicas(losses)
    return model.task_weighting.vector(losses)
