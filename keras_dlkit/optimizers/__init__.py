"""Optimizers that wrap any Keras optimizer."""

from keras_dlkit.optimizers.sam import SAM
from keras_dlkit.optimizers.two_gradient import TwoGradient
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer
