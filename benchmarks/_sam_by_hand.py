"""SAM as one would write it without keras_dlkit: a `train_step` a backend.

Each is the plain form: Euclidean norm over all weights, moving statistics of
the first pass, loss and metrics of the first pass; nothing for loss scaling,
regularisation losses, dropout masks, sample weights or several devices.
"""

import keras

RHO = 0.05


def _report(model, loss, y, y_pred):
    for metric in model.metrics:
        if metric.name == "loss":
            metric.update_state(loss)
        else:
            metric.update_state(y, y_pred)
    return {metric.name: metric.result() for metric in model.metrics}


def _tensorflow_step(self, data):
    import tensorflow as tf

    x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    weights = self.trainable_variables
    with tf.GradientTape() as tape:
        y_pred = self(x, training=True)
        loss = self.compute_loss(y=y, y_pred=y_pred)
    gradients = tape.gradient(loss, weights)

    factor = RHO / (tf.linalg.global_norm(gradients) + 1e-12)
    old_weights = [tf.identity(w.value) for w in weights]
    statistics = [tf.identity(v.value) for v in self.non_trainable_variables]
    for weight, gradient in zip(weights, gradients):
        weight.assign_add(factor * gradient)
    with tf.GradientTape() as tape:
        moved_loss = self.compute_loss(y=y, y_pred=self(x, training=True))
    gradients = tape.gradient(moved_loss, weights)

    for variable, value in zip(
        [*weights, *self.non_trainable_variables], [*old_weights, *statistics]
    ):
        variable.assign(value)
    self.optimizer.apply(gradients, weights)
    return _report(self, loss, y, y_pred)


def _jax_step(self, state, data):
    import jax
    import jax.numpy as jnp

    x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    weights, statistics, optimizer, metrics = state

    def gradient(weights):
        def loss_of(weights):
            y_pred, updated = self.stateless_call(
                weights, statistics, x, training=True
            )
            loss = self.compute_loss(y=y, y_pred=y_pred)
            return loss, (y_pred, updated)

        return jax.value_and_grad(loss_of, has_aux=True)(weights)

    (loss, (y_pred, updated)), clean = gradient(weights)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in clean))
    factor = RHO / (norm + 1e-12)
    _, ascent = gradient([w + factor * g for w, g in zip(weights, clean)])
    weights, optimizer = self.optimizer.stateless_apply(
        optimizer, ascent, weights
    )
    mapping = list(zip(self.metrics_variables, metrics))
    with keras.StatelessScope(mapping) as scope:
        logs = _report(self, loss, y, y_pred)
    metrics = [scope.get_current_value(v) for v in self.metrics_variables]
    return logs, (weights, updated, optimizer, metrics)


def _torch_step(self, data):
    import torch

    x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    weights = [v.value for v in self.trainable_variables]
    statistics = [v.value for v in self.non_trainable_variables]
    y_pred = self(x, training=True)
    loss = self.compute_loss(y=y, y_pred=y_pred)
    gradients = torch.autograd.grad(loss, weights)

    with torch.no_grad():
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        factor = RHO / (norm + 1e-12)
        old_values = [v.clone() for v in [*weights, *statistics]]
        for weight, gradient in zip(weights, gradients):
            weight.add_(factor * gradient)
    moved_loss = self.compute_loss(y=y, y_pred=self(x, training=True))
    gradients = list(torch.autograd.grad(moved_loss, weights))

    with torch.no_grad():
        for value, old in zip([*weights, *statistics], old_values):
            value.copy_(old)
        self.optimizer.apply(gradients, self.trainable_variables)
    return _report(self, loss.detach(), y, y_pred)


class SAMByHand(keras.Model):
    """A functional model with a SAM step of its own."""

    train_step = {
        "tensorflow": _tensorflow_step,
        "jax": _jax_step,
        "torch": _torch_step,
    }[keras.config.backend()]
