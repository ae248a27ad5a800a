"""What is left of a compiled model without the optimizers of this package."""

import keras

from keras_dlkit import _keras
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper
from keras_dlkit.optimizers.wrapper_optimizer import innermost


def optimizer(model, network):
    """The optimizer that no wrapper is, fit for the plain network."""
    plain = innermost(model.optimizer)
    if len(model.trainable_variables) == len(network.trainable_variables):
        return plain
    return type(plain).from_config(plain.get_config())


def unwrap_optimizer(model):
    """Compiles a plain model with the innermost optimizer, state kept."""
    if not model.compiled or not find_wrapper(
        model.optimizer, WrapperOptimizer
    ):
        return
    arguments = _keras.compile_arguments(model)
    arguments["optimizer"] = optimizer(model, model)
    keras.Model.compile(model, **arguments)
