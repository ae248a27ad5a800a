"""What the parts of a model have to be told, or watched for, in `fit`."""

import math
import warnings

import keras
from keras import ops
from keras import tree


class EpochWatch(keras.callbacks.Callback):
    """Tells the parts that follow the epochs which one begins."""

    def on_epoch_begin(self, epoch, logs=None):
        for part in self.model.parts:
            if part.follows_epochs:
                part.set_epoch(epoch)


class LossWatch(keras.callbacks.Callback):
    """Says once if a loss is lower than the weighting can take.

    As soon as the logs of the first step say so, where they have the losses
    that the weighting gets; else after the epoch.
    """

    # Within an epoch it reads logs alone, and not `self.model`. Else JAX would
    # wait for each step.
    async_safe = True

    def __init__(self, weighting, looks_early):
        super().__init__()
        self.weighting = weighting
        self.looks_early = looks_early

    def on_train_batch_end(self, batch, logs=None):
        # Not `batch == 0`: with `steps_per_execution` it may be a later one.
        if self.looks_early:
            self.looks_early = False
            names = self.weighting.names
            warn_of(
                self.weighting,
                [logs.get(f"{name}_loss", math.inf) for name in names],
            )

    def on_epoch_end(self, epoch, logs=None):
        warn_of_steps(self.weighting)


def warn_of_steps(weighting):
    """Looks at the least losses of the steps until now."""
    if weighting is not None and weighting.needs_positive:
        excess = ops.convert_to_numpy(weighting.excess)
        warn_of(weighting, weighting.lowest_losses() + excess)


def warn_of(weighting, losses):
    rows = zip(weighting.names, losses, weighting.lowest_losses())
    below = {n: float(loss) for n, loss, bound in rows if loss < bound}
    if below and weighting.needs_positive:
        weighting.needs_positive = False
        warnings.warn(
            f"{type(weighting).__name__} is made for losses that are not "
            "negative, or not below `lower_bounds` where it has them: the "
            "weight of one that is grows without bound, or means nothing. "
            f"Received: {below}. Use a loss with a lower bound of zero, or "
            "fixed `loss_weights`.",
            stacklevel=2,
        )


def with_watch(model, callbacks):
    """`callbacks` of `fit`, with the watches that the parts have a use for."""
    watches = []
    if any(part.follows_epochs for part in model.parts):
        watches.append(EpochWatch())
    if model.task_weighting is not None and model.task_weighting.needs_positive:
        # Keras logs the losses without their weights.
        is_weighted = model.compile_arguments()["loss_weights"] is not None
        watches.append(LossWatch(model.task_weighting, not is_weighted))
    if not watches:
        return callbacks
    if isinstance(callbacks, keras.callbacks.CallbackList):
        # Made anew: what runs in a thread is decided as a list is made, and a
        # hook of a batch that reads the model must not.
        return keras.callbacks.CallbackList(
            [*callbacks.callbacks, *watches], model=model, **callbacks.params
        )
    return [*tree.flatten(callbacks or []), *watches]
