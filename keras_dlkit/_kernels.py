"""Which weights of a layer or a model are kernels: what pruning is about."""

import math
import re

import keras

TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


# By the last word of their names: what shifts or scales is no kernel, of
# however many dimensions (those of attention and recurrent layers have two).
NEVER = re.compile(r"(^|_)(bias|biases|gamma|beta|alpha|scale)$|^lora_")


def is_kernel(variable):
    return (
        len(variable.shape) >= 2
        and not NEVER.search(variable.name)
        and "float" in keras.backend.standardize_dtype(variable.dtype)
    )


def kernels_of(layer):
    """The kernels of a layer and of the layers inside of it, each once."""
    return [v for v in layer.weights if is_kernel(v)]


def is_matrix(layer, kernel):
    """Whether the last axis is that of the outputs, and all others inputs."""
    if isinstance(layer, keras.layers.EinsumDense):
        _, outputs = einsum_axes(layer)
        return outputs == [len(kernel.shape) - 1]
    return not (
        kernel.name == "embeddings"
        or isinstance(layer, TRANSPOSED)
        or _is_depthwise(layer, kernel)
    )


def _is_depthwise(layer, kernel):
    return kernel.name.startswith("depthwise") or isinstance(
        layer,
        (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    )


def einsum_axes(layer):
    """The axes of the kernel that are summed over, and the others."""
    axes, output = layer.equation.split(",")[1].split("->")
    outputs = [i for i, axis in enumerate(axes) if axis in output]
    return [i for i in range(len(axes)) if i not in outputs], outputs


def fan_in(layer, kernel):
    """How many products are summed for one output of a kernel."""
    shape = tuple(kernel.shape)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, _ = einsum_axes(layer)
        return math.prod(shape[i] for i in inputs)
    if kernel.name == "embeddings":
        return shape[-1]
    if _is_depthwise(layer, kernel):
        return math.prod(shape[:-2])
    if isinstance(layer, TRANSPOSED):
        return math.prod(shape[:-2]) * shape[-1]
    return math.prod(shape[:-1])
