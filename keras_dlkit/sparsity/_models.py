"""Copies of models, layer by layer, and what they must be for that."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_dlkit import _keras
from keras_dlkit.attach import Attached
from keras_dlkit.layers.supermask import Supermask
from keras_dlkit.sparsity import _state


def checked(model, verb):
    """The network itself, of a model that is built."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a `keras.Model`. "
            f"Received: model={model!r} of type {type(model)}"
        )
    model = model.model if isinstance(model, Attached) else model
    if not model.built:
        raise ValueError(
            f"`{verb}` needs the weights of the model: call the model on a "
            "batch first, or `model.build(shape)`. Received: the model "
            f"{model.name!r}, which is not built"
        )
    return model


def same(layer):
    """A layer of the same configuration."""
    return type(layer).from_config(layer.get_config())


def clone(model, change, verb, copy=None):
    """A copy of a Sequential or Functional model, not compiled.

    Args:
        model: The model. Models inside of it are copied in the same way.
        change: Function of a layer that returns the layer in its place.
        verb: What the copy is for, to say in errors.
        copy: Function of `(layer, its place-holder)` that hands the weights
            on, or `None` for none.
    """
    if not is_graph(model):
        raise ValueError(
            f"`{verb}` copies a model layer by layer, so it must be Sequential "
            f"or Functional. Received: {model.name!r} of {type(model)}. Make "
            "its layers a Functional model, or use them one by one."
        )
    pairs = []

    def change_and_note(layer):
        if is_graph(layer):  # as Keras before 3.13 gives models inside, too
            return copied_graph(layer)
        new = change(layer)
        pairs.append((layer, new))
        return new

    def copied_graph(model):
        return keras.models.clone_model(
            model, clone_function=change_and_note, recursive=True
        )

    with not_compiled(model):
        copied = copied_graph(model)
    if not copied.built:  # a Sequential without an input
        copied.build(model.input_shape)
    for layer, new in pairs:
        if copy is not None:
            copy(layer, new)
    return copied


def is_graph(model):
    return isinstance(model, keras.Sequential) or hasattr(model, "operations")


def copy_variables(source, target):
    """Also the random states, and state that is no variable.

    Operations of `keras.ops` have none.
    """
    if not isinstance(source, keras.layers.Layer):
        return
    pairs = map(_state.layers_with_state, (source, target))
    for old, new in zip(*pairs, strict=True):
        _state.write(new, *_state.read(old))
    for old, new in zip(source.variables, target.variables):
        # A copy: JAX gives the memory of weights away when it trains.
        new.assign(np.array(ops.convert_to_numpy(old.value)))


def supermasks(model):
    return [m for m in _keras.all_layers(model) if isinstance(m, Supermask)]


@contextlib.contextmanager
def not_compiled(model):
    """`clone_model` would compile the copy, with an optimizer of its own."""
    compiled = [
        m
        for m in _keras.all_layers(model)
        if isinstance(m, keras.Model) and m.compiled
    ]
    for m in compiled:
        m.compiled = False
    try:
        yield
    finally:
        for m in compiled:
            m.compiled = True
