"""All variables that a training step reads or writes, as arrays, and back."""

import numpy as np
from keras import ops

from keras_dlkit.optimizers.wrapper_optimizer import chain

GROUPS = ("weights", "optimizer", "metrics")


def variables(model, group):
    """With the states of seed generators, which Keras does not save."""
    if group == "weights":
        return model.variables
    if group == "optimizer":
        return model.optimizer.variables
    return model.metrics_variables


def take(model):
    """Arrays by group and index."""
    return {
        f"{group}.{index}": _to_array(variable)
        for group in GROUPS
        for index, variable in enumerate(variables(model, group))
    }


def restore(model, arrays, groups=GROUPS):
    for group in groups:
        for index, variable in enumerate(variables(model, group)):
            value = arrays[f"{group}.{index}"]
            if value.dtype.kind == "V":  # a dtype that NumPy does not know
                value = value.view(_to_array(variable).dtype)
            variable.assign(value)


def count_metrics(arrays):
    return sum(name.startswith("metrics.") for name in arrays)


def describe(model):
    """What has to be the same where a run goes on."""
    trainable = {id(v) for v in model.trainable_variables}
    return {
        "variables of the model": [
            [*_described(v), "trainable" if id(v) in trainable else "fixed"]
            for v in model.variables
        ],
        "optimizer": [type(o).__name__ for o in chain(model.optimizer)],
        "variables of the optimizer": [
            _described(v)[1:] for v in model.optimizer.variables
        ],
        "steps per execution": model.steps_per_execution or 1,
    }


def _described(variable):
    return [
        variable.name,
        [int(n) for n in variable.shape],
        str(variable.dtype),
    ]


def _to_array(variable):
    return np.asarray(ops.convert_to_numpy(variable))
