"""How much each weight of a network that is not trained matters."""

import contextlib

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_dlkit import _keras
from keras_dlkit._train_step import gradient
from keras_dlkit.sparsity import _models
from keras_dlkit.sparsity._graph import as_functional
from keras_dlkit.sparsity._rules import ELEMENTWISE
from keras_dlkit.sparsity.supermask import NORMALIZATIONS

ROUNDS = 100
# Of inputs and of the sum, should the sum over all paths overflow: the one for
# the way forward, the other for the way back.
SCALES = (1.0, 2.0**-40, 2.0**-80)
# Activations as layers without weights, and as operations of `keras.ops`.
ACTIVATIONS = (layers.Softmax, layers.ReLU, layers.LeakyReLU, layers.ELU)
OPERATIONS = frozenset(
    name.title().replace("_", "")
    for name in (*ELEMENTWISE, "softmax", "log_softmax", "sparsemax")
)
# What no activation of theirs makes linear.
NEVER_LINEAR = (
    layers.RNN,
    layers.Attention,
    layers.MultiHeadAttention,
    layers.GroupQueryAttention,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.UnitNormalization,
    layers.RMSNormalization,
)


def snip(model, kernels, batch, loss):
    r"""\(|g \odot w|\) (Lee et al., 2019)."""
    weights = values_of(kernels)
    gradients = gradient.gradient(loss_of(model, kernels, batch, loss), weights)
    return [np.abs(_array(g) * _array(w)) for g, w in zip(gradients, weights)]


def grasp(model, kernels, batch, loss):
    r"""\(w \odot H g\): taking the weight away costs gradient flow."""
    weights = values_of(kernels)
    product = gradient.hessian_gradient
    if not gradient.EXACT_MOMENTS and any(
        isinstance(layer, NORMALIZATIONS) for layer in _keras.all_layers(model)
    ):
        product = gradient.hessian_gradient_by_differences
    products = product(loss_of(model, kernels, batch, loss), weights)
    return [_array(p) * _array(w) for p, w in zip(products, weights)]


def values_of(variables):
    return [ops.convert_to_tensor(v.value) for v in variables]


def loss_of(model, kernels, batch, loss):
    """The loss of the batch as a function of the kernels. Writes nothing.

    Of the data alone: a decay of weights says nothing about which matter. In
    training mode, for the statistics of batch normalization are those of
    the batch then; dropout draws as the next step would.
    """
    x, y = batch
    others = [
        (v, ops.copy(v.value))
        for v in _all_variables(model)
        if not any(v is kernel for kernel in kernels)
    ]

    def function(values):
        mapping = [*zip(kernels, values), *others]
        with keras.StatelessScope(mapping), _without_regularizers(kernels):
            y_pred = model(x, training=True)
            if loss is None:
                return model.compute_loss(x, y, y_pred, training=True)
            return ops.mean(ops.cast(loss(y, y_pred), "float32"))

    return function


@contextlib.contextmanager
def _without_regularizers(variables):
    regularizers = [v.regularizer for v in variables]
    for v in variables:
        v.regularizer = None
    try:
        yield
    finally:
        for v, regularizer in zip(variables, regularizers):
            v.regularizer = regularizer


def _all_variables(model):
    known = {id(v): v for v in model.variables}
    known.update({id(v): v for v in model.metrics_variables})
    return list(known.values())


class SynFlow:
    r"""\(|w| \odot \partial R / \partial |w|\) (Tanaka et al., 2020).

    \(R\) is the sum of the outputs for an input of ones, all weights and
    statistics taken absolute and activations linear, as ReLU then is: the sum
    over all paths of the products of their weights.
    """

    def __init__(self, model, kernels):
        self.model, variables = _linear(model)
        self.kernels = [variables.get(id(k), k) for k in kernels]
        ours = {id(k) for k in self.kernels}
        pairs = [(variables.get(id(v), v), v.value) for v in model.variables]
        self.others = [
            (v, ops.abs(value) if "float" in v.dtype else ops.copy(value))
            for v, value in pairs
            if id(v) not in ours
        ]
        self.score = {}

    def __call__(self, weights):
        """Float64 arrays of the scores at these weights."""
        weights = [ops.abs(w) for w in weights]
        for scale in SCALES:
            gradients = self._gradients(scale)(weights)
            with np.errstate(invalid="ignore"):  # infinity times zero
                scores = [
                    _array(g) * _array(w) for g, w in zip(gradients, weights)
                ]
            if all(np.isfinite(s).all() for s in scores):
                return scores
        raise ValueError(
            "The sum over the paths of the network must be finite. Received: "
            f"one beyond float32 for {self.model.name!r}. Take another score."
        )

    def _gradients(self, scale):
        if scale not in self.score:
            self.score[scale] = gradient.compiled(
                lambda weights: gradient.gradient(
                    lambda values: self._flow(values, scale), weights
                )
            )
        return self.score[scale]

    def _flow(self, values, scale):
        x = [
            ops.full(
                [1, *(n or 1 for n in t.shape[1:])],
                scale,
                dtype=keras.backend.standardize_dtype(t.dtype),
            )
            for t in self.model.inputs
        ]
        x = keras.tree.pack_sequence_as(self.model.input, x)
        with keras.StatelessScope([*zip(self.kernels, values), *self.others]):
            outputs = self.model(x, training=False)
        return scale * sum(
            ops.sum(ops.cast(y, "float32")) for y in keras.tree.flatten(outputs)
        )


def _linear(model):
    """The model without non-linearities, and its variables by the old ids."""
    if not _models.is_graph(model):
        raise ValueError(
            "`score='synflow'` needs the network with linear activations, so "
            "it must be Sequential or Functional. Received: "
            f"{model.name!r} of {type(model)}. Take another score."
        )
    refused = {
        layer.name: type(layer).__name__
        for layer in _keras.all_layers(model)
        if isinstance(layer, NEVER_LINEAR)
    }
    if refused:
        raise ValueError(
            "`score='synflow'` needs the network with linear activations, and "
            f"there are layers that have none such. Received: {refused}. Take "
            "another score."
        )
    variables = {}

    def change(layer):
        if not isinstance(layer, layers.Layer):
            kind = type(layer)
            of_keras = kind.__module__.startswith("keras.")
            if of_keras and kind.__name__ in OPERATIONS:
                return layers.Identity(name=layer.name, autocast=False)
        if isinstance(layer, ACTIVATIONS):
            return layers.Identity(name=layer.name, dtype=layer.dtype_policy)
        config = layer.get_config()
        if config.get("activation") is not None:
            config["activation"] = "linear"
        return type(layer).from_config(config)

    def note(layer, new):
        if isinstance(layer, layers.Layer):
            pairs = zip(layer.variables, new.variables, strict=True)
            variables.update({id(old): v for old, v in pairs})

    copy = _models.clone(model, change, "prune_at_init", note)
    return as_functional(copy), variables


def _array(tensor):
    """In float64, for bfloat16 is half an array in NumPy."""
    return np.asarray(ops.convert_to_numpy(tensor)).astype("float64")
