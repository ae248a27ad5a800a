"""The train step on TensorFlow: graph or XLA, one device or several."""

import functools

import keras
import tensorflow as tf

from keras_dlkit import _keras
from keras_dlkit._train_step import common
from keras_dlkit._train_step import graph
from keras_dlkit._train_step import tasks
from keras_dlkit._train_step.results import Results


class TrainStep(_keras.BuildsOnRows):
    """Mixed into `Attached`, before `keras.Model`."""

    def creation_scope(self):
        """Where variables are made: `fit` may be called outside of it."""
        return self.distribute_strategy.scope()

    def train_step(self, data):
        data = self.change_batch(data, training=True)
        updates = tasks.before_step(self, data)
        method = self.attached_optimizer
        if method is None or method.is_plain:
            method = common.Plain(method)
        again = None
        if tasks.is_of_keras(self, method):
            with method.attached():
                logs = super().train_step(data)
        else:
            logs, again = self._step(method, data)
        return tasks.finish(self, data, updates, logs, again)

    def of_all_replicas(self, losses):
        return graph.of_all_replicas(losses, self.task_weighting.is_linear)

    def test_step(self, data):
        return super().test_step(self.change_batch(data, training=False))

    def predict_step(self, data):
        return self.model.predict_step(data)

    def _step(self, method, data):
        common.build(self, data)
        variables = self.trainable_variables
        if not self.optimizer.built:
            self.optimizer.build(variables)
        results = Results()
        for part, rows, share in common.micro_batches(
            data, method.micro_batches
        ):
            loss, y_pred, clean, scope = self._first_pass(
                method, part, variables
            )
            gradients, memory = self._outcome(
                method, part, variables, clean, scope
            )
            results.add(loss, y_pred, rows, share, gradients, memory)
        loss, y_pred, gradients, memory = results.join()
        self._report(data, loss)
        with method.attached(memory, variables):
            self.optimizer.apply(gradients, variables)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return logs, functools.partial(graph.second_pass, scope)

    def _first_pass(self, method, part, variables):
        values = graph.tensors(variables)
        e = method.lookahead(values, variables)
        if e is None:
            scope, sources = graph.FirstPass(), [v.value for v in variables]
            return *self._pass(part, sources, scope), scope
        point = common.moved(values, e)
        scope = graph.FirstPass(zip(variables, point))
        return *self._pass(part, point, scope), scope

    def _pass(self, part, sources, scope):
        """The loss, the predictions, and the gradient of `sources`."""
        tape = tf.GradientTape(persistent=self.takes_task_gradients)
        with scope:
            with tape:
                tape.watch([s for s in sources if tf.is_tensor(s)])
                losses, y_pred = common.forward(self, part)
                scaled = [self.optimizer.scale_loss(loss) for loss in losses]
            # In the scope: what it draws and keeps is of this pass, too.
            gradients = self._gradients(tape, scaled, sources)
        return sum(losses), y_pred, gradients

    def _gradients(self, tape, losses, sources):
        gradients = [
            graph.dense(tape.gradient(loss, sources)) for loss in losses
        ]
        if len(gradients) == 1:
            return gradients[0]
        # The products are those of the gradients of all replicas, which Keras
        # will sum up.
        summed = [graph.sum_replicas(g) for g in gradients]
        replicas = self.distribute_strategy.num_replicas_in_sync
        return common.scaled(tasks.merged(self, summed), 1.0 / replicas)

    def _outcome(self, method, part, variables, clean, first):
        """The gradients to apply for one part of the batch, and a memory."""
        if isinstance(method, common.Plain):
            return clean, []
        ascends = method.takes_second
        scale = self.optimizer.scale_loss(1.0)
        if ascends is None:
            ascends = method.ascends(
                tf.convert_to_tensor(self.optimizer.iterations)
            )
        # Outside of any conditional, where replicas cannot meet: the norm is
        # that of the global gradient.
        at_w = graph.sum_replicas(clean)

        def second_gradient():
            values = graph.tensors(variables)
            e = method.perturbations(
                common.scaled(at_w, common.inverse(scale)), values, variables
            )
            point = common.moved(values, e)
            scope = graph.second_pass(first, list(zip(variables, point)))
            _, _, at_e = self._pass(part, point, scope)
            return (common.same_gradients(at_e, clean, variables),)

        (at_e,) = graph.choose(ascends, second_gradient, lambda: (clean,))
        if method.is_linear:  # Keras sums up the replicas when it applies
            return at_e, []
        at_e = graph.sum_replicas(at_e)
        gradients, memory = graph.choose(
            ascends,
            lambda: common.outcome(method, at_w, at_e, variables, scale),
            lambda: common.outcome(method, at_w, None, variables, scale),
        )
        replicas = self.distribute_strategy.num_replicas_in_sync
        return common.scaled(gradients, 1.0 / replicas), memory

    def _report(self, data, loss):
        # Keras divides the loss of a replica by their number; undo it.
        loss *= self.distribute_strategy.num_replicas_in_sync
        rows = common.batch_size(data)
        self.loss_tracker.update_state(loss, sample_weight=rows)
