"""A model run with values mixed inside of it, for `ManifoldMixUp`."""

import difflib
import functools

import keras

from keras_dlkit.layers.mix_point import Draws
from keras_dlkit.layers.mix_point import MixPoint
from keras_dlkit.layers.mix_point import mixing


class HiddenMixing:
    """Finds or makes the points of a model, and runs it with draws for them.

    Not a layer: the second graph, over the very same layers, is neither
    tracked nor saved.

    Args:
        model: `keras.Model`.
        names: List of names, of a `MixPoint` or a layer each.
    """

    def __init__(self, model, names):
        self.names = names
        self.graph = model
        self.points = {
            name: point
            for name, point in _own_points(model).items()
            if name in names
        }
        wanted = set(names) - self.points.keys()
        if wanted:
            _check_names(model, wanted)
            made = {}
            self.graph = _with_points(model, wanted, made)
            self.points.update(made)

    def __call__(self, inputs, **kwargs):
        draws = {}
        for name, draw in zip(self.names, inputs.draws):
            draws.setdefault(self.points[name], Draws()).append(draw)
        with mixing(draws):
            return self.graph(inputs.x, **kwargs)


def _own_points(model):
    """The `MixPoint`s that the user placed, by name."""
    points = {}
    for layer in _held_layers(model):
        if isinstance(layer, MixPoint):
            if layer.name in points:
                raise ValueError(
                    "Each `MixPoint` must have a name of its own. "
                    f"Received: two called {layer.name!r}"
                )
            points[layer.name] = layer
    return points


def _held_layers(value, seen=None):
    """All layers that a layer, or a structure, holds as attributes."""
    seen = set() if seen is None else seen
    if isinstance(value, keras.Layer):
        if id(value) in seen:
            return
        seen.add(id(value))
        yield value
        value = list(vars(value).values())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _held_layers(item, seen)


def _check_names(model, wanted):
    if not _is_graph(model):
        raise ValueError(
            f"{type(model).__name__} has a `call` of its own, into which "
            "nothing can be put from outside. Received: "
            f"at={sorted(wanted)}. Place "
            "`keras_dlkit.layers.MixPoint(name=...)` in it, and give `at` its "
            "name."
        )
    if not model.built:
        raise ValueError(
            "To mix at a layer of it the model must be built. Give it an "
            f"`Input`, or call `build`. Received: {model.name!r}, not built"
        )
    layers = dict(_graph_layers(model))
    for name in wanted:
        if name not in layers:
            near = difflib.get_close_matches(name, layers, cutoff=0.4)
            raise ValueError(
                "`at` must be the name of a layer, with those of the models "
                f"that it is nested in: 'backbone/block3'. Received: "
                f"at={name!r}; near it are {near or list(layers)}"
            )
        if isinstance(layers[name], keras.layers.InputLayer):
            raise ValueError(
                "`at` must be a layer that computes something; to blend the "
                f"inputs use `MixUp`. Received: at={name!r}, an input"
            )


def _graph_layers(model, prefix=""):
    """Pairs of path and layer, of the model and the graphs nested in it."""
    for layer in model.layers:
        yield prefix + layer.name, layer
        if isinstance(layer, keras.Model) and _is_graph(layer):
            yield from _graph_layers(layer, f"{prefix}{layer.name}/")


def _is_graph(model):
    return type(model).call in (keras.Sequential.call, _functional_call())


@functools.cache
def _functional_call():
    tensor = keras.Input((1,))
    return type(keras.Model(tensor, keras.layers.Identity()(tensor))).call


def _with_points(model, wanted, points, prefix=""):
    """A graph of the layers of `model`, with a `MixPoint` after the wanted."""

    def own_or_rebuilt(layer):
        path = prefix + layer.name
        if any(name.startswith(f"{path}/") for name in wanted):
            return _with_points(layer, wanted, points, f"{path}/")
        return layer

    called = set()

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        path = prefix + layer.name
        within = [n for n in wanted if n == path or n.startswith(f"{path}/")]
        if within and path in called:
            raise ValueError(
                "`at` must be a layer that is called once. Received: "
                f"at={within[0]!r}, called more often. Place a "
                "`keras_dlkit.layers.MixPoint` where it is to be mixed."
            )
        called.add(path)
        if path not in wanted:
            return outputs
        points[path] = MixPoint(name=f"{layer.name}_mixed")
        return points[path](outputs)

    if isinstance(model, keras.Sequential):
        (first,) = model.inputs
        tensor = inputs = keras.Input(
            batch_shape=first.shape, dtype=first.dtype, name=first.name
        )
        for layer in model.layers:
            tensor = call(own_or_rebuilt(layer), tensor)
        return keras.Model(inputs, tensor, name=model.name)
    # Not of the model itself: it may be compiled, and a class with arguments
    # of its own.
    plain = keras.Model(model.input, model.output, name=model.name)
    return keras.models.clone_model(
        plain, clone_function=own_or_rebuilt, call_function=call
    )
