"""`attach`: what a stock training step cannot express, added to any model."""

import warnings
from typing import Any

import keras
from keras import ops

from keras_dlkit import _keras
from keras_dlkit import _step_batch
from keras_dlkit import _task_losses
from keras_dlkit._admission import HONOURED
from keras_dlkit._admission import SparseLoss
from keras_dlkit._admission import check_losses
from keras_dlkit._admission import check_model
from keras_dlkit._admission import check_optimizer
from keras_dlkit._admission import check_parts
from keras_dlkit._admission import check_penalties
from keras_dlkit._admission import delegates
from keras_dlkit._admission import drop_second_scaler
from keras_dlkit._admission import is_hub_task
from keras_dlkit._admission import own
from keras_dlkit._admission import prepares_fit
from keras_dlkit._admission import takes_training
from keras_dlkit._answers import Answers
from keras_dlkit._arguments import bound
from keras_dlkit._export import export
from keras_dlkit._hidden_mixing import HiddenMixing
from keras_dlkit._parts_watch import warn_of_steps
from keras_dlkit._parts_watch import with_watch
from keras_dlkit._random_state import RandomState
from keras_dlkit._recorded_loss import given
from keras_dlkit._recorded_loss import noting
from keras_dlkit._recorded_loss import outputs_of
from keras_dlkit._train_step.chosen import TrainStep
from keras_dlkit.layers.batch_part import BatchPart
from keras_dlkit.losses.task_weighting import TaskWeighting
from keras_dlkit.optimizers.attached_optimizer import AttachedOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper
from keras_dlkit.regularizers.weight_penalty import WeightPenalty


def attach(
    model: keras.Model,
    *parts: BatchPart | TaskWeighting | WeightPenalty,
    name: str | None = None,
) -> "Attached":
    """Gives a model a training step that can do what the parts need.

    Returns a `keras.Model` that holds yours, trains it in place and is used
    in its stead (not as a layer of another): `compile`, `fit`, `evaluate`,
    `predict`, callbacks, `save`, `load_model` are those of Keras. A batch part
    (as `keras_dlkit.layers.MixUp`) is given here; an optimizer that takes two
    gradients (as `keras_dlkit.optimizers.SAM`) is given to `compile`.

    Args:
        model: `keras.Model`: Sequential, Functional or subclassed, built or
            not. If it is compiled, its optimizer, loss and metrics are taken
            over. An `Attached` gets the parts beside those it has.
        *parts: Parts, applied in the order given. None is fine: SAM needs no
            part.
        name: String. The name of the returned model.

    Returns:
        `Attached`, with your model, the same object, as `.model`.

    Raises:
        TypeError: For what is no model, or no part.
        ValueError: For two task weightings, and for a model with a
            `train_step`, `test_step` or `fit` of its own, which this would
            replace. Its own `compute_loss`, `compute_metrics`, `predict_step`
            and `compile` are honoured.

    State: none of its own; the network's, the parts' and the optimizer's.
    Runs: as the model of `fit`.
    Cost: none of its own.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = dlkit.attach(net, dlkit.layers.MixUp(0.2, num_classes=3))
    model.compile(
        optimizer=dlkit.optimizers.SAM("adam"),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(np.ones((8, 4)), np.arange(8) % 3, verbose=0)
    dlkit.detach(model).save("net.keras")  # plain Keras
    ```
    """
    if isinstance(model, Attached):
        with _keras.strategy_scope(model):
            merged = Attached(
                model.model, [*model.parts, *parts], name=name or model.name
            )
        merged._take_over_or_refuse(model)
        return merged
    check_model(model)
    with _keras.strategy_scope(model):
        attached = Attached(model, parts, name=name)
        attached._take_over_or_refuse(model)
    if attached.compiled and not own(model, ("compile",)):
        warnings.warn(
            f"`attach` took over the optimizer, loss and metrics of "
            f"{model.name!r}. Call `fit` on the model that it returned.",
            stacklevel=2,
        )
    return attached


