"""What `attach` admits: checked before any step, each with its remedy."""

import inspect
import warnings

import keras
from keras import tree

from keras_dlkit import _keras
from keras_dlkit.layers.batch_part import BatchPart
from keras_dlkit.losses.task_weighting import TaskWeighting
from keras_dlkit.optimizers.attached_optimizer import AttachedOptimizer
from keras_dlkit.optimizers.momentum_sam import MomentumSAM
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper
from keras_dlkit.optimizers.wrapper_optimizer import innermost
from keras_dlkit.regularizers.weight_penalty import WeightPenalty

# A model with one of these of its own trains in a way that `attach` would
# silently replace.
STEPS = (
    "train_step",
    "test_step",
    "make_train_function",
    "make_test_function",
    "make_predict_function",
    "stateless_compute_loss",  # on JAX, as the next
    "compute_loss_and_updates",
)
LOOPS = (
    "fit",
    "evaluate",
    "predict",
    "train_on_batch",
    "test_on_batch",
    "predict_on_batch",
)
# These are called where Keras calls them.
OWN_LOSSES = (
    "compute_loss",
    "compute_metrics",
    "metrics",
    "get_metrics_result",
    "reset_metrics",
)
HONOURED = (*OWN_LOSSES, "predict_step", "compile")


def delegates(model):
    """Whether the model itself must compute its losses and metrics."""
    return bool(own(model, OWN_LOSSES) or _keras.held_metrics(model))


def own(model, names):
    """Those of `names` that the model defines itself."""
    return [
        name
        for name in names
        if getattr(type(model), name, None)
        is not getattr(keras.Model, name, None)
        or name in vars(model)
    ]


def takes_training(function):
    """Whether it has a `training` argument."""
    parameters = inspect.signature(function).parameters
    return "training" in parameters or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    )


def is_hub_task(model):
    """Whether it is a task of KerasHub."""
    return any(
        _is_of("keras_hub", base) and hasattr(base, "preprocess_samples")
        for base in type(model).__mro__
    )


def prepares_fit(model):
    """Whether `prepare_fit` is all that its own `fit` does first."""
    return _checks(model, "fit") and hasattr(model, "prepare_fit")


def _checks(model, name):
    """Whether checks, which are made attached too, are all that it adds."""
    return (
        name in ("fit", "train_on_batch")
        and name not in vars(model)
        and _is_of("keras_dlkit", getattr(type(model), name))
    )


def _is_of(package, value):
    return value.__module__.startswith(f"{package}.")


def check_model(model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`attach` takes a `keras.Model`. "
            f"Received: model={model!r} of type {type(model)}"
        )
    loops = [name for name in own(model, LOOPS) if not _checks(model, name)]
    if is_hub_task(model):
        # Those of KerasHub preprocess and do nothing else.
        loops = [
            name
            for name in loops
            if name in vars(model)
            or not _is_of("keras_hub", getattr(type(model), name))
        ]
        preprocesses = type(model).preprocess_samples
        if getattr(model, "preprocessor", None) is not None or not _is_of(
            "keras_hub", preprocesses
        ):
            warnings.warn(
                f"{model.name!r} is attached as the network it is: map its "
                "preprocessor in the data pipeline, "
                "`dataset.map(task.preprocessor)`.",
                stacklevel=3,
            )
    refused = own(model, STEPS) + loops
    if refused:
        raise ValueError(
            "`attach` gives a model a training step, and this one has its own,"
            f" which would be ignored. Received: {type(model).__name__} with "
            f"{', '.join(f'`{name}`' for name in refused)}. Move what it does "
            "into `compute_loss`, or, in a loop of your own, use "
            "`keras_dlkit.ops`."
        )


def check_penalties(parts, model):
    for part in parts:
        if isinstance(part, WeightPenalty):
            part.check_model(model)


