"""Minimum hyperspherical energy (Liu et al., 2018).

The neurons of a layer, taken as directions, are charges on a sphere: their
energy is added to the loss, so that they spread out and say different things.
"""

from typing import Any

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit.ops.hyperspherical_energy import LIU_W
from keras_dlkit.ops.hyperspherical_energy import check_energy
from keras_dlkit.ops.hyperspherical_energy import hyperspherical_energy


@cites(LIU_W)
@export
class HypersphericalEnergy(keras.Regularizer):
    r"""Adds the hyperspherical energy of a kernel's neurons to the loss.

    With \(u_i\) the direction of the weights of neuron \(i\), the mean over
    the pairs of neurons

    $$\text{factor} \cdot
      \operatorname{mean}_{i < j} \lVert u_i - u_j \rVert^{-s}$$

    (\(\log \lVert u_i - u_j \rVert^{-1}\) for \(s = 0\)), which is small when
    the neurons point in different directions. It does not see their lengths:
    give weight decay besides, with `keras_dlkit.regularizers.Sum` or in the
    optimizer. Use it where units are many for the space they are in:
    classifiers, embeddings, the first layers of a network. In layers of a
    thousand inputs random neurons are near right angles already, and little
    is left to gain.

    A regularizer sees the kernel alone. `axis` is right for `Dense`, `Conv1D`
    to `Conv3D` and recurrent layers as it is; else give it, or have
    `keras_dlkit.regularizers.regularize` set the regularizers of a whole
    model, which knows the layers:

    | kernel of | `axis` |
    |---|---|
    | `Dense`, `Conv`, recurrent layers, pointwise of `SeparableConv` | `-1` |
    | `ConvTranspose` | `-2` |
    | `DepthwiseConv`, depthwise of `SeparableConv` | `(-2, -1)` |
    | `Embedding` | `0` |
    | `EinsumDense` | the axes that are in the output, too |
    | `MultiHeadAttention` | `(-2, -1)` and `-1`: use `regularize` |

    Args:
        factor: Float, at least 0. 0 changes nothing, bit for bit. The authors
            take 1, and for the output layer 10 with `half_space=False`; with
            `angular` and a power of 1 or 2 a tenth of it. Defaults to `1.0`.
        power: `0`, `1` or `2`, the \(s\) of the formula. Defaults to `2`.
        half_space: Boolean. A neuron also keeps away from the negatives of
            the others: the directions spread over a half of the sphere.
            Good for hidden layers; for an output layer, whose neurons may
            well be opposite, take `False`.
        angular: Boolean. The angle over \(\pi\) is the distance.
        axis: Integer or tuple of integers, the axes of the kernel that count
            the neurons; or a dictionary of these by the shape of the kernel,
            for a layer with several kernels: those of other shapes stay out.
        epsilon: Float, at least 0, added to the squared length of a neuron.
            The gradient grows as the inverse of the length: with `1e-4`, as
            in the authors' code, neurons that have died out get no kick.
        block_size: `None`, or an integer, at least 1. The rows of the matrix
            of cosines that are in memory at a time; `None` for some 500.

    State: none.
    Runs: in every training and evaluation step, once a kernel; not for
        kernels that are frozen.
    Cost: for a kernel of `n` neurons with `d` weights some `n * n * d`
        multiplications forward and twice that backward, whatever the batch
        size, and `n * block_size` numbers in memory.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range;
            when called, for a kernel that does not have these axes.

    The energy is computed in float32 whatever the dtype policy, and is finite
    with finite gradients for every finite kernel. Hardware that multiplies
    float32 matrices in a lower precision by default (TF32) does so here too.
    A layer with a single neuron has an energy of 0, and one whose neurons have
    a single weight each.

    Under LoRA, `regularize` makes it the energy of the kernel in effect; of one
    that is quantized there is none, for its factors are small beside it.
    Given as `kernel_regularizer=` alone, Keras applies it to the two factors,
    where it has no such meaning: call `regularize` after `enable_lora`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    keras.layers.Dense(
        8, kernel_regularizer=dlkit.regularizers.HypersphericalEnergy(0.1)
    )
    keras.layers.DepthwiseConv2D(
        3,
        depthwise_regularizer=dlkit.regularizers.HypersphericalEnergy(
            0.1, axis=(-2, -1)
        ),
    )
    ```

    References:
        - [Liu et al., 2018](https://arxiv.org/abs/1805.09298)
    """

    def __init__(
        self,
        factor: float = 1.0,
        *,
        power: int = 2,
        half_space: bool = True,
        angular: bool = False,
        axis: int | tuple[int, ...] | dict[tuple[int, ...], int | tuple] = -1,
        epsilon: float = 0.0,
        block_size: int | None = None,
    ):
        self.factor = _checks.check_number("factor", factor, at_least=0)
        self.axis = _standardized_axis(axis)
        axes = list(self.axis.values()) if self._is_table() else [self.axis]
        if not axes or () in axes:
            raise ValueError(
                "`axis` must name one axis or more, or be a dictionary of "
                f"such axes by shapes. Received: axis={axis}"
            )
        for entry in axes:
            check_energy(power, half_space, angular, entry, epsilon, block_size)
        self.power = power
        self.half_space = bool(half_space)
        self.angular = bool(angular)
        self.epsilon = float(epsilon)
        self.block_size = block_size
        # What `regularize` knows, and a file does not.
        self._layer = None

    def __call__(self, x):
        energy = None if self.factor == 0 else self.energy(x)
        return ops.zeros(()) if energy is None else self.factor * energy

    def energy(self, x: Any) -> Any:
        """The energy without the factor; `None` where it stays out."""
        kernel = self._kernel_in_effect(x)
        axis = None if kernel is None else self.axis_of(kernel)
        if axis is None:
            return None
        return hyperspherical_energy(
            kernel,
            power=self.power,
            half_space=self.half_space,
            angular=self.angular,
            axis=axis,
            epsilon=self.epsilon,
            block_size=self.block_size,
        )

    def of_layer(self, layer: keras.Layer, axis: Any) -> Any:
        """A copy of it for the kernel of `layer`."""
        copy = type(self).from_config({**self.get_config(), "axis": axis})
        copy._layer = layer
        return copy

    def _kernel_in_effect(self, x):
        """`x`, but for a factor of LoRA: the kernel, for one of the two."""
        if self._layer is None or not has_lora(self._layer):
            return x
        _, first, second = _lora_parts(self._layer)
        shapes = [tuple(factor.shape) for factor in (first, second)]
        if tuple(x.shape) not in shapes:
            return x  # another kernel of the layer
        is_second = tuple(x.shape) == shapes[1]
        if shapes[0] == shapes[1]:  # a traced step has the value instead
            is_second = x is second or x is second.value
        return kernel_in_effect(self._layer) if is_second else None

    def axis_of(self, kernel: Any) -> Any:
        """The neuron axes of this kernel; `None` where it stays out."""
        if self._is_table():
            return self.axis.get(tuple(kernel.shape))
        return self.axis

    def _is_table(self):
        return isinstance(self.axis, dict)

    def get_config(self):
        axis = self.axis
        if self._is_table():  # JSON has no tuples for keys
            axis = [[list(shape), _listed(a)] for shape, a in axis.items()]
        return {
            "factor": self.factor,
            "power": self.power,
            "half_space": self.half_space,
            "angular": self.angular,
            "axis": _listed(axis),
            "epsilon": self.epsilon,
            "block_size": self.block_size,
        }


