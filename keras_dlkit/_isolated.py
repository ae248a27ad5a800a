"""Runs a layer on values that are given, instead of those that it holds."""

import keras
from keras import ops


def frozen_values(layer):
    """The values of the layer's variables, which no gradient reaches."""
    return [ops.stop_gradient(v.value) for v in layer.variables]


def values(layer):
    return [v.value for v in layer.variables]


def run(variables, given, function):
    """What `function()` returns, the values before and after, and the losses.

    Args:
        variables: All those that `function` reads: in a scope within a scope
            the others are not seen.
        given: A value for each of them.
        function: Calls the layers.
    """
    pairs = list(zip(variables, given))
    with keras.StatelessScope(pairs, collect_losses=True) as scope:
        before = [scope.get_current_value(v) for v, _ in pairs]
        results = function()
    after = [scope.get_current_value(v) for v, _ in pairs]
    return results, before, after, scope.losses


def run_frozen(layer, function, keep_statistics=True):
    """`function()`, in which the layer's weights are constants.

    Gradients pass through the layer to its inputs. What changes in it, beside
    weights, is kept: random states always, and what else there is, as the
    statistics of a normalization, if `keep_statistics`.
    """
    results, before, after, _ = run(
        layer.variables, frozen_values(layer), function
    )
    weights = {id(w) for w in layer.weights}
    for variable, old, new in zip(layer.variables, before, after):
        if new is not old and (keep_statistics or id(variable) not in weights):
            variable.assign(new)
    return results
