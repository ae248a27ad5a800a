"""TensorFlow: what conditionals and replicas ask for."""

import tensorflow as tf


def tensors(variables):
    return [tf.convert_to_tensor(v) for v in variables]


def choose(condition, first, second):
    """`tf.cond` of branches that give tuples of lists, `None` entries alike."""
    if isinstance(condition, bool):
        return first() if condition else second()

    def packed(branch):  # an empty tuple, for a conditional takes no `None`
        return tuple(
            [() if t is None else t for t in entries] for entries in branch()
        )

    outputs = tf.cond(condition, lambda: packed(first), lambda: packed(second))
    return tuple(
        [None if isinstance(t, tuple) else t for t in entries]
        for entries in outputs
    )


def dense(gradients):
    """Embedding gradients as plain tensors, for norms and conditionals."""
    return [None if g is None else tf.convert_to_tensor(g) for g in gradients]


def sum_replicas(gradients):
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return gradients
    live = [g for g in gradients if g is not None]
    summed = iter(replica.all_reduce(tf.distribute.ReduceOp.SUM, live))
    return [None if g is None else next(summed) for g in gradients]


def of_all_replicas(losses, linear):
    """Losses of the whole batch, and by what to divide what they make.

    The gradient of each is that of the rows of this replica. Where the
    gradient to apply is linear in them, so are the values.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return losses, 1
    # Keras divides the loss of a replica by their number.
    own = {key: loss * replicas for key, loss in losses.items()}
    if linear:
        return own, replicas
    means = sum_replicas([tf.stop_gradient(v) for v in losses.values()])
    return {
        key: loss + tf.stop_gradient(mean - loss)
        for (key, loss), mean in zip(own.items(), means)
    }, replicas
