"""Callbacks that live for a round, and start anew with the next."""

import keras
import numpy as np
from keras import tree

from keras_dlkit.callbacks import _plain_data
from keras_dlkit.callbacks._callback_memory import OF_FIT

HOOKS = ("on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end")


class RoundCallbacks:
    """Runs callbacks with epochs counted from the begin of a round."""

    def __init__(self, callbacks):
        self.callbacks = tree.flatten(callbacks)
        for callback in self.callbacks:
            _check(callback)

    def set(self, model, params):
        for callback in self.callbacks:
            callback.set_params(params)
            callback.set_model(model)

    def call(self, hook, *arguments):
        for callback in self.callbacks:
            plateau = isinstance(callback, keras.callbacks.ReduceLROnPlateau)
            if plateau and hook == "on_train_begin":
                callback.best = None  # Keras before 3.15 keeps it.
            getattr(callback, hook)(*arguments)
            _own_arrays(callback)

    def get_state(self):
        """What they remember, as a JSON value, and arrays by name.

        All of it, not what changed alone: `EarlyStopping` chooses a
        comparison, and with it the sign of another number, as late as the
        first epoch.
        """
        states, arrays = [], {}
        for index, callback in enumerate(self.callbacks):
            items = {k: v for k, v in vars(callback).items() if k not in OF_FIT}
            states.append(
                _plain_data.encode_items(items, arrays, f"callback{index}")
            )
        return states, arrays

    def set_state(self, states, arrays):
        for callback, state in zip(self.callbacks, states):
            for name, node in state.items():
                setattr(callback, name, _plain_data.decode(node, arrays))


def _own_arrays(callback):
    """Copies of what it keeps of the weights, in the lists that it has.

    On PyTorch the arrays of `get_weights` are the memory of the weights, and
    the best ones would follow those of now.
    """
    for value in vars(callback).values():
        if _is_arrays(value):
            value[:] = [a.copy() for a in value]


def _is_arrays(value):
    return isinstance(value, list) and all(
        isinstance(v, np.ndarray) for v in value
    )


def _check(callback):
    if not isinstance(callback, keras.callbacks.Callback):
        raise TypeError(
            "`callbacks` must be `keras.callbacks.Callback`s. Received: "
            f"{callback!r} of type {type(callback)}"
        )
    base = keras.callbacks.Callback
    for name in vars(base):
        if not name.startswith("on_") or name in HOOKS:
            continue
        if name in vars(callback) or (  # of a `LambdaCallback`
            getattr(type(callback), name) is not getattr(base, name)
        ):
            raise ValueError(
                "`callbacks` are those to start anew each round, and are "
                "called at the begin and end of epochs. Received: "
                f"{type(callback).__name__}, which has {name!r}. Put it into "
                "the list of `fit`."
            )
