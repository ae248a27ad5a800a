"""A step of two phases, each with a loss and weights of its own.

What a model gives: `phases(data)`, which yields twice `(loss function,
variables)`; `apply_phase(gradients, variables)`; `finish_step(data)`, to logs.
The second loss sees the weights that the first phase has changed.
"""

import keras

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    class AlternatingStep:
        """Mixed into a model, before `keras.Model`."""

        def train_step(self, data):
            self.prepare_step(data)
            for loss_of, variables in self.phases(data):
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([v.value for v in variables])
                    loss = loss_of()
                self.apply_phase(
                    tape.gradient(loss, [v.value for v in variables]), variables
                )
            return self.finish_step(data)

elif keras.config.backend() == "jax":
    import jax

    class AlternatingStep:
        def train_step(self, state, data):
            trainable, non_trainable, optimizer, metrics = state
            values = {
                "weights": list(trainable),
                "rest": [*non_trainable, *optimizer, *metrics],
            }
            keys = (
                self.trainable_variables,
                [
                    *self.non_trainable_variables,
                    *self.optimizer.variables,
                    *self.metrics_variables,
                ],
            )
            return self._steps(keys, values, data, len(non_trainable), metrics)

        def _steps(self, keys, values, data, states, metrics):
            trained, others = keys
            index = {id(v): i for i, v in enumerate(trained)}
            weights, rest = values["weights"], values["rest"]

            def scope(weights, rest):
                pairs = [*zip(trained, weights), *zip(others, rest)]
                return keras.StatelessScope(pairs, collect_losses=True)

            def after(opened, variables):
                return [opened.get_current_value(v) for v in variables]

            for loss_of, variables in self.phases(data):

                def loss_at(chosen, loss_of=loss_of, variables=variables):
                    moved = list(weights)
                    for variable, value in zip(variables, chosen):
                        moved[index[id(variable)]] = value
                    with scope(moved, rest) as opened:
                        loss = loss_of()
                    return loss, after(opened, others)

                gradients, rest = jax.grad(loss_at, has_aux=True)(
                    [weights[index[id(v)]] for v in variables]
                )
                with scope(weights, rest) as opened:
                    self.apply_phase(gradients, variables)
                weights, rest = after(opened, trained), after(opened, others)
            with scope(weights, rest) as opened:
                logs = self.finish_step(data)
            rest = after(opened, others)
            end = len(rest) - len(metrics)
            return logs, (weights, rest[:states], rest[states:end], rest[end:])

else:
    import torch

    class AlternatingStep:
        def train_step(self, data):
            self.prepare_step(data)
            for loss_of, variables in self.phases(data):
                gradients = torch.autograd.grad(
                    loss_of(), [v.value for v in variables], allow_unused=True
                )
                with torch.no_grad():
                    self.apply_phase(gradients, variables)
            return self.finish_step(data)
