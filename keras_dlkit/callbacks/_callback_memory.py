"""What the callbacks of a `fit` remember, and how they are made to again."""

import copy
import warnings

import numpy as np

from keras_dlkit.callbacks import _plain_data

# Set by Keras for each `fit`.
OF_FIT = ("params", "_model", "validation_data")


class CallbackMemory:
    """The state of callbacks: what changed in them since training began.

    That is attributes of plain data, those of helpers that name theirs in
    `saved_names`, and what `get_state` gives, where a callback has it, as
    arrays by name, which `set_state` takes over.

    Args:
        callbacks: List of `keras.callbacks.Callback`, before the first epoch.
    """

    def __init__(self, callbacks):
        self.callbacks = _by_name(callbacks)
        self.at_begin = {
            name: _fingerprints(callback)
            for name, callback in self.callbacks.items()
        }

    def get(self):
        """The state as a JSON value, and arrays by name."""
        states, arrays = {}, {}
        for name, callback in self.callbacks.items():
            own = callback.get_state() if _has_protocol(callback) else None
            prefix = f"callback.{name}"
            states[name] = {
                "own": _plain_data.encode(own, arrays, prefix),
                "attributes": self._changed(name, callback, arrays, prefix),
            }
        return states, arrays

    def _changed(self, name, callback, arrays, prefix):
        at_begin, changed = self.at_begin[name], {}
        for key, value in _attributes(callback):
            try:
                if _plain_data.fingerprint(value) != at_begin.get(key):
                    changed[key] = _plain_data.encode(value, arrays, prefix)
            except _plain_data.NotPlain:
                continue
        return changed

    def check(self, states):
        """Says which callbacks are new, or were there and are no more."""
        if states.keys() == self.callbacks.keys():
            return
        warnings.warn(
            "The callbacks of a `fit` that goes on should be those it began "
            f"with, {list(states)}. Received: {list(self.callbacks)}. Those "
            "that are new begin now; what others had learned is lost.",
            stacklevel=2,
        )

    def set(self, states, arrays):
        """Before the hooks of an epoch: by `set_state`, where there is one."""
        for callback, state in self._pairs(states):
            if _has_protocol(callback):
                callback.set_state(_plain_data.decode(state["own"], arrays))
            else:
                _set_attributes(callback, state["attributes"], arrays)

    def set_attributes(self, states, arrays):
        """In mid-epoch: undoes what the begin of the epoch changed again."""
        for callback, state in self._pairs(states):
            _set_attributes(callback, state["attributes"], arrays)

    def _pairs(self, states):
        return [
            (callback, states[name])
            for name, callback in self.callbacks.items()
            if name in states
        ]

    def own_arrays(self):
        """Copies of the arrays that they keep of the weights, in their lists.

        On PyTorch the arrays of `get_weights` are the memory of the weights,
        and the best ones would follow those of now.
        """
        for callback in self.callbacks.values():
            for value in vars(callback).values():
                if isinstance(value, list) and any(
                    isinstance(v, np.ndarray) for v in value
                ):
                    value[:] = copy.deepcopy(value)


def _by_name(callbacks):
    """By class, and by order where there are several of one."""
    named = {}
    for callback in callbacks:
        kind = type(callback).__name__
        count = sum(type(c).__name__ == kind for c in named.values())
        named[f"{kind}.{count}"] = callback
    return named


def _has_protocol(callback):
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _attributes(callback):
    """Names and values; of a helper, `name.attribute`."""
    for name, value in vars(callback).items():
        if name in OF_FIT:
            continue
        for inner in getattr(value, "saved_names", ()):
            yield f"{name}.{inner}", getattr(value, inner)
        yield name, value


def _fingerprints(callback):
    found = {}
    for name, value in _attributes(callback):
        try:
            found[name] = _plain_data.fingerprint(value)
        except _plain_data.NotPlain:
            continue
    return found


def _set_attributes(callback, nodes, arrays):
    for name, node in nodes.items():
        *helper, attribute = name.split(".")
        owner = getattr(callback, helper[0]) if helper else callback
        setattr(owner, attribute, _plain_data.decode(node, arrays))
