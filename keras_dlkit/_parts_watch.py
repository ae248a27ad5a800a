"""What the parts of a model have to be told, or watched for, in `fit`."""

import warnings

import keras
from keras import tree


class PartsWatch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.looked = False

    def on_epoch_begin(self, epoch, logs=None):
        for part in self.model.parts:
            if part.follows_epochs:
                part.set_epoch(epoch)

    def on_train_batch_end(self, batch, logs=None):
        if not self.looked:  # once: it waits for the step
            self.looked = True
            self._look(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._look(logs)

    def _look(self, logs):
        weighting = self.model.task_weighting
        if weighting is None or not weighting.needs_positive:
            return
        negative = {
            name: float(logs[f"{name}_loss"])
            for name in weighting.names
            if float(logs.get(f"{name}_loss", 0.0)) < 0
        }
        if negative:
            weighting.needs_positive = False
            warnings.warn(
                f"{type(weighting).__name__} is made for losses that are not "
                "negative: the weight of one that is grows without bound, or "
                f"means nothing. Received: {negative}. Use a loss with a "
                "lower bound of zero, or fixed `loss_weights`.",
                stacklevel=2,
            )


def with_watch(model, callbacks):
    """`callbacks` of `fit`, with a watch if a part has a use for it."""
    needed = any(part.follows_epochs for part in model.parts) or (
        model.task_weighting is not None and model.task_weighting.needs_positive
    )
    if not needed:
        return callbacks
    watch = PartsWatch()
    if isinstance(callbacks, keras.callbacks.CallbackList):
        watch.set_model(model)
        callbacks.callbacks.append(watch)
        return callbacks
    return [*tree.flatten(callbacks or []), watch]
