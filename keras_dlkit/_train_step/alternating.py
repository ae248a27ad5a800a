"""A step of two phases, each with a loss and weights of its own.

What a model gives: `prepare_step(data)`, before all; `phases(data)`, which
yields twice `(loss function, variables)`; `apply_phase(gradients, variables)`;
`finish_step(data)`, to logs.
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

    class AlternatingStep:  # type: ignore[no-redef]
        def train_step(self, state, data):
            trainable, *others = state
            values = _Values(self, trainable, others)
            for loss_of, variables in self.phases(data):
                gradients = values.gradients(loss_of, variables)
                values.change(lambda g=gradients: self.apply_phase(*g))
            logs = values.change(lambda: self.finish_step(data))
            return logs, values.state()

    class _Values:
        """The values of a model's variables in the course of a step."""

        def __init__(self, model, trainable, others):
            groups = (
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
            self.sizes = [len(group) for group in groups]
            self.weights = list(model.trainable_variables)
            self.others = [v for group in groups for v in group]
            self.at = list(trainable)
            self.at_others = [value for group in others for value in group]

        def run(self, at, function):
            """What a function returns, and the values after it."""
            pairs = [
                *zip(self.weights, at),
                *zip(self.others, self.at_others),
            ]
            with keras.StatelessScope(pairs, collect_losses=True) as scope:
                result = function()
            after = [scope.get_current_value(v) for v, _ in pairs]
            return result, after[: len(at)], after[len(at) :]

        def change(self, function):
            result, self.at, self.at_others = self.run(self.at, function)
            return result

        def gradients(self, loss_of, variables):
            """Gradients, with the variables that they are for."""
            places = {id(v): i for i, v in enumerate(self.weights)}
            places = [places[id(v)] for v in variables]

            def loss(chosen):
                at = list(self.at)
                for place, value in zip(places, chosen):
                    at[place] = value
                result, _, others = self.run(at, loss_of)
                return result, others

            chosen = [self.at[place] for place in places]
            found, self.at_others = jax.grad(loss, has_aux=True)(chosen)
            return found, variables

        def state(self):
            groups, start = [], 0
            for size in self.sizes:
                groups.append(self.at_others[start : start + size])
                start += size
            return (self.at, *groups)

else:
    import torch

    class AlternatingStep:  # type: ignore[no-redef]
        def train_step(self, data):
            self.prepare_step(data)
            for loss_of, variables in self.phases(data):
                loss, values = loss_of(), [v.value for v in variables]
                gradients = ()
                if values:  # not all of them frozen
                    gradients = torch.autograd.grad(
                        loss, values, allow_unused=True
                    )
                with torch.no_grad():
                    self.apply_phase(gradients, variables)
            return self.finish_step(data)
