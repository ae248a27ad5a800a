"""How a callback puts masks around the optimizer of a compiled model."""

import keras
import numpy as np
from keras import ops

from keras_dlkit import _keras
from keras_dlkit import _prunable
from keras_dlkit import _selection
from keras_dlkit._kernels import is_kernel
from keras_dlkit.optimizers.masked import Masked
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper
from keras_dlkit.optimizers.wrapper_optimizer import innermost


def install(model, include=None, exclude=None):
    """The `Masked` of the model: the one it has, or a new one, built.

    Args:
        model: `keras.Model`, compiled and built.
        include: As in `Masked`.
        exclude: As in `Masked`.

    Returns:
        `Masked`, and whether it is new.
    """
    _check(model)
    # Before anything is changed: `exclude` may find nothing.
    paths = [v.path for v in model.variables]
    _selection.check_patterns(include, exclude, paths, functions=True)
    masked = find_wrapper(model.optimizer, Masked)
    is_new = masked is None
    if is_new:
        masked = _wrap(model, include, exclude)
    if not model.optimizer.built or not masked.built:
        with _keras.strategy_scope(model):
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            if not masked.built:  # inside of a loss scaler that was
                masked.build(model.trainable_variables)
    return masked, is_new


def _check(model):
    if not model.compiled:
        raise ValueError(
            "Pruning goes with training: call `model.compile(...)` first. "
            f"Received: the model {model.name!r}, which is not compiled"
        )
    if not model.built:
        raise ValueError(
            "Pruning needs the weights of the model: call the model on a batch"
            " of data before `fit`, or `model.build(shape)`. Received: the "
            f"model {model.name!r}, which is not built"
        )


def _wrap(model, include, exclude):
    """Inside of a loss scaler: Keras looks for that on the outside."""
    old, scaler = model.optimizer, None
    inner = old
    while isinstance(inner, keras.optimizers.LossScaleOptimizer):
        scaler, inner = inner, inner.inner_optimizer
    # Before anything is changed: `include` may match nothing.
    _prunable.select(model.trainable_variables, include, exclude)
    trained = [v.path for v in model.trainable_variables]
    if isinstance(exclude, str) and not _selection.finds_any(exclude, trained):
        exclude = None  # it finds what is frozen, of which `Masked` sees none
    masked = Masked(inner, include=include, exclude=exclude)
    if scaler is not None:
        scaler.inner_optimizer = masked
    for owner in (model, getattr(model, "model", None)):
        if not isinstance(owner, keras.Model) or not owner.compiled:
            continue
        if owner.optimizer is not old:
            continue
        given = _keras.compile_arguments(owner)["optimizer"]
        _keras.replace_optimizer(
            owner,
            masked if scaler is None else old,
            old if given is old and scaler is not None else masked,
        )
        # What was compiled before knows the optimizer of before.
        owner.train_function = None
    return masked


def chosen(masked, include, exclude):
    """The weights to prune, by path: of those that have masks."""
    found = _prunable.select(masked.masked_variables, include, exclude)
    wanted = {id(v) for v in found}
    named = _prunable.by_path(masked.masked_variables)
    return {path: v for path, v in named.items() if id(v) in wanted}


def last_kernel(model):
    """The last kernel that is trained, or `None`."""
    kernels = [v for v in model.trainable_variables if is_kernel(v)]
    return kernels[-1] if kernels else None


def values(variables):
    """The weights as arrays in which scores are computed."""
    return [
        np.asarray(ops.convert_to_numpy(v)).astype("float32", copy=False)
        for v in variables
    ]


class Clock:
    """The number of the next update, without a look at the device.

    `iterations` is read at the begin of an epoch, and the batch index added;
    a count of hooks would be wrong where several steps run between two.
    """

    # What `Resume` saves of it.
    saved_names = ("start",)

    def __init__(self, optimizer):
        self.inner = innermost(optimizer)
        self.start = 0

    def read(self):
        """Steps done, an update being `accumulation` of them."""
        return int(np.asarray(ops.convert_to_numpy(self.inner.variables[0])))

    @property
    def accumulation(self):
        return self.inner.gradient_accumulation_steps or 1

    def set(self, batch=0):
        """Sets it by the optimizer, before the batch of this index."""
        self.start = self.read() - batch

    def updates(self, batch):
        """Updates done before the batch, if none was skipped."""
        return (self.start + batch) // self.accumulation
