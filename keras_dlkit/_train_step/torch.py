"""The train step on PyTorch: eager, by `torch.autograd.grad`."""

import contextlib
import functools

import keras
import torch

from keras_dlkit._train_step import common
from keras_dlkit._train_step import tasks
from keras_dlkit._train_step.passes import FirstPass
from keras_dlkit._train_step.passes import second_pass
from keras_dlkit._train_step.results import Results


class TrainStep:
    """Mixed into `Attached`, before `keras.Model`."""

    # Where variables are made.
    creation_scope = staticmethod(contextlib.nullcontext)

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
        with torch.no_grad():
            return tasks.finish(self, data, updates, logs, again)

    def test_step(self, data):
        return super().test_step(self.change_batch(data, training=False))

    def predict_step(self, data):
        return self.model.predict_step(data)

    def _step(self, method, data):
        variables = self.trainable_variables
        if not self.optimizer.built:
            self.optimizer.build(variables)
        ascends = method.takes_second
        if ascends is None:
            ascends = bool(method.ascends(int(self.optimizer.iterations)))
        results = Results()
        for part, rows, share in common.micro_batches(
            data, method.micro_batches
        ):
            loss, y_pred, clean, scope = self._first_pass(
                method, part, variables, ascends
            )
            at_e = None
            if ascends:
                at_e = self._second_gradient(
                    method, part, variables, clean, scope
                )
            with torch.no_grad():
                gradients, memory = common.outcome(
                    method,
                    clean,
                    at_e,
                    variables,
                    self.optimizer.scale_loss(1.0),
                )
            results.add(loss.detach(), y_pred, rows, share, gradients, memory)
        loss, y_pred, gradients, memory = results.join()
        self.loss_tracker.update_state(
            loss, sample_weight=common.batch_size(data)
        )
        with torch.no_grad(), method.attached(memory, variables):
            self.optimizer.apply(gradients, variables)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return logs, functools.partial(second_pass, scope)

    def _first_pass(self, method, part, variables, ascends):
        values = [v.value for v in variables]
        with torch.no_grad():
            e = method.lookahead(values, variables)
        at = ()
        if e is not None:
            values = _leaves(common.moved(_detached(values), e))
            at = zip(variables, values)
        scope = contextlib.nullcontext()
        if ascends or at or tasks.looks_again(self):
            scope = FirstPass(lambda v: v.value.detach().clone(), at)
        return *self._pass(part, values, scope), scope

    def _pass(self, part, leaves, scope):
        """The loss, the predictions, and the gradient of `leaves`."""
        with scope:
            losses, y_pred = common.forward(self, part)
            gradients = self._gradient(losses, leaves)
        return sum(losses), y_pred, gradients

    def _gradient(self, losses, values):
        gradients = []
        for loss in losses:
            if not loss.requires_grad:  # there is no regularizer
                gradients.append([None] * len(values))
                continue
            loss = self.optimizer.scale_loss(loss)
            gradients.append(
                torch.autograd.grad(
                    loss,
                    values,
                    retain_graph=len(losses) > 1,
                    allow_unused=True,
                )
            )
        with torch.no_grad():
            return list(tasks.merged(self, gradients))

    def of_all_replicas(self, losses):
        return losses, 1

    def _second_gradient(self, method, part, variables, clean, first):
        values = _detached(v.value for v in variables)
        with torch.no_grad():
            at_w = common.scaled(
                clean, common.inverse(self.optimizer.scale_loss(1.0))
            )
            e = method.perturbations(at_w, values, variables)
            point = _leaves(common.moved(values, e))
        # Not to live on through the second pass.
        del at_w, e
        scope = second_pass(first, zip(variables, point))
        _, _, at_e = self._pass(part, point, scope)
        return common.same_gradients(at_e, clean, variables)


def _detached(values):
    return [value.detach() for value in values]


def _leaves(point):
    return [p.detach().requires_grad_() for p in point]
