"""What `compile` does for a task weighting."""

import warnings

from keras_dlkit import _keras
from keras_dlkit._recorded_loss import outputs_of
from keras_dlkit._recorded_loss import record
from keras_dlkit._recorded_loss import recorded
from keras_dlkit.optimizers.attached_optimizer import AttachedOptimizer
from keras_dlkit.optimizers.masked import Masked
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper
from keras_dlkit.optimizers.wrapper_optimizer import innermost


def prepare(model, arguments):
    """Changes the arguments of `compile` to those that the weighting needs."""
    weighting = model.task_weighting
    outputs = outputs_of(model.model)
    arguments["loss"], arguments["loss_weights"] = record(
        arguments["loss"], arguments["loss_weights"], outputs
    )
    keys = [loss.key for loss in recorded(arguments["loss"])]
    weighting.bind(keys, outputs.aliases)
    method = find_wrapper(arguments["optimizer"], AttachedOptimizer)
    _check_replicas(model, weighting, method)
    weights = weighting.trainable_weights
    if not weights:
        return
    optimizer = arguments["optimizer"]
    if optimizer.built and not _keras.applies_to(optimizer, weights):
        optimizer = _begun_anew(optimizer, model)
        arguments["optimizer"] = optimizer
        warnings.warn(
            f"{type(weighting).__name__} has weights that the optimizer was "
            "not built for: it starts anew, with its settings and masks and "
            "without its state. Attach before `fit` to avoid that.",
            stacklevel=4,
        )
    spare(weighting, optimizer)


def _begun_anew(optimizer, model):
    """The optimizer without its state, built for all weights of the model.

    What it leaves alone is no state: masks, and what it does not decay.
    """
    fresh = type(optimizer).from_config(optimizer.get_config())
    with model.creation_scope():
        fresh.build(model.trainable_variables)
    _keras.copy_exclusions(innermost(optimizer), innermost(fresh))
    old, new = (find_wrapper(o, Masked) for o in (optimizer, fresh))
    if old is not None:
        new.set_masks(
            {path: m for path, m in old.masks.items() if path in new.masks}
        )
    return fresh


def spare(weighting, optimizer):
    """Has its weights neither decayed nor, unless asked for, moved."""
    weights = weighting.trainable_weights
    _keras.exclude_from_weight_decay(innermost(optimizer), weights)
    method = find_wrapper(optimizer, AttachedOptimizer)
    if method is not None:
        method.leave_out(weights)


def _check_replicas(model, weighting, method):
    """Raises where replicas would have to meet within a conditional."""
    strategy = getattr(model, "distribute_strategy", None)
    if (
        strategy is not None
        and strategy.num_replicas_in_sync > 1
        and not weighting.is_linear
        and method is not None
        and method.takes_second is None
    ):
        raise ValueError(
            f"{type(weighting).__name__} needs the losses of all replicas, "
            f"which TensorFlow does not give to a step that "
            f"{type(method).__name__} takes only at times. Use `every_steps=1` "
            "and `start_step=0`, one device, or a weighting that does not "
            "depend on the losses of the step."
        )
