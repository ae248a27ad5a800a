"""The slots that optimizers keep of a weight, found by their shape."""

import keras

from keras_dlkit import _keras
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer

# They change each entry by that of its gradient and slots alone, times what
# is the same for all: an entry with neither stays at zero.
ELEMENTWISE = (
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Adamax,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
    keras.optimizers.Adadelta,
    keras.optimizers.Adafactor,
    keras.optimizers.Lamb,
    keras.optimizers.Lion,
    keras.optimizers.Ftrl,
)
# They take the root of a slot as it is.
ROOTS = (
    keras.optimizers.Adam,
    keras.optimizers.Nadam,
    keras.optimizers.Lamb,
)


def is_elementwise(optimizer, variable):
    """Whether pruned entries of the weight stay at zero by themselves."""
    optimizer = _keras.optimizer_of(optimizer, variable)
    # Of a user's subclass nothing is known; Keras itself makes one of each
    # for PyTorch. Without an epsilon, zero slots divide zero by zero.
    return (
        isinstance(optimizer, ELEMENTWISE)
        and type(optimizer).__module__.partition(".")[0] == "keras"
        and getattr(optimizer, "epsilon", None) != 0
    )


def of(optimizer, variable):
    """The weight and its slots, each with what it holds where it is pruned."""
    return [(variable, 0.0)] + [
        (slot, _initial(optimizer, name, variable))
        for name, slot in _keras.optimizer_slots(optimizer, variable)
    ]


def under_root(optimizer, variable):
    """The slots of the weight of which a step takes the square root."""
    if not isinstance(_keras.optimizer_of(optimizer, variable), ROOTS):
        return []
    return [
        slot
        for name, slot in _keras.optimizer_slots(optimizer, variable)
        if name in ("_velocities", "_velocity_hats")
    ]


def of_all(optimizers, variable):
    """The same of several optimizers, wrappers among them."""
    found = []
    for optimizer in optimizers:
        if not isinstance(optimizer, WrapperOptimizer):
            found += of(optimizer, variable)
        elif (slot := optimizer.slot_of(variable)) is not None:
            found.append((slot, 0.0))
    return found


def _initial(optimizer, name, variable):
    """What a slot holds of a weight that was never updated, and is zero.

    Zero: so do moments, averages of weights and sums of gradients begin, and
    where a slot begins as a copy of the weight that is zero too. Not so the
    sums of squares of Adagrad and Ftrl, which are divided by.
    """
    optimizer = _keras.optimizer_of(optimizer, variable)
    if name == "_accumulators":
        return float(getattr(optimizer, "initial_accumulator_value", 0.0))
    return 0.0
