"""The train step on TensorFlow: graph or XLA, one device or several."""

import keras
import tensorflow as tf

from keras_dlkit._train_step import common


class TrainStep:
    """Mixed into `Attached`, before `keras.Model`."""

    def creation_scope(self):
        """Where variables are made: `fit` may be called outside of it."""
        return self.distribute_strategy.scope()

    def train_step(self, data):
        data = self.change_batch(data, training=True)
        method = self.two_gradient
        if method is None:
            return super().train_step(data)
        if method.never_ascends:
            with method.attached():
                return super().train_step(data)
        return self._two_gradient_step(method, data)

    def test_step(self, data):
        return super().test_step(self.change_batch(data, training=False))

    def predict_step(self, data):
        return self.model.predict_step(data)

    def _two_gradient_step(self, method, data):
        if not self.built:  # a lazy model is built by its first pass
            self(keras.utils.unpack_x_y_sample_weight(data)[0], training=False)
        variables = self.trainable_variables
        if not self.optimizer.built:
            self.optimizer.build(variables)
        losses, predictions, rows, gradients, shares = [], [], [], [], []
        for part, count, share in common.micro_batches(
            data, method.micro_batches
        ):
            before = [
                (v, tf.identity(v.value)) for v in self.non_trainable_variables
            ]
            loss, y_pred, clean = self._clean_pass(part)
            gradients.append(
                self._combined(method, part, variables, clean, before)
            )
            losses.append([loss])
            predictions.append(y_pred)
            rows.append(count)
            shares.append(share)
        self._report(data, common.weighted_sum(losses, shares)[0])
        with method.attached():
            self.optimizer.apply(
                common.weighted_sum(gradients, shares), variables
            )
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = common.join(predictions, rows)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _clean_pass(self, part):
        with tf.GradientTape() as tape:
            loss, y_pred = self._forward(part)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        return loss, y_pred, _dense(gradients)

    def _forward(self, part):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part)
        y_pred = self(x, training=True)
        loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
        return loss, y_pred

    def _combined(self, method, part, variables, clean, before):
        """The gradients to apply for one part of the batch, scaled."""
        scale = self.optimizer.scale_loss(1.0)
        values = [tf.convert_to_tensor(v) for v in variables]
        # Outside of any conditional: the norm is that of the global gradient.
        at_w = common.scaled(_sum_replicas(clean), common.inverse(scale))
        live = [i for i, g in enumerate(clean) if g is not None]

        def second_gradient():
            e = method.perturbations(at_w, values, variables)
            point = common.moved(values, e)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([point[i] for i in live])
                mapping = [*zip(variables, point), *before]
                with keras.StatelessScope(mapping, collect_losses=True):
                    loss, _ = self._forward(part)
                loss = self.optimizer.scale_loss(loss)
            at_e = tape.gradient(loss, [point[i] for i in live])
            at_e = common.scaled(_dense(at_e), common.inverse(scale))
            at_e = common.same_gradients(at_e, [variables[i] for i in live])
            mine = common.scaled(
                [clean[i] for i in live], common.inverse(scale)
            )
            return common.scaled(method.combine(mine, at_e), scale)

        if method.always_ascends:
            chosen = second_gradient()
        else:
            chosen = tf.cond(
                method.ascends(tf.convert_to_tensor(self.optimizer.iterations)),
                second_gradient,
                lambda: [clean[i] for i in live],
            )
        gradients = [None] * len(variables)
        for i, gradient in zip(live, chosen):
            gradients[i] = gradient
        return gradients

    def _report(self, data, loss):
        # Keras divides the loss of a replica by their number; undo it.
        replicas = self.distribute_strategy.num_replicas_in_sync
        self.loss_tracker.update_state(
            loss * replicas, sample_weight=common.batch_size(data)
        )


def _dense(gradients):
    """Embedding gradients as plain tensors, for norms and conditionals."""
    return [None if g is None else tf.convert_to_tensor(g) for g in gradients]


def _sum_replicas(gradients):
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return gradients
    live = [g for g in gradients if g is not None]
    summed = iter(replica.all_reduce(tf.distribute.ReduceOp.SUM, live))
    return [None if g is None else next(summed) for g in gradients]
