"""The train step on JAX: stateless, and jitted by Keras."""

import contextlib
import functools

import jax

from keras_dlkit._train_step import common
from keras_dlkit._train_step.host_choice import HostChoice
from keras_dlkit._train_step.on_host import OnHost
from keras_dlkit._train_step.results import Results
from keras_dlkit._train_step.stateless import Stateless


class TrainStep(Stateless, OnHost):
    """Mixed into `Attached`, before `keras.Model`."""

    # Where variables are made.
    creation_scope = staticmethod(contextlib.nullcontext)

    def train_step(self, state, data):
        return self._step(state, data)

    def test_step(self, state, data):
        trainable, non_trainable, metrics = state
        data, non_trainable = self._change_batch(non_trainable, data, False)
        (loss,), y_pred, non_trainable, metrics = self._forward(
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
        self._spare()
        trainable, non_trainable, optimizer, metrics = state
        data, non_trainable = self._change_batch(non_trainable, data, True)
        states, updates = non_trainable, self.updates_done(optimizer)
        method = self.attached_optimizer
        if method is None or method.is_plain:
            method, ascends = common.Plain(method), False
        elif ascends is None:
            ascends = method.takes_second
            if ascends is None:
                ascends = method.ascends(self.updates_done(optimizer))
        variables = self.trainable_variables
        results = Results()
        for part, rows, share in common.micro_batches(
            data, method.micro_batches
        ):
            before = non_trainable, metrics
            with self._optimizer_scope(optimizer):
                e = method.lookahead(trainable, variables)
            clean, (loss, y_pred, non_trainable, metrics) = self._gradient(
                common.moved(trainable, e), *before, optimizer, part
            )
            both = functools.partial(
                self._both, method, trainable, before, optimizer, part
            )
            one = functools.partial(self._one, method, optimizer)
            if isinstance(ascends, bool):
                gradients, memory = (both if ascends else one)(clean)
            else:
                gradients, memory = jax.lax.cond(ascends, both, one, clean)
            results.add(loss, y_pred, rows, share, gradients, memory)
        loss, y_pred, gradients, memory = results.join()
        with method.attached(memory, variables):
            trainable, optimizer = self.optimizer.stateless_apply(
                optimizer, gradients, trainable
            )
        logs, metrics = self._report(metrics, data, loss, y_pred)
        if self.task_weighting is not None:
            updated = self.updates_done(optimizer) > updates
            weights, non_trainable = self._finish(
                trainable, states, non_trainable, metrics, data, updated
            )
            logs.update(weights)
        return logs, (trainable, non_trainable, optimizer, metrics)

    def _both(self, method, trainable, before, optimizer, part, clean):
        """The outcome of one part of the batch, with a second gradient."""
        variables = self.trainable_variables
        with self._optimizer_scope(optimizer):
            scale = self.optimizer.scale_loss(1.0)
            at_w = common.scaled(clean, common.inverse(scale))
            e = method.perturbations(at_w, trainable, variables)
        at_e, _ = self._gradient(
            common.moved(trainable, e), *before, optimizer, part
        )
        with self._optimizer_scope(optimizer):
            return common.outcome(method, clean, at_e, variables, scale)

    def _one(self, method, optimizer, clean):
        """The same, without."""
        with self._optimizer_scope(optimizer):
            scale = self.optimizer.scale_loss(1.0)
            return common.outcome(
                method, clean, None, self.trainable_variables, scale
            )

    def make_train_function(self, force=False):
        method = self.attached_optimizer
        if method is None or method.is_plain or method.takes_second is not None:
            return super().make_train_function(force)
        if self.train_function is None or force:
            self.train_function = HostChoice(self, method)
