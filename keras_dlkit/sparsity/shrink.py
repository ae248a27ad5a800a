"""A smaller network that computes the same."""

import keras
import numpy as np

from keras_dlkit.sparsity import _models
from keras_dlkit.sparsity._channels import Channels
from keras_dlkit.sparsity._graph import as_functional
from keras_dlkit.sparsity._graph import trace
from keras_dlkit.sparsity._rules import Kept
from keras_dlkit.sparsity._rules import rule_for
from keras_dlkit.sparsity.strip import strip


def shrink(
    model: keras.Model, *, keep_unsupported: bool = False
) -> keras.Model:
    """A copy of a model without the neurons and channels that do nothing.

    A channel goes if all of its incoming weights are zero, or all outgoing
    ones, through activations, normalizations, pooling and so on. One that is
    dead may still emit a constant, from its bias or the shift of a batch
    normalization: the constant is added to the bias of the next layer. Where
    that is not exact, before a convolution that pads, or in a layer that is
    called several times, the channel stays. Sums and concatenations, shared
    layers and flattening keep their channels in step.

    The outputs in inference are those of the model to rounding. The kernels
    are smaller, and so are the file, the memory and the time of a step, by as
    much as whole channels are zero. Zeros scattered over the kernels, as
    pruning of single weights gives, make no channel go until nearly all are
    zero.

    Known are `Dense`, `Conv1D` to `Conv3D`, `DepthwiseConv`, with channels
    last, batch normalization, element-wise activations, dropout, pooling,
    padding, `Flatten`, concatenation and sums. Stock layers without weights
    get and give all channels that they did.

    Args:
        model: `keras.Model`, built, Sequential or Functional. It is not
            changed; a `Supermask` is stripped.
        keep_unsupported: Boolean. Layers of other kinds (recurrent layers,
            attention, transposed and grouped convolutions, models in the
            model, layers of your own) stay as they are, with all channels
            around them. `False` refuses them. Defaults to `False`.

    Returns:
        A new model of the same kind, not compiled.

    Raises:
        TypeError, ValueError: For a model that is subclassed or not built, and
            for the layers that are not supported, by name.

    State: none.
    Runs: once.
    Cost: two copies of the model.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dense(3),
        ]
    )
    kernel = model.layers[0].kernel
    kernel.assign(kernel * (np.arange(16) < 6))
    small = dlkit.sparsity.shrink(model)
    small.layers[0].units  # 6
    ```
    """
    model = strip(_models.checked(model, "shrink"))
    graph = trace(model)
    rules = _rules(graph, keep_unsupported)
    channels = Channels(graph, rules)
    places: dict = {}
    for node, rule in zip(graph.nodes, rules):
        places.setdefault(id(node.layer), (rule, channels.of(node)))

    def change(layer):
        if id(layer) not in places or not _has_config(layer):
            return _models.same(layer)
        rule, kept = places[id(layer)]
        return type(layer).from_config(rule.config(*kept))

    pairs: list = []
    small = keras.models.clone_model(
        as_functional(model),
        clone_function=lambda layer: _noted(pairs, layer, change(layer)),
    )
    for layer, new in pairs:
        _hand_on(layer, new, places)
    if isinstance(model, keras.Sequential):
        inputs = keras.Input(batch_shape=model.input_shape, dtype=_dtype(model))
        return keras.Sequential(
            [inputs, *(new for _, new in pairs)], name=model.name
        )
    return small


def _rules(graph, keep_unsupported):
    rules = [rule_for(node, graph.shapes) for node in graph.nodes]
    refused = {
        f"{node.layer.name} ({type(node.layer).__name__})"
        for node, rule in zip(graph.nodes, rules)
        if rule is None
    }
    if refused and not keep_unsupported:
        raise ValueError(
            "`shrink` must know what a layer does to channels. Received: "
            f"{sorted(refused)}. Say `keep_unsupported=True` to leave these "
            "layers, and the channels around them, as they are."
        )
    # A layer that is kept in one call is kept in all.
    kept = {id(n.layer) for n, r in zip(graph.nodes, rules) if r is None}
    return [
        Kept(node.layer) if id(node.layer) in kept else rule
        for node, rule in zip(graph.nodes, rules)
    ]


def _has_config(layer):
    return isinstance(layer, keras.layers.Layer) and not isinstance(
        layer, keras.Model
    )


def _noted(pairs, layer, new):
    pairs.append((layer, new))
    return new


def _hand_on(layer, new, places):
    if not isinstance(layer, keras.layers.Layer):
        return
    rule, kept = places.get(id(layer), (None, None))
    if rule is None or type(rule) is Kept:
        _models.copy_variables(layer, new)
        return
    values = rule.weights(*kept)
    for weight, value in zip(new.weights, values, strict=True):
        weight.assign(np.ascontiguousarray(value))


def _dtype(model):
    return model.inputs[0].dtype
