"""SDE-Net in the order of the paper: two optimizers, one after the other."""

import keras
from keras import ops

from keras_dlkit import _isolated
from keras_dlkit import _keras
from keras_dlkit._export import export
from keras_dlkit._train_step.alternating import AlternatingStep
from keras_dlkit._tree import leaves
from keras_dlkit.models.sde_net import SDENet


@export
class AlternatingSDENet(AlternatingStep, SDENet):
    """What `SDENet(..., alternating=True)` makes."""

    def __init__(self, *args, alternating=True, **kwargs):
        super().__init__(*args, alternating=True, **kwargs)

    def compile(self, optimizer="rmsprop", *args, **kwargs):
        optimizer = keras.optimizers.get(optimizer)
        # Keras has it since 3.15.
        multi = getattr(keras.optimizers, "MultiOptimizer", ())
        if not isinstance(optimizer, multi):
            raise ValueError(
                "`alternating=True` takes a step of each of two optimizers: "
                "`keras.optimizers.MultiOptimizer(OptimizerMap(first, "
                "{'.*diffusion.*': second}))`, or a function of the variable. "
                f"Received: optimizer={optimizer.name!r}"
            )
        if self.dtype_policy.compute_dtype == "float16":
            raise ValueError(
                "`alternating=True` has no loss scaling for float16. Received: "
                f"the dtype policy {self.dtype_policy.name!r}. Use "
                "'mixed_bfloat16', or alternating=False."
            )
        strategy = getattr(self, "distribute_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "`alternating=True` runs on one device with TensorFlow. "
                f"Received: {strategy.num_replicas_in_sync} replicas. Use "
                "alternating=False."
            )
        super().compile(optimizer, *args, **kwargs)

    def get_compile_config(self):
        if not self.compiled:
            return {}
        arguments = _keras.compile_arguments(self)
        return keras.saving.serialize_keras_object(arguments)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def train_diffusion(self, inputs, hidden):
        """Not in the pass of the task."""

    # The step: see `keras_dlkit._train_step.alternating`.

    def prepare_step(self, data):
        """Builds what a first step on some backends finds not built."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if not self.built:
            self(x, training=False)
        self.check_unknown(x)  # the second phase asks for it late
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        self._groups()

    def phases(self, data):
        of_task, of_diffusion = self._groups()
        yield lambda: self._task_loss(data), of_task
        yield lambda: self._diffusion_loss(data), of_diffusion

    def _groups(self):
        """The weights of the task and of the diffusion, by two optimizers."""
        own = {id(v) for v in self.block.diffusion.trainable_variables}
        groups = [], []
        for variable in self.trainable_variables:
            groups[id(variable) in own].append(variable)
        if self.optimizer.built:
            used = [{id(o) for o in map(self._optimizer_of, g)} for g in groups]
            if used[0] & used[1]:
                raise ValueError(
                    "`alternating=True` needs an optimizer for the diffusion "
                    "that has no other weights. Received: one for "
                    f"{groups[1][0].path!r} and others. Map the paths of the "
                    "weights of the diffusion to an optimizer of their own."
                )
        return groups

    def _optimizer_of(self, variable):
        return _keras.optimizer_of(self.optimizer, variable)

    def _task_loss(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=True)
        loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
        self._note_loss(loss, x)
        self.compute_metrics(
            x, y, ops.stop_gradient(y_pred), sample_weight=sample_weight
        )
        return loss

    def _note_loss(self, loss, x):
        tracker = _keras.loss_tracker(self)
        tracker.update_state(
            ops.stop_gradient(loss), sample_weight=ops.shape(leaves(x)[0])[0]
        )

    def _diffusion_loss(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        hidden = _isolated.run_frozen(
            self.stem,
            lambda: self.stem(x, training=True),
            keep_statistics=False,
        )
        losses = self.diffusion_losses(x, hidden)
        self.note([ops.stop_gradient(loss) for loss in losses])
        # Those of the other weights act in the phase of the task.
        penalties = [
            v.regularizer(v)
            for v in self.block.diffusion.trainable_variables
            if v.regularizer is not None
        ]
        return self.ood_weight * (losses[0] + losses[1]) + sum(penalties)

    def apply_phase(self, gradients, variables):
        by_optimizer = {}
        for gradient, variable in zip(gradients, variables):
            optimizer = self._optimizer_of(variable)
            pairs = by_optimizer.setdefault(id(optimizer), (optimizer, []))[1]
            pairs.append((gradient, variable))
        for optimizer, pairs in by_optimizer.values():
            optimizer.apply(*map(list, zip(*pairs)))

    def finish_step(self, data):
        self.optimizer.iterations.assign_add(1)
        return self.get_metrics_result()