def has_lora(layer):
    return getattr(layer, "lora_enabled", False)


def kernel_in_effect(layer):
    """The kernel under LoRA, in float32, where the layer's is rounded.

    `None` where it is quantized: Keras gives the codes, not the values.
    """
    kernel, first, second = _lora_parts(layer)
    if "float" not in kernel.dtype:
        return None
    scale = layer.lora_alpha / layer.lora_rank
    update = scale * ops.matmul(first, second)
    return ops.cast(kernel, update.dtype) + update


def _lora_parts(layer):
    embedding = isinstance(layer, keras.layers.Embedding)
    name = "embeddings" if embedding else "kernel"
    (kernel,) = (v for v in layer.weights if v.name == name)
    return (
        kernel,
        getattr(layer, f"lora_{name}_a"),
        getattr(layer, f"lora_{name}_b"),
    )


def _standardized_axis(axis):
    if isinstance(axis, (list, tuple)) and any(
        isinstance(entry, (list, tuple)) for entry in axis
    ):
        axis = {tuple(shape): entry for shape, entry in axis}
    if isinstance(axis, dict):
        return {
            tuple(shape): _standardized_axis(a) for shape, a in axis.items()
        }
    return tuple(axis) if isinstance(axis, list) else axis


def _listed(axis):
    return list(axis) if isinstance(axis, tuple) else axis
