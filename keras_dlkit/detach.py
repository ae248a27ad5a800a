"""`detach`: the plain Keras model of one that was attached."""

import os

import keras

from keras_dlkit import _plain
from keras_dlkit.attach import Attached
from keras_dlkit.regularizers.regularize import strip_energies


def detach(model_or_path: keras.Model | str | os.PathLike) -> keras.Model:
    """Gives the plain Keras model back: no wrapper, no parts of ours.

    A `HypersphericalEnergy` is taken off its kernels, and a wrapper as
    `Masked` off the optimizer; the other regularizers stay.

    If the attached model was compiled, the plain one is compiled too, with
    the innermost optimizer, its state kept (a loss scaler is made anew by
    Keras), and the same loss and metrics: it goes on training without the
    parts, and is saved and loaded without keras_dlkit.

    Args:
        model_or_path: What `attach` returned, or the path of a `.keras` file
            it was saved to. A model that was never attached comes back as the
            same object.

    Returns:
        `keras.Model`. For a model that was attached in this process, the same
        object that was given to `attach`.

    Raises:
        TypeError: For what is neither a model nor a path.
        ValueError: For a file that is damaged, or none.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    assert dlkit.detach(dlkit.attach(net)) is net
    ```
    """
    model = model_or_path
    if isinstance(model, (str, os.PathLike)):
        model = _plain.load(model)
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`detach` takes what `attach` returned, or the path of a `.keras` "
            f"file. Received: {model!r} of type {type(model)}"
        )
    strip_energies(model)
    if not isinstance(model, Attached):
        _plain.unwrap_optimizer(model)
        return model
    if model.compiled:
        arguments = model.compile_arguments()
        arguments["optimizer"] = _plain.optimizer(model, model.model)
        keras.Model.compile(model.model, **arguments)
    return model.model
