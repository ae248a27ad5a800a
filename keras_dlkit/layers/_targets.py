"""Targets of mixing parts: encoded, checked and smoothed."""

import numpy as np
from keras import ops
from keras import tree

from keras_dlkit._train_step import asserts
from keras_dlkit._tree import map_leaves
from keras_dlkit._tree import map_with_path
from keras_dlkit.layers._inputs import dtype_of
from keras_dlkit.layers._inputs import is_integer
from keras_dlkit.layers._inputs import named


def option_of(name, option, y):
    """A function of a path in `y`, to what `option` says of that output."""
    if not tree.is_nested(option):
        return lambda path: option
    try:
        # Lists and tuples, and the order of keys, need not agree.
        tree.assert_same_paths(option, y)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must have the structure of the targets. "
            f"Received: {name}={option}, targets "
            f"{map_leaves(lambda t: t.shape, y)}"
        ) from error
    return dict(tree.flatten_with_path(option)).__getitem__


def are_classes(y, classes):
    """Integers are; booleans, unless these are one-hot already."""
    if dtype_of(y) == "bool":
        return len(y.shape) == 1 or y.shape[-1] != classes
    return is_integer(y)


def one_hot(y, classes):
    """Classes as float32 rows; a row of NaN for one out of range."""
    y = ops.convert_to_tensor(y)
    if len(y.shape) > 1 and y.shape[-1] == 1:
        y = ops.squeeze(y, axis=-1)
    given, y = y, ops.cast(y, "int32")
    outside = ops.logical_or(y < 0, y >= classes)
    if dtype_of(given).endswith("64"):  # 2**32 + 1 is not the class 1
        wraps = ops.cast(y, given.dtype) != given
        outside = ops.logical_or(outside, wraps)
    y, outside = ops.expand_dims(y, -1), ops.expand_dims(outside, -1)
    rows = ops.cast(y == ops.arange(classes, dtype="int32"), "float32")
    return ops.where(outside, float("nan"), rows)


def refuse_integers(y, path):
    raise ValueError(
        "Integer targets cannot be blended. Received: "
        f"{named('target', path)} with dtype {dtype_of(y)} and shape "
        f"{tuple(y.shape)}. For class labels pass `num_classes=...` and "
        "use a categorical loss; for several labels a sample "
        "`multi_label=True`; cast counts to float32."
    )


def as_array(y):
    """A tensor or array as one of NumPy; other things as they are."""
    if ops.is_tensor(y):
        return ops.convert_to_numpy(y)
    return np.asarray(y) if hasattr(y, "__array__") else y


def check_range(y, classes, multi_label, path):
    """Raises for labels that are no class, where their values are at hand.

    Those of NumPy are, and of PyTorch, which runs each operation by itself. A
    graph looks at them when it runs.
    """
    expected = f"Labels must be in [0, num_classes={classes}). Received: "
    remedy = "Count the classes anew, or renumber the labels from 0."
    if multi_label:  # is each there or not
        classes = 2
        expected = "With `multi_label` labels must be 0 or 1. Received: "
        remedy = "For one class a sample pass `num_classes`."
    if classes is None or not is_integer(y):
        return
    if getattr(y, "is_cpu", False):
        y = as_array(y)
    if not isinstance(y, np.ndarray):
        asserts.require(
            lambda: _are_classes(ops.cast(y, "int64"), classes),
            f"{expected}{named('target', path)} with others. {remedy}",
        )
    elif y.size and (y.min() < 0 or y.max() >= classes):
        raise ValueError(
            f"{expected}{named('target', path)} with labels from {y.min()} to "
            f"{y.max()}. {remedy}"
        )


def _are_classes(y, count):
    return ops.all(ops.logical_and(y >= 0, y < count))


def refuse_one_hot(y, classes, multi_label, path):
    """Raises for NumPy labels that are one-hot, but integers."""
    del multi_label
    if classes is None or not isinstance(y, np.ndarray) or not y.size:
        return
    if y.ndim > 1 and y.shape[-1] == classes and _is_one_hot(y):
        raise ValueError(
            f"With num_classes={classes} integers are classes, to be made "
            f"one-hot. Received: {named('target', path)} of shape {y.shape}, "
            "which is one-hot already. Pass it as float32; or, if these are "
            f"sequences of classes after all, in the shape {(*y.shape, 1)}."
        )


def _is_one_hot(y):
    return y.dtype.kind in "iu" and (
        (y.max(axis=-1) == 1).all() and (y.sum(axis=-1) == 1).all()
    )


def smooth(y, strength, classes, multi_label, path):
    """Moves targets toward the mean: of the classes, or of 0 and 1."""
    if multi_label:
        mean = 0.5
    elif classes is None:
        return y
    elif len(y.shape) < 2 or y.shape[-1] != classes:
        raise ValueError(
            "Only one-hot targets can be smoothed. Received: "
            f"{named('target', path)} of shape {tuple(y.shape)} "
            f"with num_classes={classes}. Give `num_classes` as a "
            "structure, with None for outputs that are no classes."
        )
    else:
        mean = 1.0 / classes
    strength = ops.cast(strength, y.dtype)
    return (1 - strength) * y + strength * mean


def map_targets(function, y, num_classes, multi_label):
    """`function(target, classes, multi_label, path)` over the outputs."""
    if y is None:
        return y
    classes = option_of("num_classes", num_classes, y)
    several = option_of("multi_label", multi_label, y)
    return map_with_path(
        lambda path, t: function(t, classes(path), several(path), path), y
    )
