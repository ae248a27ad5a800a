"""The train step on JAX: stateless, and jitted by Keras."""

import contextlib
import functools

import jax
import keras

from keras_dlkit._train_step import common
from keras_dlkit._train_step.host_choice import HostChoice


class TrainStep:
    """Mixed into `Attached`, before `keras.Model`."""

    # Where variables are made.
    creation_scope = staticmethod(contextlib.nullcontext)

    def train_step(self, state, data):
        return self._step(state, data)

    def test_step(self, state, data):
        trainable, non_trainable, metrics = state
        data, non_trainable = self._change_batch(non_trainable, data, False)
        loss, y_pred, non_trainable, metrics = self._forward(
            trainable, non_trainable, metrics, data, training=False
        )
        logs, metrics = self._report(metrics, data, loss, y_pred)
        return logs, (trainable, non_trainable, metrics)

    def predict_step(self, state, data):
        trainable, non_trainable = (
            dict(zip(map(id, variables), values))
            for variables, values in zip(
                (self.trainable_variables, self.non_trainable_variables), state
            )
        )
        model = self.model
        outputs, updated = model.predict_step(
            (
                [trainable[id(v)] for v in model.trainable_variables],
                [non_trainable[id(v)] for v in model.non_trainable_variables],
            ),
            data,
        )
        non_trainable.update(
            zip(map(id, model.non_trainable_variables), updated)
        )
        return outputs, list(non_trainable.values())

    def _step(self, state, data, ascends=None):
        """One step; `ascends` is known to a host that chose, else traced."""
        trainable, non_trainable, optimizer, metrics = state
        data, non_trainable = self._change_batch(non_trainable, data, True)
        method = self.two_gradient
        if method is None or method.never_ascends:
            ascends, count = False, 1
        else:
            count = method.micro_batches
            if ascends is None:
                ascends = method.always_ascends or method.ascends(
                    self.updates_done(optimizer)
                )
        losses, predictions, rows, gradients, shares = [], [], [], [], []
        for part, size, share in common.micro_batches(data, count):
            before = non_trainable, metrics
            clean, (loss, y_pred, non_trainable, metrics) = self._gradient(
                trainable, *before, optimizer, part
            )
            second = functools.partial(
                self._combined, method, trainable, before, optimizer, part
            )
            if ascends is True:
                clean = second(clean)
            elif ascends is not False:
                clean = jax.lax.cond(ascends, second, lambda g: g, clean)
            losses.append([loss])
            predictions.append(y_pred)
            rows.append(size)
            gradients.append(clean)
            shares.append(share)
        with contextlib.nullcontext() if method is None else method.attached():
            trainable, optimizer = self.optimizer.stateless_apply(
                optimizer, common.weighted_sum(gradients, shares), trainable
            )
        logs, metrics = self._report(
            metrics,
            data,
            common.weighted_sum(losses, shares)[0],
            common.join(predictions, rows),
        )
        return logs, (trainable, non_trainable, optimizer, metrics)

    def _change_batch(self, non_trainable, data, training):
        mapping = list(zip(self.non_trainable_variables, non_trainable))
        with keras.StatelessScope(mapping) as scope:
            data = self.change_batch(data, training=training)
        return data, _values(scope, self.non_trainable_variables)

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
        non_trainable = _values(scope, self.non_trainable_variables)
        metrics = _values(scope, self.metrics_variables)
        return loss, y_pred, non_trainable, metrics

    def _gradient(self, trainable, non_trainable, metrics, optimizer, part):
        def scaled_loss(trainable):
            loss, *rest = self._forward(
                trainable, non_trainable, metrics, part, training=True
            )
            with self._optimizer_scope(optimizer):
                return self.optimizer.scale_loss(loss), (loss, *rest)

        return jax.grad(scaled_loss, has_aux=True)(trainable)

    def _combined(self, method, trainable, before, optimizer, part, clean):
        """The gradients to apply for one part of the batch, scaled."""
        with self._optimizer_scope(optimizer):
            scale = self.optimizer.scale_loss(1.0)
            at_w = common.scaled(clean, common.inverse(scale))
            e = method.perturbations(at_w, trainable, self.trainable_variables)
        at_e, _ = self._gradient(
            common.moved(trainable, e), *before, optimizer, part
        )
        at_e = common.scaled(at_e, common.inverse(scale))
        return common.scaled(method.combine(at_w, at_e), scale)

    def _report(self, metrics, data, loss, y_pred):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        mapping = zip(self.metrics_variables, metrics)
        with keras.StatelessScope(list(mapping)) as scope:
            self.loss_tracker.update_state(
                loss, sample_weight=common.batch_size(data)
            )
            logs = self.compute_metrics(x, y, y_pred, sample_weight)
        return logs, _values(scope, self.metrics_variables)

    def _optimizer_scope(self, values):
        return keras.StatelessScope(list(zip(self.optimizer.variables, values)))

    def updates_done(self, optimizer):
        """The count of updates in the values of the optimizer's variables."""
        with self._optimizer_scope(optimizer):
            return keras.ops.convert_to_tensor(self.optimizer.iterations)

    def make_train_function(self, force=False):
        method = self.two_gradient
        if method is None or method.never_ascends or method.always_ascends:
            return super().make_train_function(force)
        if self.train_function is None or force:
            self.train_function = HostChoice(self, method)


def _values(scope, variables):
    return [scope.get_current_value(v) for v in variables]
