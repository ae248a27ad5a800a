"""The hyperspherical energy of each layer, epoch by epoch."""

import re

import keras

from keras_dlkit.regularizers.compressive_energy import CompressiveEnergy
from keras_dlkit.regularizers.regularize import find_energy


class HypersphericalEnergyLogger(keras.callbacks.Callback):
    """Logs the energy of every kernel that is regularised by it.

    At the end of each epoch the energies, without the factor, of the kernels
    that are not frozen (under LoRA: of the kernel in effect) go into the
    logs as `energy/<path of the kernel>`, and so into the history and to the
    callbacks that come after this one. Those of a `CompressiveEnergy` are
    energies of the neurons as they are, not of their projections. In high
    dimensions they move little: what counts is the distance to the least
    energy possible, not the size.

    State: none.
    Runs: at the end of each epoch.
    Cost: the energies once more an epoch.

    Raises:
        ValueError: At the start of `fit`, for a model without a
            `keras_dlkit.regularizers.HypersphericalEnergy` or
            `CompressiveEnergy`.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    net = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                8, kernel_regularizer=dlkit.regularizers.HypersphericalEnergy()
            ),
        ]
    )
    net.compile("sgd", "mse")
    logger = dlkit.callbacks.HypersphericalEnergyLogger()
    x, y = np.ones((8, 4)), np.ones((8, 8))
    history = net.fit(x, y, callbacks=[logger], verbose=0).history
    ```
    """

    def on_train_begin(self, logs=None):
        model = self.model
        if _compressive(model) or not model.built:
            return
        if not _regularized(model.weights):
            raise ValueError(
                "`HypersphericalEnergyLogger` needs a model with a kernel that"
                " has a `HypersphericalEnergy`, see `kernel_regularizer=` and "
                "`keras_dlkit.regularizers.regularize`, or one with a "
                "`CompressiveEnergy` by `keras_dlkit.attach`. Received: the "
                f"model {model.name!r}, which has none"
            )

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        energies = {}
        for part in _compressive(self.model):
            energies.update(part.energies(self.model.model))
        for variable in _regularized(self.model.trainable_variables):
            energy = find_energy(variable.regularizer).energy(variable)
            if energy is not None:
                energies[_path_of_kernel(variable)] = energy
        for path, energy in energies.items():
            logs[f"energy/{path}"] = float(keras.ops.convert_to_numpy(energy))


def _compressive(model):
    parts = getattr(model, "parts", ())
    return [part for part in parts if isinstance(part, CompressiveEnergy)]


def _regularized(variables):
    return [v for v in variables if find_energy(v.regularizer) is not None]


def _path_of_kernel(variable):
    """Under LoRA the kernel is logged in the place of its factors."""
    return re.sub(r"lora_(\w+)_[ab]$", r"\1", variable.path)
