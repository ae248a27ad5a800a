"""`EinsumDense` for the members of an ensemble."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlkit._export import export
from keras_dlkit.layers._members import FastLayer
from keras_dlkit.ops.batch_ensemble import aligned
from keras_dlkit.ops.batch_ensemble import per_member


@export
class EinsumDenseBatchEnsemble(FastLayer, keras.layers.EinsumDense):
    r"""An `EinsumDense` with a version for each member of an ensemble.

    Member \(m\) sees the kernel times \(r_m\), with an entry for each of its
    inputs, and times \(s_m\), with one for each of its outputs. The inputs
    are the axes of the kernel that the inputs of the layer have, the outputs
    those that its outputs have; an axis that both have is in both.

    Args:
        equation: String. As of `keras.layers.EinsumDense`. The rows are its
            first axis, before and after.
        output_shape: Integer or tuple of integers.
        ensemble_size: Integer, at least 1. The number of members.
        **kwargs: `rank`, `fast_initializer`, `fast_learning_rate` and `seed`
            as of `keras_dlkit.layers.DenseBatchEnsemble`, and those of
            `keras.layers.EinsumDense`.

    Call arguments:
        inputs: Tensor of shape `(ensemble_size * rows, ...)`.

    State: layer weights: `kernel`, shared; `input_scale` and `output_scale` of
        shape `(ensemble_size, rank, ...)` and `bias` of shape
        `(ensemble_size, ...)`.
    Runs: in every forward pass.
    Cost: two products and a sum with a row a member; `rank` times the plain
        layer's.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range and
            for an equation whose first axis is not that of the rows; when
            called, for rows that are no multiple of `ensemble_size`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    layer = dlkit.layers.EinsumDenseBatchEnsemble(
        "abc,cd->abd", (None, 4), ensemble_size=2, bias_axes="d"
    )
    layer(keras.ops.ones((2 * 3, 5, 6))).shape  # (6, 5, 4)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
    """

    plain = keras.layers.EinsumDense
    kernels = {"kernel": ""}

    def __init__(
        self,
        equation: str,
        output_shape: int | tuple[int | None, ...],
        ensemble_size: int,
        **kwargs: Any,
    ):
        super().__init__(
            equation, output_shape, ensemble_size=ensemble_size, **kwargs
        )
        inputs, kernel, outputs = self._letters()
        first = inputs[:1]
        if (
            first != outputs[:1]
            or first in kernel
            or first in (self.bias_axes or "")
        ):
            raise ValueError(
                "The first axis of `equation` must be that of the rows, in "
                "the inputs and the outputs alone. Received: "
                f"equation={equation!r}, bias_axes={self.bias_axes!r}"
            )

    def build(self, input_shape):
        inputs, kernel, outputs = self._letters()
        super().build(input_shape)
        output_shape = self.compute_output_shape(input_shape)
        self._input_axes = _axes(inputs, kernel, len(input_shape))
        self._output_axes = _axes(outputs, kernel, len(output_shape))
        self.add_scales(
            "kernel",
            [input_shape[axis] for axis in self._input_axes],
            [output_shape[axis] for axis in self._output_axes],
        )

    def call(self, inputs):
        outputs = self.scaled(
            inputs,
            lambda x: ops.einsum(self.equation, x, self.kernel),
            input_axes=self._input_axes,
            output_axes=self._output_axes,
        )
        if self.bias is not None:
            outputs = per_member(outputs, self._shifted, self.ensemble_size)
        return self.activated(outputs)

    def _shifted(self, outputs):
        bias = self.biases()
        rank = len(outputs.shape) - 1
        axes = range(rank - len(bias.shape) + 1, rank)
        return outputs + aligned(bias, list(axes), rank)

    def _letters(self):
        """Of inputs, kernel and outputs; a dot stands for the ellipsis."""
        factors, outputs = self.equation.replace("...", ".").split("->")
        return *factors.split(","), outputs

    def kernel_factor(self, name, r, s):
        inputs, kernel, outputs = self._letters()
        # No more than 25 of them: `z` is the axis of the terms.
        names = dict(zip(kernel, "abcdefghijklmnopqrstuvwxy"))
        r_axes, s_axes, axes = (
            "".join(names[a] for a in letters if a in names)
            for letters in (inputs, outputs, kernel)
        )
        return np.einsum(f"z{r_axes},z{s_axes}->{axes}", r, s)


def _axes(letters, kernel, rank):
    """The axes, in a tensor of that rank, that the kernel has too."""
    before, dots, after = letters.partition(".")
    places = {a: i for i, a in enumerate(before)}
    start = rank - len(after)
    places.update((a, start + i) for i, a in enumerate(after))
    return tuple(sorted(places[a] for a in places if a in kernel))
