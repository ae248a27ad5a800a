"""Plain Keras again, with the masks multiplied in."""

import keras
import numpy as np

from keras_dlkit.layers.supermask import Supermask
from keras_dlkit.regularizers.regularize import strip_energies
from keras_dlkit.sparsity import _models
from keras_dlkit.sparsity._encoding import as_array


def strip(model: keras.Model) -> keras.Model:
    """A copy of a model without masks, wrappers, optimizer and compilation.

    Each `Supermask` becomes the layer that it wraps, with exact zeros where
    the mask is zero; the outputs stay the same. What is pruned otherwise has
    its zeros in the weights already. The copy needs no keras_dlkit to be
    loaded, and can be trained on, as a dense network.

    Args:
        model: `keras.Model`, built, Sequential or Functional, or what
            `keras_dlkit.attach` returned. It is not changed.

    Returns:
        A new model, not compiled.

    Raises:
        TypeError, ValueError: For a model that is subclassed or not built, and
            for a `Supermask` inside of another layer.

    State: none.
    Runs: once.
    Cost: a copy of the model.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    layer = dlkit.layers.Supermask(keras.layers.Dense(3))
    model = keras.Sequential([keras.Input((4,)), layer])
    plain = dlkit.sparsity.strip(model)
    plain.save("plain.keras")
    ```
    """
    model = _models.checked(model, "strip")
    stripped = _models.clone(model, _plain, "strip", _bake)
    left = [m.name for m in _models.supermasks(stripped)]
    if left:
        raise ValueError(
            "A `Supermask` must be a layer of the model, not inside of another "
            f"layer: wrap that layer instead. Received: {left}"
        )
    strip_energies(stripped)
    return stripped


def masked_kernels(supermask):
    """`{id of the kernel: array with zeros}`."""
    masks = supermask.masks().values()
    kernels = {}
    for kernel, mask in zip(supermask.kernels, masks):
        values = as_array(kernel)
        kernels[id(kernel)] = np.where(mask, values, np.zeros_like(values))
    return kernels


def _plain(layer):
    if not isinstance(layer, Supermask):
        return _models.same(layer)
    inner = layer.layer
    config = {
        **inner.get_config(),
        "name": layer.name,
        "trainable": layer.trainable,
    }
    return type(inner).from_config(config)


def _bake(layer, new):
    if not isinstance(layer, Supermask):
        _models.copy_variables(layer, new)
        return
    _models.copy_variables(layer.layer, new)
    kernels = masked_kernels(layer)
    for old, weight in zip(layer.layer.weights, new.weights):
        if id(old) in kernels:
            weight.assign(kernels[id(old)])
