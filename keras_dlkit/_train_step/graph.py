"""TensorFlow: what loops, conditionals and replicas ask for."""

import contextlib

import tensorflow as tf

from keras_dlkit._train_step import passes


def tensors(variables):
    return [tf.convert_to_tensor(v) for v in variables]


class FirstPass(passes.FirstPass):
    """Also within loops and conditionals, where there is another graph.

    A tensor of that graph cannot leave it: what is assigned there is assigned
    in the second pass, too, and put back after it.
    """

    def __init__(self, at=()):
        super().__init__(self._read_before, at)
        eager = tf.executing_eagerly()
        self._graph = None if eager else tf.compat.v1.get_default_graph()
        self._within = {}

    def add_update(self, update):
        variable, _ = update
        if self._is_within() and id(variable) not in self.state_mapping:
            self._within[id(variable)] = variable
        super().add_update(update)

    def _is_within(self):
        if tf.executing_eagerly():
            return False
        return tf.compat.v1.get_default_graph() is not self._graph

    def _read_before(self, variable):
        if self._is_within():
            with self._graph.as_default() if self._graph else tf.init_scope():
                return tf.convert_to_tensor(variable)
        return tf.convert_to_tensor(variable)

    def assigned_within(self):
        return list(self._within.values())


@contextlib.contextmanager
def second_pass(first, at):
    within = first.assigned_within()
    if not within:
        with passes.second_pass(first, at):
            yield
        return
    before = {id(v): value for v, value in first.before()}
    after = tensors(within)
    for variable in within:
        variable.assign(before.pop(id(variable)))
    held = [pair for pair in first.before() if id(pair[0]) in before]
    with FirstPass([*held, *at]):
        yield
    for variable, value in zip(within, after):
        variable.assign(value)


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
