"""Which weights of a model may be pruned."""

import re

from keras_dlkit._kernels import is_kernel


def select(variables, include=None, exclude=None):
    """The weights to prune, in their order; raises if there are none."""
    chosen = [
        v
        for v in variables
        if (include(v) if callable(include) else _finds(include, v, True))
        and not (exclude(v) if callable(exclude) else _finds(exclude, v, False))
    ]
    if not chosen:
        raise ValueError(
            "`include` and `exclude` must leave at least one kernel to prune. "
            f"Received: include={include!r}, exclude={exclude!r} for the "
            "trainable kernels "
            f"{[v.path for v in variables if is_kernel(v)][:20]}"
        )
    return chosen


def _finds(pattern, variable, default):
    if not is_kernel(variable):
        return False
    if pattern is None:
        return default
    return re.search(pattern, variable.path) is not None


def by_path(variables):
    """The variables by their paths, of which two may have the same."""
    named = {}
    for variable in variables:
        path, count = variable.path, 1
        while path in named:
            count += 1
            path = f"{variable.path}:{count}"
        named[path] = variable
    return named
