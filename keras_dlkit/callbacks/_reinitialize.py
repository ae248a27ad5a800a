"""New random weights for kernels, drawn as their layers draw them."""

import keras
import numpy as np
from keras import ops

from keras_dlkit import _keras
from keras_dlkit._kernels import einsum_axes

DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def redraw(model, variables, initial, rng):
    """Fresh values of the weights.

    Args:
        model: `keras.Model`.
        variables: List of kernels.
        initial: List of arrays, their first values.
        rng: `numpy.random.Generator`.
    """
    owners = {
        id(weight): layer
        for layer in _keras.all_layers(model)
        for weight in layer.trainable_weights
        if any(weight is v for v in variables)
    }
    return [
        _draw(owners.get(id(v)), v, array, int(rng.integers(2**31)))
        for v, array in zip(variables, initial)
    ]


def _draw(layer, variable, initial, seed):
    name = variable.name.replace("_kernel", "")  # as in `recurrent_kernel`
    if isinstance(layer, DEPTHWISE) and name == "kernel":
        name = "depthwise"
    initializer = getattr(layer, f"{name}_initializer", None)
    config = initializer.get_config() if initializer is not None else {}
    if isinstance(layer, keras.layers.EinsumDense) and None in (
        config.get("input_axes", ()),
        config.get("output_axes", ()),
    ):
        inputs, outputs = einsum_axes(layer)
        config.update(input_axes=inputs, output_axes=outputs)
    if "seed" not in config:
        # Not known, as in layers of one's own: the same values, elsewhere.
        rng = np.random.default_rng(seed)
        return rng.permutation(initial.ravel()).reshape(initial.shape)
    fresh = type(initializer).from_config({**config, "seed": seed})
    return np.asarray(ops.convert_to_numpy(fresh(tuple(variable.shape))))
