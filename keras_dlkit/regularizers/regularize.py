"""Regularizers on the kernels of a model that is there already."""

import dataclasses
import math
import re
import warnings

import keras
from keras import layers

from keras_dlkit import _keras
from keras_dlkit import _selection
from keras_dlkit.regularizers.hyperspherical_energy import HypersphericalEnergy
from keras_dlkit.regularizers.sum import Sum

# The attribute of a layer that holds a regularizer, and the weights it is for.
# Scales and shifts (bias, beta, gamma, alpha) have no neurons.
KERNELS = {
    "kernel_regularizer": ("kernel",),
    "recurrent_regularizer": ("recurrent_kernel",),
    "depthwise_regularizer": ("depthwise_kernel", "kernel"),
    "pointwise_regularizer": ("pointwise_kernel",),
    "embeddings_regularizer": ("embeddings", "reverse_embeddings"),
}
# The neuron axis, where it is not the last.
TRANSPOSED = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)
# Keras has one for their sum.
NORMS = (
    keras.regularizers.L1,
    keras.regularizers.L2,
    keras.regularizers.L1L2,
)
# They share a regularizer between projections whose axes differ.
ATTENTION = (layers.MultiHeadAttention, layers.GroupQueryAttention)


def regularize(
    model: keras.Model,
    regularizer: HypersphericalEnergy,
    *,
    include: str | None = None,
    exclude: str | None = None,
) -> dict[str, HypersphericalEnergy]:
    """Puts a regularizer on the kernels of a built model.

    Every layer of `keras.layers` that has kernels is known, its subclasses
    and those inside of other layers too, and each kernel gets the regularizer
    with the neuron axis that is right for it. What it had, as an L2, stays
    beside it; an energy of an earlier call is replaced. Kernels with a single
    weight a neuron, and quantized ones, are left out. Kernels of layers that
    are not Keras's are not known: give these the regularizer by
    `layer.weight.regularizer = HypersphericalEnergy(axis=...)`.

    Args:
        model: `keras.Model`, built, or what `keras_dlkit.attach` returned.
        regularizer: `HypersphericalEnergy`. Its own `axis` is not used.
        include: `None` (every kernel), or a regular expression that is
            searched in `variable.path`. (A layer that is not built yet has no
            path: the name of the layer and of the weight stand for it.)
        exclude: `None`, or a regular expression. What it finds is left out.

    Returns:
        Dictionary of the regularizers set, by the path of the kernel.

    Raises:
        TypeError, ValueError: For another kind of regularizer, a model that is
            not built, and patterns that match no kernel.

    State: none.
    Runs: once, before `fit`; frozen kernels count as soon as they are
        trainable.
    Cost: that of the regularizer.

    Call it after `enable_lora` or before: the energy is that of the kernel in
    effect. The regularizers are saved with the model, in the configuration of
    its layers. Where a model is saved without that, as are subclassed models
    and the backbones of KerasHub, or with LoRA, or with a part of the
    projections of an attention layer, or with other settings for some of
    them, call `regularize` again after loading.

    Give the model that is trained: where it is a part of another that was
    compiled and trained already, that one goes on with what it had.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    net = keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=10)
    energy = dlkit.regularizers.HypersphericalEnergy(0.1)
    dlkit.regularizers.regularize(net, energy, exclude="predictions")
    output = dlkit.regularizers.HypersphericalEnergy(1.0, half_space=False)
    dlkit.regularizers.regularize(net, output, include="predictions")
    net.compile("sgd", "sparse_categorical_crossentropy")
    ```
    """
    _check(model, regularizer)
    chosen = {
        kernel.path: _set(kernel, regularizer)
        for kernel in selected_kernels(model, include, exclude)
    }
    for layer in _keras.all_layers(model):
        if isinstance(layer, ATTENTION):
            _share(layer, chosen)
    _forget_functions(model)
    return chosen


def strip_energies(model):
    """Takes every `HypersphericalEnergy` off again, and leaves the others.

    In the terms of Keras, where it has any: a `Sum` of others becomes one.
    """
    owners = [
        (layer, attribute)
        for layer in _keras.all_layers(model)
        for attribute in vars(layer)
        if attribute.endswith("_regularizer")
    ]
    owners += [(variable, "regularizer") for variable in model.variables]
    left = []
    for owner, attribute in owners:
        before = getattr(owner, attribute)
        rest = _plain(_others(before))
        if isinstance(before, Sum) or find_energy(before):
            setattr(owner, attribute, rest)
        if isinstance(rest, Sum):
            left.append(f"{owner.name}.{attribute}")
    if left:
        warnings.warn(
            "Keras has no regularizer for these sums, and `keras_dlkit` is "
            f"needed to load the model: {left[:20]}. Give these layers one "
            "regularizer of Keras each.",
            stacklevel=3,
        )
    _forget_functions(model)


def _check(model, regularizer):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a `keras.Model`. "
            f"Received: model={model!r} of type {type(model)}"
        )
    if not isinstance(regularizer, HypersphericalEnergy):
        raise TypeError(
            "`regularizer` must be a `HypersphericalEnergy`. Received: "
            f"regularizer={regularizer!r} of type {type(regularizer)}"
        )
    if not model.built:
        raise ValueError(
            "`regularize` needs the layers of the model: call the model on a "
            "batch first, or `model.build(shape)`. Received: the model "
            f"{model.name!r}, which is not built"
        )
    for layer in _keras.all_layers(model):
        if isinstance(layer, ATTENTION) and not layer.built:
            raise ValueError(
                "`regularize` needs the projections of attention layers: call "
                f"the model on a batch first. Received: {layer.name!r}, which "
                "is not built"
            )


