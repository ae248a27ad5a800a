"""What the parts of a model have to be told, or watched for, in `fit`."""

import warnings

import keras
from keras import tree


class EpochWatch(keras.callbacks.Callback):
    """Tells the parts that follow the epochs which one begins."""

    def on_epoch_begin(self, epoch, logs=None):
        for part in self.model.parts:
            if part.follows_epochs:
                part.set_epoch(epoch)


class LossWatch(keras.callbacks.Callback):
    """Says once if a loss is negative that the weighting cannot take so."""

    # It reads logs alone. Else JAX would have to wait for each step.
    async_safe = True

    def __init__(self, weighting):
        super().__init__()
        self.weighting = weighting

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self._look(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._look(logs)

    def _look(self, logs):
        weighting = self.weighting
        losses = {n: logs.get(f"{n}_loss", 0.0) for n in weighting.names}
        negative = {n: float(v) for n, v in losses.items() if float(v) < 0}
        if negative and weighting.needs_positive:
            weighting.needs_positive = False
            warnings.warn(
                f"{type(weighting).__name__} is made for losses that are not "
                "negative: the weight of one that is grows without bound, or "
                f"means nothing. Received: {negative}. Use a loss with a "
                "lower bound of zero, or fixed `loss_weights`.",
                stacklevel=2,
            )


def with_watch(model, callbacks):
    """`callbacks` of `fit`, with the watches that the parts have a use for."""
    watches = []
    if any(part.follows_epochs for part in model.parts):
        watches.append(EpochWatch())
    if model.task_weighting is not None and model.task_weighting.needs_positive:
        watches.append(LossWatch(model.task_weighting))
    if not watches:
        return callbacks
    if isinstance(callbacks, keras.callbacks.CallbackList):
        # Made anew: what runs in a thread is decided as a list is made, and a
        # hook of a batch that reads the model must not.
        return keras.callbacks.CallbackList(
            [*callbacks.callbacks, *watches], model=model, **callbacks.params
        )
    return [*tree.flatten(callbacks or []), *watches]
