"""JAX: what Keras does to variables, as functions of their values."""

import jax
import keras
from jax import numpy as jnp

from keras_dlkit._train_step import common
from keras_dlkit._train_step import tasks


class Stateless:
    """The passes and scopes of the train step; mixed into `TrainStep`."""

    def _change_batch(self, non_trainable, data, training):
        with self._states_scope(non_trainable) as scope:
            data = self.change_batch(data, training=training)
        return data, values_of(scope, self.non_trainable_variables)

    def _forward(self, trainable, non_trainable, metrics, part, training):
        mapping = [
            *zip(self.trainable_variables, trainable),
            *zip(self.non_trainable_variables, non_trainable),
            *zip(self.metrics_variables, metrics),
        ]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            losses, y_pred = common.forward(self, part, training)
        non_trainable = values_of(scope, self.non_trainable_variables)
        metrics = values_of(scope, self.metrics_variables)
        return losses, y_pred, non_trainable, metrics

    def _gradient(self, trainable, non_trainable, metrics, optimizer, part):
        def scaled_losses(trainable):
            losses, *rest = self._forward(
                trainable, non_trainable, metrics, part, training=True
            )
            with self._optimizer_scope(optimizer):
                scaled = [self.optimizer.scale_loss(loss) for loss in losses]
            return scaled, (sum(losses), *rest)

        losses, pull, aux = jax.vjp(scaled_losses, trainable, has_aux=True)
        gradients = []
        for index in range(len(losses)):
            ones = [jnp.full_like(v, i == index) for i, v in enumerate(losses)]
            gradients.append(pull(ones)[0])
        if len(gradients) == 1:
            return gradients[0], aux
        loss, y_pred, non_trainable, metrics = aux
        with self._states_scope(non_trainable, optimizer) as scope:
            gradient = tasks.merged(self, gradients)
        non_trainable = values_of(scope, self.non_trainable_variables)
        return gradient, (loss, y_pred, non_trainable, metrics)

    def _finish(self, trainable, before, non_trainable, metrics, data, updated):
        """What the task weighting logs, and the states with what it learned."""
        weighting, losses = self.task_weighting, None
        if weighting.looks_again:
            mapping = [
                *zip(self.trainable_variables, trainable),
                *zip(self.non_trainable_variables, before),
                *zip(self.metrics_variables, metrics),
            ]
            with keras.StatelessScope(mapping, collect_losses=True):
                losses = tasks.losses_again(self, data)
        with self._states_scope(non_trainable) as scope:
            if losses is not None:
                tasks.learn(weighting, losses, updated)
            logs = weighting.logs()
        return logs, values_of(scope, self.non_trainable_variables)

    def of_all_replicas(self, losses):
        return losses, 1

    def _states_scope(self, values, optimizer=()):
        mapping = [
            *zip(self.non_trainable_variables, values),
            *zip(self.optimizer.variables if optimizer else (), optimizer),
        ]
        return keras.StatelessScope(mapping)

    def _report(self, metrics, data, loss, y_pred):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        mapping = zip(self.metrics_variables, metrics)
        with keras.StatelessScope(list(mapping)) as scope:
            self.loss_tracker.update_state(
                loss, sample_weight=common.batch_size(data)
            )
            logs = self.compute_metrics(x, y, y_pred, sample_weight)
        return logs, values_of(scope, self.metrics_variables)

    def _optimizer_scope(self, values):
        return keras.StatelessScope(list(zip(self.optimizer.variables, values)))

    def updates_done(self, optimizer):
        """The count of updates in the values of the optimizer's variables."""
        with self._optimizer_scope(optimizer):
            return keras.ops.convert_to_tensor(self.optimizer.iterations)


def values_of(scope, variables):
    return [scope.get_current_value(v) for v in variables]