@export
class Attached(TrainStep, Answers, keras.Model):
    """What `attach` returns: your model with a training step of parts.

    Make it with `keras_dlkit.attach`. `.model` is your model, `.parts` the
    parts. What people ask of a network (`summary`, `layers`, `inputs`,
    `export`, ...) is answered by yours; `keras.utils.plot_model(model.model)`
    draws it.
    """

    def __init__(
        self, model: keras.Model, parts: Any = (), name: str | None = None
    ):
        check_model(model)
        check_parts(parts, model)
        # The model's own policy: it decides on loss scaling. No autocast: the
        # model casts its inputs itself, or not.
        super().__init__(
            dtype=model.dtype_policy,
            autocast=False,
            name=name or f"attached_{model.name}",
        )
        self.model = model
        self.parts = list(parts)
        names = [n for part in self.batch_parts for n in part.mixes_at]
        self._hidden_mixing = HiddenMixing(model, names) if names else None
        self.random_state = RandomState(self.seed_states, name="random_state")
        self.supports_masking = True
        self._delegates = delegates(model)
        self.built = model.built
        self._refusal = None

    def call(self, inputs, training=None, **kwargs):
        for part in self.parts if training else ():
            if isinstance(part, WeightPenalty):
                part.add_to_losses(self.model)
        # The model finds `training` in the context of this call.
        if isinstance(inputs, _step_batch.Inputs):
            return self._hidden_mixing(inputs, **kwargs)
        return self.model(inputs, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        # The outputs of the model carry their masks already.
        return None

    # Compilation.

    def compile(self, *args, **kwargs):
        check_penalties(self.parts, self.model)
        if self._delegates or own(self.model, HONOURED):
            # A signature of its own, or losses that its own methods use.
            self.model.compile(*args, **kwargs)
            self._take_over(self.model)
        else:
            self._compile(**bound(keras.Model.compile, self, args, kwargs))

    def _compile(self, **arguments):
        optimizer = keras.optimizers.get(arguments["optimizer"])
        arguments["optimizer"] = optimizer
        check_losses(self.parts, arguments, outputs_of(self.model))
        check_optimizer(self.parts, optimizer)
        if find_wrapper(optimizer, keras.optimizers.LossScaleOptimizer):
            # There may be one inside of a wrapper, where Keras does not look.
            arguments["auto_scale_loss"] = False
        if self.task_weighting is not None:
            _task_losses.prepare(self, arguments)
        super().compile(**arguments)
        if self.attached_optimizer is not None:
            self.attached_optimizer.claim()

    def _take_over_or_refuse(self, source):
        check_penalties(self.parts, self.model)
        if source.compiled:
            try:
                self._take_over(source)
            except SparseLoss as error:
                # A KerasHub task comes compiled with one. Say so only if it
                # is never compiled with another.
                self._refusal = error

    def _take_over(self, source):
        drop_second_scaler(source)
        arguments = (
            source.compile_arguments()
            if isinstance(source, Attached)
            else _keras.compile_arguments(source)
        )
        arguments["optimizer"] = source.optimizer
        # It has a scaler, or is to have none.
        arguments["auto_scale_loss"] = False
        self._compile(**arguments)
        if self._delegates:
            _keras.share_compiled_state(source, self)

    def compile_arguments(self) -> dict[str, Any]:
        """What `compile` was given, as the objects they were."""
        arguments = _keras.compile_arguments(self)
        return {**arguments, "loss": given(arguments["loss"])}

    def get_compile_config(self):
        if not self.compiled:
            return {}
        if own(self.model, ("get_compile_config",)):
            return self.model.get_compile_config()
        return keras.saving.serialize_keras_object(self.compile_arguments())

    def compile_from_config(self, config):
        names = ("compile_from_config",)
        if not is_hub_task(self.model):
            # Keras warns, and does not compile, where `compile` is the
            # model's own and does not say how to repeat it.
            names += ("compile",)
        if own(self.model, names):
            self.model.compile_from_config(config)
            if self.model.compiled:
                self._take_over(self.model)
        elif self._delegates or own(self.model, HONOURED):
            arguments = keras.saving.deserialize_keras_object(config)
            keras.Model.compile(self.model, **arguments)
            self._take_over(self.model)
        else:
            self._compile(**keras.saving.deserialize_keras_object(config))
        self._build_optimizer()

    def _build_optimizer(self):
        """Builds it as soon as the network is, if there is one."""
        optimizer = self.optimizer if self.compiled else None
        if optimizer and self.built and not optimizer.built:
            with self.creation_scope():
                self.optimizer.build(self.trainable_variables)
            # A `MultiOptimizer` may know its parts only now.
            check_optimizer(self.parts, self.optimizer)
        self._spare()

    def _build_optimizer_early(self):
        # Not in the first step: what is wrong is said before it.
        if _keras.is_built_throughout(self.model):
            self._build_optimizer()

    def _spare(self):
        # Once it is built: a `MultiOptimizer` may know its parts only then.
        if self.task_weighting and self.optimizer and self.optimizer.built:
            _task_losses.spare(self.task_weighting, self.optimizer)

    # Training.

    @property
    def attached_optimizer(self) -> Any:
        """The optimizer that moves the point of a gradient, or `None`."""
        return find_wrapper(self.optimizer, AttachedOptimizer)

    @property
    def loss_tracker(self):
        return _keras.loss_tracker(self)

    def change_batch(self, data: Any, training: bool) -> tuple:
        """Runs the batch parts over `(x, y, sample_weight)`, in their order."""
        x, y, sample_weight = _step_batch.change(
            self.batch_parts, data, training
        )
        if isinstance(x, _step_batch.Inputs) and not self.built:
            # A lazy model is built by its first pass: one without draws.
            self(x.x, training=False)
        return x, y, sample_weight

    @property
    def batch_parts(self):
        return [part for part in self.parts if isinstance(part, BatchPart)]

    @property
    def task_weighting(self):
        parts = [p for p in self.parts if isinstance(p, TaskWeighting)]
        return parts[0] if parts else None

    @property
    def takes_task_gradients(self):
        weighting = self.task_weighting
        return weighting is not None and weighting.needs_gradients

    def _encode(self, y):
        for part in self.batch_parts:
            y = part.encode(y)
        return y

    @_step_batch.explained
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        # Encoded in the step; here for when Keras builds losses and metrics
        # from the data as they came. Encoding twice changes nothing.
        y = self._encode(_step_batch.loss_targets(y))
        x = _step_batch.plain_inputs(x)
        if not self._delegates:
            if self.task_weighting is None or not training:
                return super().compute_loss(
                    x, y, y_pred, sample_weight, training
                )
            losses, rest = self.task_losses(x, y, y_pred, sample_weight)
            losses, replicas = self.of_all_replicas(losses)
            weighted = self.task_weighting.combine(losses) / replicas
            return rest + ops.cast(weighted, rest.dtype)
        kwargs = {}
        if takes_training(self.model.compute_loss):
            kwargs["training"] = training
        return self.model.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, **kwargs
        )

    def task_losses(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any
    ) -> tuple:
        """The losses of the tasks in training, by key, and all others."""
        with noting(self.loss) as losses:
            total = super().compute_loss(
                _step_batch.plain_inputs(x),
                self._encode(_step_batch.loss_targets(y)),
                y_pred,
                sample_weight,
                True,
            )
        return losses, total - ops.stop_gradient(sum(losses.values()))

    @_step_batch.explained
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y = self._encode(_step_batch.metric_targets(y))
        x = _step_batch.plain_inputs(x)
        if not self._delegates:
            return super().compute_metrics(x, y, y_pred, sample_weight)
        return self.model.compute_metrics(x, y, y_pred, sample_weight)

    @property
    def metrics(self):
        if not self._delegates:
            return super().metrics
        return self.model.metrics

    def get_metrics_result(self):
        if not self._delegates:
            return super().get_metrics_result()
        return self.model.get_metrics_result()

    def reset_metrics(self):
        if not self._delegates:
            return super().reset_metrics()
        return self.model.reset_metrics()

    def fit(self, *args, **kwargs):
        arguments = bound(keras.Model.fit, self, args, kwargs)
        self._check_targets(arguments["y"])
        validation = arguments["validation_data"]
        if isinstance(validation, tuple):
            _, y, _ = keras.utils.unpack_x_y_sample_weight(validation)
            self._check_targets(y)
        self._build_optimizer_early()
        if prepares_fit(self.model):
            arguments = self.model.prepare_fit(arguments)
        arguments["callbacks"] = with_watch(self, arguments["callbacks"])
        return super().fit(**arguments)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        self._check_targets(y)
        return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        self._check_targets(y)
        self._build_optimizer_early()
        if prepares_fit(self.model):
            self.model.check_batch(x)
        logs = super().train_on_batch(x, y, *args, **kwargs)
        warn_of_steps(self.task_weighting)
        return logs

    def test_on_batch(self, x, y=None, *args, **kwargs):
        self._check_targets(y)
        return super().test_on_batch(x, y, *args, **kwargs)

    def _check_targets(self, y):
        if self._refusal is not None and not self.compiled:
            raise self._refusal
        _step_batch.check_targets(self.batch_parts, y)

    # Saving.

    def load_weights(self, *args, **kwargs):
        # Else Keras leaves its state in the file, with a warning.
        self._build_optimizer()
        return super().load_weights(*args, **kwargs)

    @property
    def applied_optimizer(self) -> Any:
        """The optimizer, by a name that Keras visits before `model`.

        The network may hold the same optimizer: it must be saved here.
        """
        return self.optimizer

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        # Compiled through this model, with this model's optimizer.
        model.pop("compile_config", None)
        return {
            "model": model,
            "parts": [
                keras.saving.serialize_keras_object(part) for part in self.parts
            ],
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def revive(value):
            return keras.saving.deserialize_keras_object(
                value, custom_objects=custom_objects
            )

        return cls(
            revive(config["model"]),
            [revive(part) for part in config["parts"]],
            name=config["name"],
        )

    def seed_states(self) -> list:
        """The states of all seed generators: what Keras does not save."""
        weights = {id(v) for v in self.non_trainable_weights}
        return [v for v in self.non_trainable_variables if id(v) not in weights]
