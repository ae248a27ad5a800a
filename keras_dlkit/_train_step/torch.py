"""The train step on PyTorch: eager, by `torch.autograd.grad`."""

import contextlib
import functools

import keras
import torch

from keras_dlkit._train_step import common
from keras_dlkit._train_step import tasks
from keras_dlkit._train_step.passes import Pass
from keras_dlkit._train_step.results import Results


class TrainStep:
    """Mixed into `Attached`, before `keras.Model`."""

    # Where variables are made.
    creation_scope = staticmethod(contextlib.nullcontext)

    def train_step(self, data):
        data = self.change_batch(data, training=True)
        before = tasks.before_step(self, data)
        method = self.attached_optimizer
        if method is None or method.is_plain:
            method = common.Plain(method)
        if isinstance(method, common.Plain) and not self.takes_task_gradients:
            with method.attached():
                logs = super().train_step(data)
        else:
            logs = self._step(method, data)
        with torch.no_grad():
            return tasks.finish(self, data, before, logs)

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
            loss, y_pred, clean, changes = self._first_pass(
                method, part, variables
            )
            at_e = None
            if ascends:
                at_e = self._second_gradient(method, part, variables, clean)
            changes()
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
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _first_pass(self, method, part, variables):
        values = [v.value for v in variables]
        with torch.no_grad():
            e = method.lookahead(values, variables)
        if e is None:
            *results, scope = self._pass(part, variables, values)
            return *results, scope.assign
        *results, scope = self._pass_at(
            common.moved(_detached(values), e), part, variables
        )
        return *results, functools.partial(scope.assign, but=variables)

    def _pass_at(self, point, part, variables):
        leaves = [p.detach().requires_grad_() for p in point]
        return self._pass(part, variables, leaves)

    def _pass(self, part, variables, leaves):
        """With the gradient of `leaves`; what it assigns is in its scope."""
        with Pass(variables, leaves) as scope:
            losses, y_pred = common.forward(self, part)
            gradients = self._gradient(losses, leaves)
        return sum(losses), y_pred, gradients, scope

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

    def _second_gradient(self, method, part, variables, clean):
        values = _detached(v.value for v in variables)
        with torch.no_grad():
            at_w = common.scaled(
                clean, common.inverse(self.optimizer.scale_loss(1.0))
            )
            e = method.perturbations(at_w, values, variables)
            point = common.moved(values, e)
        # Not to live on through the second pass.
        del at_w, e
        _, _, at_e, _ = self._pass_at(point, part, variables)
        return common.same_gradients(at_e, clean, variables)


def _detached(values):
    return [value.detach() for value in values]
