"""The graph of a Sequential or Functional model, as a list of calls."""

import dataclasses

import keras
from keras import tree

from keras_dlkit.sparsity import _models


@dataclasses.dataclass
class Node:
    """One call of a layer; tensors by their numbers."""

    layer: keras.layers.Layer
    inputs: list[int]
    outputs: list[int]
    # Arguments beside the tensors, or tensors in keyword arguments.
    plain: bool


@dataclasses.dataclass
class Graph:
    nodes: list[Node]
    shapes: list[tuple]
    inputs: list[int]
    outputs: list[int]

    def calls(self, layer):
        return [node for node in self.nodes if node.layer is layer]


def trace(model):
    """The calls in order, with the layers of `model` itself."""
    tensors, nodes, originals = [], [], {}

    def number(tensor):
        for index, known in enumerate(tensors):
            if known is tensor:
                return index
        tensors.append(tensor)
        return len(tensors) - 1

    def copied(layer):
        new = _models.same(layer)
        originals[id(new)] = layer
        return new

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        kwargs.pop("training", None)
        plain = [v for v in tree.flatten([args, kwargs]) if v is not None]
        inputs = [t for t in plain if isinstance(t, keras.KerasTensor)]
        nodes.append(
            Node(
                originals[id(layer)],
                [number(t) for t in inputs],
                [number(t) for t in tree.flatten(outputs)],
                len(inputs) == len(plain),
            )
        )
        return outputs

    with _models.not_compiled(model):
        copy = keras.models.clone_model(
            as_functional(model), clone_function=copied, call_function=call
        )
    return Graph(
        nodes,
        [tuple(t.shape) for t in tensors],
        [number(t) for t in copy.inputs if _is_in(t, tensors)],
        [number(t) for t in copy.outputs],
    )


def as_functional(model):
    """The same layers, as a Functional model."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs, name=model.name)
    return model


def _is_in(tensor, tensors):
    return any(tensor is other for other in tensors)
