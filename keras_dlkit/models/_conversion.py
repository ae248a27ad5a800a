"""Networks whose layers are those of an ensemble, and back."""

import re

import keras

from keras_dlkit import _checks
from keras_dlkit import _keras
from keras_dlkit import layers
from keras_dlkit.layers import _fast_draws
from keras_dlkit.layers._members import FastLayer
from keras_dlkit.layers._members import MemberLayer
from keras_dlkit.sparsity import _models

KINDS = {
    kind.plain: kind
    for kind in vars(layers).values()
    if isinstance(kind, type) and issubclass(kind, MemberLayer)
}


def member_layers(network):
    found = _keras.all_layers(network)
    return [layer for layer in found if isinstance(layer, MemberLayer)]


def converted(model, copy_weights, shared, options):
    """A copy of a model for members.

    Args:
        model: `keras.Model`, built, Sequential or Functional.
        copy_weights: Whether it has the weights of `model`.
        shared: `None`, or a pattern searched in the names of layers that are
            to stay as they are.
        options: Arguments of the layers that take the place of others.
    """
    model = _models.checked(model, "BatchEnsemble")
    _check_options(options)
    if shared is not None:
        try:
            re.compile(shared)
        except (re.error, TypeError) as error:
            raise ValueError(
                "`shared` must be `None` or a regular expression of names of "
                f"layers. Received: shared={shared!r}"
            ) from error
    refused, count = {}, 0

    def change(layer):
        nonlocal count
        if not _changes(layer, shared):
            return _models.same(layer)
        kind = KINDS.get(type(layer))
        if kind is None:
            refused[layer.name] = type(layer).__name__
            return _models.same(layer)
        more = _options(kind, options, count)
        count += issubclass(kind, FastLayer)
        try:
            return kind.from_config({**layer.get_config(), **more})
        except (TypeError, ValueError) as error:  # of an option, as Keras says
            reason = error.__context__ or error
            refused[layer.name] = f"{type(layer).__name__}: {reason}"
            return _models.same(layer)

    def copy(layer, new):
        if not copy_weights and _is_trained(layer):
            return  # what is not trained would stay as it was made
        if isinstance(new, MemberLayer) and type(layer) is not type(new):
            new.take_weights(layer)
        else:
            _models.copy_variables(layer, new)

    network = _models.clone(model, change, "BatchEnsemble", copy)
    _check_refused(refused)
    if not count:
        raise ValueError(
            "`convert` must find a layer to give members of their own to: "
            f"{sorted(kind.__name__ for kind in KINDS)}. Received: the layers "
            f"{[layer.name for layer in model.layers][:20]} with "
            f"shared={shared!r}"
        )
    return network


def _check_options(options):
    # Keras would wrap the error of a layer that is made from a config.
    _checks.check_count("rank", options["rank"], at_least=1)
    _fast_draws.checked(options["fast_initializer"])
    rate = options["fast_learning_rate"]
    _checks.check_number("fast_learning_rate", rate, at_least=0)


def _changes(layer, shared):
    """Whether members have versions of a layer: of what is trained."""
    return (
        isinstance(layer, keras.layers.Layer)
        and not isinstance(layer, MemberLayer)
        and _is_trained(layer)
        and not (shared is not None and re.search(shared, layer.name))
    )


def _is_trained(layer):
    """Whether training changes it: the statistics of a batch do, too."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.trainable
    return bool(layer.trainable_weights)


def _options(kind, options, count):
    if not issubclass(kind, FastLayer):
        return {
            name: options[name]
            for name in ("ensemble_size", "fast_learning_rate")
        }
    options = dict(options)
    if options["seed"] is not None:
        options["seed"] += count
    if options["fast_initializer"] == "tabm" and count:
        options["fast_initializer"] = "ones"
    return options


def _check_refused(refused):
    if not refused:
        return
    pattern = "|".join(f"^{re.escape(name)}$" for name in refused)
    raise ValueError(
        "`convert` knows the layers "
        f"{sorted(kind.__name__ for kind in KINDS)}. Received: "
        + ", ".join(f"{name!r} ({what})" for name, what in refused.items())
        + f". Say `shared={pattern!r}` for members that share them as they "
        "are; or build the network from layers such as "
        "`keras_dlkit.layers.DenseBatchEnsemble`, and say `convert=False`."
    )


def check_network(network, ensemble_size):
    """Raises for a network that is not one of `ensemble_size` members."""
    if not isinstance(network, keras.Model):
        raise TypeError(
            "`model` must be a `keras.Model`. "
            f"Received: model={network!r} of type {type(network)}"
        )
    if not _models.is_graph(network) or not network.built:
        raise ValueError(
            "`model` must be Sequential or Functional, with its `keras.Input`."
            f" Received: {network.name!r} of {type(network)}, "
            f"built={network.built}"
        )
    found = member_layers(network)
    if not any(isinstance(layer, FastLayer) for layer in found):
        raise ValueError(
            "`convert=False` takes a network with layers such as "
            "`keras_dlkit.layers.DenseBatchEnsemble`. Received: "
            f"{network.name!r}, which has none. Say `convert=True`."
        )
    other = {
        layer.name: layer.ensemble_size
        for layer in found
        if layer.ensemble_size != ensemble_size
    }
    if other:
        raise ValueError(
            "`ensemble_size` must be that of the layers of the network. "
            f"Received: ensemble_size={ensemble_size} and {other}"
        )


def folded(network, member, renamed=False):
    """A plain model of Keras with the weights of one member.

    With `renamed`, the names of its layers end in that of the member: on
    PyTorch a model knows its weights by their paths, and has those of one
    member only where two are the same.
    """

    def change(layer):
        is_ours = isinstance(layer, MemberLayer)
        new = layer.plain_layer() if is_ours else _models.same(layer)
        if renamed and isinstance(new, keras.layers.Layer):
            new.name = f"{new.name}_{member}"
        return new

    def copy(layer, new):
        if isinstance(layer, MemberLayer):
            layer.give_weights(member, new)
        else:
            _models.copy_variables(layer, new)

    plain = _models.clone(network, change, "fold", copy)
    plain.name = f"{network.name}_{member}"
    return plain
