"""Supermasks by edge-popup (Ramanujan et al., 2019).

A network of random weights that are never trained: what is learned is which of
them to keep.
"""

import random
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlkit import _checks
from keras_dlkit import _keras
from keras_dlkit._export import export
from keras_dlkit._kernels import fan_in
from keras_dlkit._kernels import kernels_of
from keras_dlkit._papers import cites
from keras_dlkit.ops.score_mask import RAMANUJAN
from keras_dlkit.ops.score_mask import check_sparsity
from keras_dlkit.ops.score_mask import score_mask

WEIGHTS = ("signed_constant", "kaiming_normal", None)


@cites(RAMANUJAN)
@export
class Supermask(keras.layers.Wrapper):
    r"""Freezes a layer's weights and learns which of them to keep.

    Each weight \(w\) of a kernel has a score \(s\). The kernel that the layer
    sees is

    $$\tilde w = w \cdot m + w \cdot (|s| - \operatorname{stop}(|s|)),
      \qquad m = 1 \text{ where } |s| \text{ is among the largest}$$

    so that forward it is \(w m\), and backward the scores of all weights get
    \(w \cdot \partial L / \partial \tilde w \cdot \operatorname{sign}(s)\),
    as if the mask were not there (straight-through). Exactly
    `round(sparsity * n)` of the `n` weights of a kernel are masked, and one at
    least is not; among equal scores the lowest flat index goes first.

    The weights stay as they were drawn, biases stay zero. A layer with several
    kernels (`SeparableConv2D`, `LSTM`) gets scores for each.

    Args:
        layer: `keras.layers.Layer` with a kernel, of one input. It may be
            built. What it learns by itself is frozen.
        sparsity: Float in `[0, 1)`. The share of the weights that are masked;
            the authors find 0.3 to 0.7 best. 0 is the random layer as it is.
            Defaults to `0.5`.
        weights: `"signed_constant"` (plus or minus the standard deviation of
            Kaiming's initialization: the best in the paper),
            `"kaiming_normal"`, or `None`: the weights and biases that the
            layer has, for a mask on a trained layer. Defaults to
            `"signed_constant"`.
        rescale: Boolean. Divides the drawn weights by the square root of the
            share that is kept, so that the outputs have the variance that
            they would have without the mask. Defaults to `True`.
        seed: Integer, or `None` for a random one. The same seed gives the same
            weights and first scores on every backend.
        **kwargs: Those of `keras.layers.Layer`. The dtype policy is by default
            that of `layer`.

    Call arguments:
        inputs: What the layer takes.
        training: Passed on by Keras.

    State: layer weights: the scores, float32 whatever the policy, trainable;
        the weights of the layer, not trainable.
    Runs: in every forward pass: the mask is found anew from the scores.
    Cost: 31 counts over the scores of each kernel in a pass; memory for the
        scores, and for their slots in the optimizer instead of the weights'.
        No kernel gets faster by its mask.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range; when
            built, for a layer without a kernel.

    `masks()` gives the masks, `keras_dlkit.sparsity.strip` a plain Keras model
    with the masks multiplied in, `keras_dlkit.sparsity.supermask` wraps all
    layers of a model. Take an optimizer with momentum and a rate as for
    weights; weight decay acts on the scores.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    model = keras.Sequential(
        [
            keras.Input((4,)),
            dlkit.layers.Supermask(keras.layers.Dense(16, "relu")),
            dlkit.layers.Supermask(keras.layers.Dense(3), sparsity=0.3),
        ]
    )
    len(model.trainable_weights)  # 2: the scores
    ```

    References:
        - [Ramanujan et al., 2019](https://arxiv.org/abs/1911.13299)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        sparsity: float = 0.5,
        weights: str | None = "signed_constant",
        rescale: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ):
        _check_layer(layer)
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        self.sparsity = check_sparsity(sparsity)
        self.initial_weights = _checks.check_one_of("weights", weights, WEIGHTS)
        self.rescale = bool(rescale)
        if seed is not None:
            seed = _checks.check_count("seed", seed, at_least=0)
        self.seed = seed
        self.supports_masking = True
        self.scores: list = []

    def build(self, input_shape=None):
        super().build(input_shape)
        if not self.kernels:
            raise ValueError(
                "`layer` must have a kernel: a floating-point weight of rank 2 "
                "or more that by its name is no bias and no scale. "
                f"Received: layer={self.layer.name!r} with the "
                f"weights {[w.name for w in self.layer.weights]}"
            )
        seed = random.randint(1, 10**9) if self.seed is None else self.seed
        if self.initial_weights is not None:
            self._draw_weights(seed)
        for index, kernel in enumerate(self.kernels):
            bound = fan_in(self.layer, kernel) ** -0.5
            self.scores.append(
                self.add_weight(
                    shape=kernel.shape,
                    initializer=_Draw([seed, index, 1], "uniform", bound),
                    dtype="float32",
                    autocast=False,
                    name=f"{kernel.name}_scores",
                )
            )
        self._freeze()

    @property
    def kernels(self) -> list[keras.Variable]:
        """The kernels that are masked, as the layer holds them."""
        return kernels_of(self.layer)

    def _draw_weights(self, seed):
        kept = 1 - self.sparsity if self.rescale else 1.0
        kernels = {id(kernel): i for i, kernel in enumerate(self.kernels)}
        for weight in self.layer.weights:
            index = kernels.get(id(weight))
            if index is not None:
                scale = (2 / fan_in(self.layer, weight) / kept) ** 0.5
                draw = _Draw([seed, index, 0], self.initial_weights, scale)
                _keras.set_initial_value(weight, draw)
            elif weight.name.endswith("bias"):
                _keras.set_initial_value(weight, _zeros)

    def call(self, inputs, training=None):
        # Keras hands `training` on, and the mask is on the inputs.
        kernels = {
            id(kernel): self._masked(kernel, scores)
            for kernel, scores in zip(self.kernels, self.scores)
        }
        # All of them: in a scope within a scope the others are not seen.
        mapping = [
            (v, kernels.get(id(v), v.value)) for v in self.layer.variables
        ]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(v) for v, _ in mapping]
            outputs = self.layer(inputs)
        for (variable, _), value in zip(mapping, before):
            after = scope.get_current_value(variable)
            if after is not value:  # the state of a random generator
                variable.assign(after)
        for loss in scope.losses:
            self.add_loss(1.0 * loss)  # another tensor: Keras counts by id
        return outputs

    def _masked(self, kernel, scores):
        weights, scores = kernel.value, scores.value
        magnitude = ops.abs(scores)
        through = magnitude - ops.stop_gradient(magnitude)
        mask = score_mask(scores, self.sparsity)
        return weights * ops.cast(mask, weights.dtype) + weights * ops.cast(
            through, weights.dtype
        )

    def masks(self) -> dict[str, np.ndarray]:
        """The masks as they are now: `{path of the kernel: uint8 array}`."""
        return {
            kernel.path: ops.convert_to_numpy(
                score_mask(scores.value, self.sparsity)
            ).astype("uint8")
            for kernel, scores in zip(self.kernels, self.scores)
        }

    @property
    def trainable(self) -> bool:
        """Whether the scores are trained; the layer itself never is."""
        return keras.layers.Wrapper.trainable.fget(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Wrapper.trainable.fset(self, value)
        self._freeze()

    def _freeze(self):
        self.layer.trainable = False

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "sparsity": self.sparsity,
            "weights": self.initial_weights,
            "rescale": self.rescale,
            "seed": self.seed,
        }


class _Draw:
    """An initializer that gives the same on every backend."""

    def __init__(self, seed, kind, scale):
        self.seed, self.kind, self.scale = seed, kind, scale

    def __call__(self, shape, dtype=None):
        rng = np.random.default_rng(self.seed)
        if self.kind == "uniform":
            values = rng.uniform(-1.0, 1.0, shape)
        elif self.kind == "kaiming_normal":
            values = rng.standard_normal(shape)
        else:
            values = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
        return ops.convert_to_tensor(values * self.scale, dtype=dtype)


def _zeros(shape, dtype=None):
    return ops.zeros(shape, dtype=dtype)


def _check_layer(layer):
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(
            "`layer` must be a `keras.layers.Layer`. "
            f"Received: layer={layer!r} of type {type(layer)}"
        )
    if isinstance(layer, (keras.Model, Supermask)):
        raise ValueError(
            "`layer` must be a layer that is neither a model nor a "
            "`Supermask`: use `keras_dlkit.sparsity.supermask` for a model. "
            f"Received: layer={layer.name!r} of type {type(layer)}"
        )
