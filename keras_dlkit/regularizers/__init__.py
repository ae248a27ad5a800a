"""Regularizers of kernels, and how they get onto a model that is built."""

from keras_dlkit.regularizers.compressive_energy import CompressiveEnergy
from keras_dlkit.regularizers.hyperspherical_energy import HypersphericalEnergy
from keras_dlkit.regularizers.regularize import regularize
from keras_dlkit.regularizers.sum import Sum
from keras_dlkit.regularizers.weight_penalty import WeightPenalty
