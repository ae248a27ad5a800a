"""The one prediction of all members."""

import math

import keras
from keras import ops
from keras import tree

KINDS = ("mean", "softmax", "sigmoid")


def average(values, kind, axis):
    """Averages the members, who lie along `axis`.

    Args:
        values: Tensor.
        kind: `"mean"`: of the values. `"softmax"`, `"sigmoid"`: the values
            are logits, the probabilities are averaged, and the result is the
            logits of that average.
        axis: Integer, not that of the classes, which is the last.
    """
    dtype = values.dtype
    values = ops.cast(values, "float32")
    if kind == "mean":
        result = ops.mean(values, axis=axis)
    elif kind == "softmax":
        members = values.shape[axis]
        result = ops.logsumexp(ops.log_softmax(values, axis=-1), axis=axis)
        result = result - math.log(members)
    else:
        result = ops.logsumexp(ops.log_sigmoid(values), axis=axis)
        result = result - ops.logsumexp(ops.log_sigmoid(-values), axis=axis)
    return ops.cast(result, dtype)


def check(kinds):
    """`average` of the model: `None`, a kind, or a structure of kinds."""
    for kind in tree.flatten(kinds):
        if kind not in (None, *KINDS):
            raise ValueError(
                f"`average` must be `None`, one of {list(KINDS)}, or a list "
                "or dictionary of these with an entry an output. Received: "
                f"average={kinds!r}"
            )
    return kinds


def kind_of(kinds, losses, path, index, name):
    """How one output is averaged.

    Args:
        kinds: As of `check`.
        losses: The `loss` of `compile`, or `None`.
        path: Tuple. Where the output is in the structure of outputs.
        index: Integer. Which output it is.
        name: String. The name of its layer.
    """
    kind = _entry(kinds, path, index, name)
    return kind or _kind_of_loss(_entry(losses, path, index, name))


def _entry(structure, path, index, name):
    if isinstance(structure, dict):
        if path and path[0] in structure:
            return structure[path[0]]
        return structure.get(name)
    if isinstance(structure, (list, tuple)):
        return structure[index] if index < len(structure) else None
    return structure


def _kind_of_loss(loss):
    """Losses that take logits, by what Keras calls them."""
    if not isinstance(loss, keras.losses.Loss):
        return "mean"
    if not getattr(loss, "from_logits", False):
        return "mean"
    name = type(loss).__name__
    if name.startswith("Binary"):
        return "sigmoid"
    if name.startswith(("Categorical", "SparseCategorical")):
        if getattr(loss, "axis", -1) != -1:
            raise ValueError(
                "The classes must lie on the last axis for the probabilities "
                f"to be averaged. Received: {name} with axis={loss.axis}"
            )
        return "softmax"
    return "mean"