@dataclasses.dataclass
class Kernel:
    layer: keras.layers.Layer
    attribute: str
    name: str
    # `None` if the layer is not built.
    variable: keras.Variable | None = None

    @property
    def path(self):
        if self.variable is None:
            return f"{self.layer.name}/{self.name}"
        return self.variable.path

    @property
    def axis(self):
        if isinstance(self.layer, layers.EinsumDense):
            _, kernel, output = re.split(",|->", self.layer.equation)
            return tuple(i for i, a in enumerate(kernel) if a in output)
        if self.name == "embeddings":
            return 0
        if self.attribute == "depthwise_regularizer":
            return (-2, -1)
        return -2 if isinstance(self.layer, TRANSPOSED) else -1

    @property
    def has_neurons(self):
        """Whether there are neuron axes, and several weights beside them."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        neurons = math.prod(self.variable.shape[axis] for axis in axes)
        return len(axes) > 0 and math.prod(self.variable.shape) > neurons


def _kernels(layer):
    """The kernels that are the layer's own."""
    if isinstance(layer, ATTENTION):  # those of its projections
        return
    own = {v.name: v for v in layer.weights if "float" in v.dtype}
    for attribute, names in KERNELS.items():
        if attribute not in vars(layer):  # of a property the cell has it
            continue
        if not layer.built:
            yield Kernel(layer, attribute, names[0])
        for name in names:
            kernel = Kernel(layer, attribute, name, own.get(name))
            if name in own and kernel.has_neurons:
                yield kernel


def selected_kernels(model, include, exclude):
    """The kernels that two regular expressions leave, at least one."""
    kernels = [k for la in _keras.all_layers(model) for k in _kernels(la)]
    paths = [owner.path for owner in (*kernels, *model.variables)]
    _selection.check_patterns(include, exclude, paths)
    return _selection.select_kernels(kernels, include, exclude)


def _set(kernel, regularizer):
    """Puts a copy of the regularizer on the kernel, and returns it."""
    layer, variable = kernel.layer, kernel.variable
    ours = regularizer.of_layer(layer, kernel.axis)
    if kernel.name != "reverse_embeddings":  # Keras has no place for it
        _replace(layer, kernel.attribute, ours)
    if variable is None:
        return ours
    _replace(variable, "regularizer", ours)
    if getattr(layer, "lora_enabled", False):
        for factor in layer.weights:
            if factor.name.startswith(f"lora_{kernel.name}_"):
                _replace(factor, "regularizer", ours)
    return ours


def _replace(owner, attribute, ours=None):
    """Takes the energies out of an attribute, and puts `ours` there."""
    before = getattr(owner, attribute)
    rest = _others(before) + ([] if ours is None else [ours])
    if rest != _parts(before):
        setattr(owner, attribute, _one_of(rest))


def _share(attention, chosen):
    """Gives an attention layer what it is to make its projections of.

    One regularizer for all, that tells them apart by their shapes; none where
    that cannot say it: one of two alike, or settings that differ.
    """
    inner = _keras.all_layers(attention)
    kernels = [kernel for layer in inner for kernel in _kernels(layer)]
    if not any(kernel.path in chosen for kernel in kernels):
        return
    axes, found = {}, []
    for kernel in kernels:
        energy = find_energy(kernel.variable.regularizer)
        axis = energy.axis_of(kernel.variable) if energy else None
        axes.setdefault(tuple(kernel.variable.shape), set()).add(axis)
        if axis is not None:
            found.append(energy)
    settings = [{**energy.get_config(), "axis": None} for energy in found]
    ours = None
    if all(len(a) == 1 for a in axes.values()) and all(
        other == settings[0] for other in settings
    ):
        table = {shape: axis for shape, (axis,) in axes.items() if axis}
        ours = found[0].of_layer(None, table)
    for attribute in vars(attention):
        if attribute.lstrip("_") == "kernel_regularizer":
            _replace(attention, attribute, ours)


def find_energy(regularizer):
    """The energy among the regularizers in one, or `None`."""
    for part in _parts(regularizer):
        if isinstance(part, HypersphericalEnergy):
            return part


def _parts(regularizer):
    """What a regularizer adds up, those of a `Sum` in a `Sum` too."""
    if isinstance(regularizer, Sum):
        return [p for part in regularizer.regularizers for p in _parts(part)]
    return [] if regularizer is None else [regularizer]


def _others(regularizer):
    parts = _parts(regularizer)
    return [p for p in parts if not isinstance(p, HypersphericalEnergy)]


def _one_of(regularizers):
    if len(regularizers) > 1:
        return Sum(regularizers)
    return regularizers[0] if regularizers else None


def _plain(regularizers):
    """One of Keras's, if these are of those that Keras can add up."""
    if len(regularizers) < 2 or any(type(r) not in NORMS for r in regularizers):
        return _one_of(regularizers)
    configs = [r.get_config() for r in regularizers]
    return keras.regularizers.L1L2(
        *(sum(c.get(name, 0.0) for c in configs) for name in ("l1", "l2"))
    )


def _forget_functions(model):
    """What was compiled before has the losses of before."""
    model.train_function = None
    model.test_function = None
