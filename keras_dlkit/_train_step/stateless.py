"""JAX: what Keras does to variables, as functions of their values."""

import jax
import keras

from keras_dlkit._train_step import common


class Stateless:
    """The passes and scopes of the train step; mixed into `TrainStep`."""

    def _change_batch(self, non_trainable, data, training):
        mapping = list(zip(self.non_trainable_variables, non_trainable))
        with keras.StatelessScope(mapping) as scope:
            data = self.change_batch(data, training=training)
        return data, values_of(scope, self.non_trainable_variables)

    def _forward(self, trainable, non_trainable, metrics, part, training):
        mapping = [
            *zip(self.trainable_variables, trainable),
            *zip(self.non_trainable_variables, non_trainable),
            *zip(self.metrics_variables, metrics),
        ]
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part)
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            y_pred = self(x, training=training)
            loss = self.compute_loss(
                x, y, y_pred, sample_weight, training=training
            )
        non_trainable = values_of(scope, self.non_trainable_variables)
        metrics = values_of(scope, self.metrics_variables)
        return loss, y_pred, non_trainable, metrics

    def _gradient(self, trainable, non_trainable, metrics, optimizer, part):
        def scaled_loss(trainable):
            loss, *rest = self._forward(
                trainable, non_trainable, metrics, part, training=True
            )
            with self._optimizer_scope(optimizer):
                return self.optimizer.scale_loss(loss), (loss, *rest)

        return jax.grad(scaled_loss, has_aux=True)(trainable)

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
