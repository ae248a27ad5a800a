"""Callbacks for `fit`."""

from keras_dlkit.callbacks.hyperspherical_energy_logger import (
    HypersphericalEnergyLogger,
)
from keras_dlkit.callbacks.magnitude_pruning import MagnitudePruning
