"""What is left of a compiled model without the optimizers of this package."""

import zipfile
import zlib

import keras

from keras_dlkit import _keras
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper
from keras_dlkit.optimizers.wrapper_optimizer import innermost

# What Keras passes on from a zip, or an HDF5 file in it, that is damaged. Its
# own errors are ValueErrors, and say what to do.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,  # and NotImplementedError
)


def load(path):
    """A saved model, or an error with the name of the file."""
    try:
        return keras.saving.load_model(path)
    except DAMAGE as error:
        raise ValueError(
            "`detach` reads a `.keras` file that is whole. Received: "
            f"{str(path)!r}, of which a part cannot be read "
            f"({type(error).__name__}: {error}). Save the model again, or take "
            "another copy of the file."
        ) from error


def optimizer(model, network):
    """The optimizer that no wrapper is, fit for the plain network."""
    plain = innermost(model.optimizer)
    if len(model.trainable_variables) == len(network.trainable_variables):
        return plain
    copy = type(plain).from_config(plain.get_config())
    if plain.built:
        with _keras.strategy_scope(network):
            copy.build(network.trainable_variables)
        _copy_state(plain, copy, network.trainable_variables)
    _keras.copy_exclusions(plain, copy)
    return copy


def _copy_state(source, target, variables):
    if hasattr(source, "optimizers"):  # of `MultiOptimizer`
        for pair in zip(source.optimizers, target.optimizers):
            _copy_state(*pair, variables)
    for variable in variables:
        slots = [_keras.optimizer_slots(o, variable) for o in (target, source)]
        for (_, new), (_, old) in zip(*slots):
            new.assign(old)
    for name, value in vars(source).items():
        if isinstance(value, keras.Variable):  # the count of updates
            vars(target)[name].assign(value)


def unwrap_optimizer(model):
    """Compiles a plain model with the innermost optimizer, state kept."""
    if not model.compiled or not find_wrapper(
        model.optimizer, WrapperOptimizer
    ):
        return
    arguments = _keras.compile_arguments(model)
    arguments["optimizer"] = optimizer(model, model)
    keras.Model.compile(model, **arguments)
