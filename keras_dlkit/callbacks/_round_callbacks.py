"""Callbacks that live for a round, and start anew with the next."""

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_dlkit.callbacks._snapshot import pack
from keras_dlkit.callbacks._snapshot import pick

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
        """What they remember: numbers, functions of Keras, lists of arrays.

        `EarlyStopping` chooses a comparison, and with it the sign of another
        number, as late as the first epoch.
        """
        numbers, arrays = [], {}
        for index, callback in enumerate(self.callbacks):
            numbers.append({})
            for name, value in vars(callback).items():
                if isinstance(value, np.number):
                    value = value.item()
                if _is_plain(value):
                    numbers[-1][name] = value
                elif _is_arrays(value):
                    arrays.update(pack(f"callback{index}.{name}", value))
                    numbers[-1][name] = {"arrays": len(value)}
                elif callable(value) and _of_keras(value) is value:
                    numbers[-1][name] = {"function": value.__name__}
        return numbers, arrays

    def set_state(self, numbers, arrays):
        for index, (callback, values) in enumerate(
            zip(self.callbacks, numbers)
        ):
            for name, value in values.items():
                if isinstance(value, dict) and "function" in value:
                    value = getattr(ops, value["function"])
                elif isinstance(value, dict):
                    value = pick(arrays, f"callback{index}.{name}")
                setattr(callback, name, value)


def _own_arrays(callback):
    """Copies of what it keeps of the weights, in the lists that it has.

    On PyTorch the arrays of `get_weights` are the memory of the weights, and
    the best ones would follow those of now.
    """
    for value in vars(callback).values():
        if _is_arrays(value):
            value[:] = [a.copy() for a in value]


def _is_plain(value):
    return value is None or isinstance(value, (bool, int, float, str))


def _of_keras(function):
    return getattr(ops, getattr(function, "__name__", ""), None)


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