def check_parts(parts, model):
    weightings = [p for p in parts if isinstance(p, TaskWeighting)]
    if len(weightings) > 1:
        raise ValueError(
            "`attach` takes one task weighting at most: there is one loss to "
            f"minimise. Received: {[type(w).__name__ for w in weightings]}. "
            "Pass one of them."
        )
    if weightings and delegates(model):
        raise ValueError(
            f"{type(weightings[0]).__name__} weighs the losses that Keras "
            f"sums up, and {type(model).__name__} has a `compute_loss` or "
            "metrics of its own. Weigh its losses there."
        )
    for part in parts:
        if isinstance(part, BatchPart):
            part.check_model(model)
            continue
        if isinstance(part, (TaskWeighting, WeightPenalty)):
            continue
        if isinstance(part, WrapperOptimizer):
            name = type(part).__name__
            raise TypeError(
                f"{name} is an optimizer, not a part: "
                f"attach(model).compile(optimizer={name}(...), ...)"
            )
        raise TypeError(
            "A part of `attach` must be a `keras_dlkit.layers.BatchPart`, such "
            "as `MixUp`, a `keras_dlkit.losses.TaskWeighting` or a "
            "`keras_dlkit.regularizers.WeightPenalty`. Pass objects, one by "
            "one: `attach(model, MixUp(0.2), CutOut())`. "
            f"Received: {part!r} of type {type(part)}"
        )


class SparseLoss(ValueError):
    """One that cannot take the targets that a part makes."""


def check_losses(parts, arguments, outputs):
    """Raises for sparse losses and metrics of targets that become one-hot."""
    for part in parts:
        if not isinstance(part, BatchPart):
            continue
        for kind in ("loss", "metrics", "weighted_metrics"):
            values = outputs.arranged(arguments.get(kind))
            for path, value in tree.flatten_with_path(values):
                if _is_sparse(value) and _encodes(part, outputs.names_of(path)):
                    raise SparseLoss(
                        f"{type(part).__name__} turns integer targets into "
                        f"one-hot ones, which a sparse {kind} cannot take. "
                        f"Received: {kind}={value!r}. Use the categorical one "
                        "(`CategoricalCrossentropy`, `CategoricalAccuracy`): "
                        "integer targets are encoded for it in `fit` and "
                        "`evaluate` alike."
                    )


def _encodes(part, names):
    """Whether it does one of the outputs; any, where no name is known."""
    return any(map(part.encodes, names)) if names else part.encodes()


def check_optimizer(parts, optimizer):
    """Raises for one within others, or that a part does not get on with."""
    if optimizer is None:  # nothing is to be trained
        return
    method = find_wrapper(optimizer, AttachedOptimizer)
    if method is None:
        _refuse_within(optimizer)
    for part in parts:
        looks_again = isinstance(part, TaskWeighting) and part.looks_again
        if looks_again and isinstance(method, MomentumSAM):
            raise ValueError(
                f"{type(part).__name__} compares the losses at the weights "
                f"before and after a step, and {type(method).__name__} has "
                "those of a moved point. Use `SAM`, or another weighting."
            )
    if getattr(method, "micro_batches", 1) == 1:
        return
    for part in parts:
        if isinstance(part, BatchPart) and part.mixes_at:
            raise ValueError(
                f"{type(part).__name__} mixes rows of the whole batch inside "
                "of the network, which sees parts of it with `micro_batches`. "
                f"Received: micro_batches={method.micro_batches}. Use 1, or "
                "`MixUp`."
            )
        if isinstance(part, TaskWeighting) and part.looks_again:
            raise ValueError(
                f"{type(part).__name__} looks at the losses of the whole batch "
                "before and after a step, and sees those of its parts with "
                f"`micro_batches`. Received: micro_batches="
                f"{method.micro_batches}. Use 1, or another weighting."
            )


def _refuse_within(optimizer):
    """Raises where one of several optimizers would move its weights alone."""
    for part in getattr(innermost(optimizer), "optimizers", ()):
        method = find_wrapper(part, AttachedOptimizer)
        if method is not None:
            name = type(method).__name__
            raise ValueError(
                f"{name} decides where the gradients of all weights are taken,"
                " and cannot be one optimizer of several. Received: "
                f"{type(optimizer).__name__} with {name} in it. Wrap it around:"
                f" {name}(keras.optimizers.MultiOptimizer(...), variables=...)"
                " moves the weights that `variables` selects."
            )


def _is_sparse(value):
    if isinstance(value, str):
        return value.startswith("sparse_")
    kinds = [value] if hasattr(value, "__name__") else type(value).__mro__
    return any(kind.__name__.lower().startswith("sparse") for kind in kinds)


def drop_second_scaler(model):
    """Takes off what Keras puts around a wrapper with a loss scaler in it."""
    scaler, outer = keras.optimizers.LossScaleOptimizer, model.optimizer
    if isinstance(outer, scaler) and find_wrapper(
        outer.inner_optimizer, scaler
    ):
        model.optimizer = outer.inner_optimizer
