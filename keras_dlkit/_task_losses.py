"""What `compile` does for a task weighting."""

import warnings

from keras_dlkit import _keras
from keras_dlkit._recorded_loss import record
from keras_dlkit._recorded_loss import recorded
from keras_dlkit.optimizers.attached_optimizer import AttachedOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper
from keras_dlkit.optimizers.wrapper_optimizer import innermost


def prepare(weighting, arguments, output_names):
    """Changes the arguments of `compile` to those that the weighting needs.

    Its weights are neither decayed nor, unless asked for, moved.
    """
    arguments["loss"] = record(arguments["loss"], arguments["loss_weights"])
    keys = [loss.key for loss in recorded(arguments["loss"])]
    weighting.bind(keys, output_names)
    weights = weighting.trainable_weights
    if not weights:
        return
    optimizer = arguments["optimizer"]
    if optimizer.built and not _keras.applies_to(optimizer, weights):
        optimizer = type(optimizer).from_config(optimizer.get_config())
        arguments["optimizer"] = optimizer
        warnings.warn(
            f"{type(weighting).__name__} has weights that the optimizer was "
            "not built for: it starts anew, with its settings and without its "
            "state. Attach before `fit` to avoid that.",
            stacklevel=4,
        )
    _keras.exclude_from_weight_decay(innermost(optimizer), weights)
    method = find_wrapper(optimizer, AttachedOptimizer)
    if method is not None:
        method.leave_out(weights)
