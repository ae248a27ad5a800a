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


def looks_again(model):
    """Whether there is a weighting that sees the losses after the step."""
    weighting = model.task_weighting
    return weighting is not None and weighting.looks_again


def is_of_keras(model, method):
    """Whether Keras's own step does: one pass, and the gradient of one loss."""
    return isinstance(method, common.Plain) and not (
        model.takes_task_gradients or looks_again(model)
    )


def before_step(model, data):
    """Builds what a weighting looks at; a copy of the number of updates."""
    if model.task_weighting is None:
        return None
    common.build(model, data)
    model._build_optimizer()
    return ops.copy(model.optimizer.iterations)


def finish(model, data, updates, logs, again):
    """Shows a task weighting what the step did, and logs its weights.

    `again` makes a scope that begins where the first pass of the step began,
    with given pairs of a variable and a value.
    """
    weighting = model.task_weighting
    if weighting is None:
        return logs
    if looks_again(model):
        weights = [
            (v, ops.convert_to_tensor(v)) for v in model.trainable_variables
        ]
        with again(weights):
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
