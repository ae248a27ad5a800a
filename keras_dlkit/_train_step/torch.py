"""The train step on PyTorch: eager, by `torch.autograd.grad`."""

import contextlib

import keras
import torch

from keras_dlkit._train_step import common


class TrainStep:
    """Mixed into `Attached`, before `keras.Model`."""

    # Where variables are made.
    creation_scope = staticmethod(contextlib.nullcontext)

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
        variables = self.trainable_variables
        ascends = bool(method.ascends(int(self.optimizer.iterations)))
        losses, predictions, rows, gradients, shares = [], [], [], [], []
        for part, count, share in common.micro_batches(
            data, method.micro_batches
        ):
            # Clones: the clean pass assigns in place.
            before = [
                (v, v.value.detach().clone())
                for v in self.non_trainable_variables
            ]
            loss, y_pred = self._forward(part)
            values = [v.value for v in variables]
            gradient = self._gradient(loss, values)
            if ascends:
                gradient = self._combined(
                    method, part, variables, gradient, before
                )
            losses.append([loss.detach()])
            predictions.append(y_pred)
            rows.append(count)
            gradients.append(gradient)
            shares.append(share)
        self.loss_tracker.update_state(
            common.weighted_sum(losses, shares)[0],
            sample_weight=common.batch_size(data),
        )
        with torch.no_grad(), method.attached():
            self.optimizer.apply(
                common.weighted_sum(gradients, shares), variables
            )
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = common.join(predictions, rows)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _forward(self, part):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part)
        y_pred = self(x, training=True)
        loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
        return loss, y_pred

    def _gradient(self, loss, values):
        loss = self.optimizer.scale_loss(loss)
        return list(torch.autograd.grad(loss, values, allow_unused=True))

    def _combined(self, method, part, variables, clean, before):
        """The gradients to apply for one part of the batch, scaled."""
        scale = self.optimizer.scale_loss(1.0)
        values = [v.value.detach() for v in variables]
        live = [i for i, g in enumerate(clean) if g is not None]
        at_w = common.scaled(clean, common.inverse(scale))
        with torch.no_grad():
            # Not kept in a name: it would live on through the second pass.
            point = common.moved(
                values, method.perturbations(at_w, values, variables)
            )
        leaves = [point[i].detach().requires_grad_() for i in live]
        mapping = [
            *zip(variables, point),
            *((variables[i], leaf) for i, leaf in zip(live, leaves)),
            *before,
        ]
        with keras.StatelessScope(mapping, collect_losses=True):
            loss, _ = self._forward(part)
        at_e = common.same_gradients(
            self._gradient(loss, leaves), [variables[i] for i in live]
        )
        at_e = common.scaled(at_e, common.inverse(scale))
        chosen = common.scaled(
            method.combine([at_w[i] for i in live], at_e), scale
        )
        gradients = [None] * len(variables)
        for i, gradient in zip(live, chosen):
            gradients[i] = gradient
        return gradients
