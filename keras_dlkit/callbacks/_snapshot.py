"""What training changes, kept on the host and put back."""

import numpy as np
from keras import ops

from keras_dlkit import _keras
from keras_dlkit.optimizers.wrapper_optimizer import innermost


def to_arrays(variables):
    """Copies, also where the backend would share memory."""
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def seed_states(model):
    """The states of seed generators, which Keras does not save."""
    weights = {id(v) for v in model.non_trainable_weights}
    return [v for v in model.non_trainable_variables if id(v) not in weights]


def optimizer_variables(model, masked):
    """All that the optimizer keeps, but for the masks."""
    masks = {id(masked.slot_of(v)) for v in masked.masked_variables}
    return [v for v in model.optimizer.variables if id(v) not in masks]


class Snapshot:
    """Weights with batch statistics, and the optimizer with its step count."""

    def __init__(self, weights, optimizer):
        self.weights, self.optimizer = weights, optimizer

    @classmethod
    def take(cls, model, masked):
        return cls(
            to_arrays(model.weights),
            to_arrays(optimizer_variables(model, masked)),
        )

    def restore(self, model, masked, weights=True):
        """Puts it back: all of it, or the optimizer alone."""
        pairs = [*zip(optimizer_variables(model, masked), self.optimizer)]
        if weights:
            pairs += zip(model.weights, self.weights)
        for variable, array in pairs:
            variable.assign(array)

    def copy_again(self, model, masked):
        """Has slots that were copies of the weights here be copies again.

        As those of `ScheduleFreeAdamW`, whose first step goes on from there.
        They are told by their name, of all weights: those of a bias of zeros
        are like moments that are none.
        """
        kept = optimizer_variables(model, masked)
        kept = {id(v): a for v, a in zip(kept, self.optimizer)}
        weights = {id(v): a for v, a in zip(model.weights, self.weights)}
        named = {}
        for v in model.trainable_weights:
            part = _keras.optimizer_of(innermost(masked), v)
            for name, slot in _keras.optimizer_slots(part, v):
                named.setdefault((id(part), name), []).append((slot, v))
        for pairs in named.values():
            first = [weights[id(v)] for _, v in pairs]
            begun = [kept.get(id(slot)) for slot, _ in pairs]
            if any(a.any() for a in first) and all(
                map(np.array_equal, begun, first)
            ):
                for slot, v in pairs:
                    # A copy: JAX gives the memory of weights away.
                    slot.assign(np.array(ops.convert_to_numpy(v)))

    def weight(self, model, variable):
        """The value of one weight in it."""
        index = next(i for i, v in enumerate(model.weights) if v is variable)
        return np.asarray(self.weights[index]).astype("float32", copy=False)

    def get_state(self, name):
        return pack(f"{name}.weights", self.weights) | pack(
            f"{name}.optimizer", self.optimizer
        )

    @classmethod
    def from_state(cls, name, arrays):
        """The snapshot of that name among the arrays, or `None`."""
        lists = [
            pick(arrays, f"{name}.weights"),
            pick(arrays, f"{name}.optimizer"),
        ]
        return cls(*lists) if any(lists) else None


def pack(name, arrays):
    """A list of arrays as `name.0`, `name.1`, ..."""
    return {f"{name}.{index}": array for index, array in enumerate(arrays)}


def pick(arrays, name):
    """The arrays `name.0`, `name.1`, ... as a list."""
    found = []
    while f"{name}.{len(found)}" in arrays:
        found.append(arrays[f"{name}.{len(found)}"])
    return found
