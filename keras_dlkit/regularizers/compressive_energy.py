"""Compressive minimum hyperspherical energy, CoMHE (Lin et al., 2020)."""

from typing import Any

import keras

from keras_dlkit import _checks
from keras_dlkit import _keras
from keras_dlkit import _selection
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit.ops.compressive_energy import LIN_R
from keras_dlkit.ops.compressive_energy import compressive_energy
from keras_dlkit.ops.hyperspherical_energy import check_energy
from keras_dlkit.ops.hyperspherical_energy import hyperspherical_energy
from keras_dlkit.ops.hyperspherical_energy import kernel_rows
from keras_dlkit.regularizers.hyperspherical_energy import has_lora
from keras_dlkit.regularizers.hyperspherical_energy import kernel_in_effect
from keras_dlkit.regularizers.regularize import selected_kernels
from keras_dlkit.regularizers.weight_penalty import WeightPenalty


@cites(LIN_R)
@export
class CompressiveEnergy(WeightPenalty):
    r"""Adds the hyperspherical energy of randomly projected neurons (CoMHE).

    Each step draws \(m\) matrices \(P_k\) of standard normal numbers for each
    kernel, and adds

    $$\text{factor} \cdot \sum_{\text{kernels}} \frac{1}{m} \sum_{k = 1}^m
      E(P_k^T w_1, \dots, P_k^T w_n)$$

    with the energy of `HypersphericalEnergy`. In a space of some forty
    dimensions there is something to gain where in the thousands of the kernel
    all neurons are near right angles already; the paper reports more gain than
    from the energy itself. Kernels of no more than `dimension` weights a
    neuron are taken as they are.

    It is a part of `attach`, not a regularizer: new projections in every step
    need a random state, which the model must own.

    Args:
        factor: Float, at least 0. Defaults to `1.0`, the authors'.
        dimension: Integer, at least 2. The columns of a projection. Defaults
            to `40`.
        projections: Integer, at least 1. \(m\). Defaults to `20`.
        power: As in `HypersphericalEnergy`.
        half_space: As in `HypersphericalEnergy`.
        angular: As in `HypersphericalEnergy`.
        include: `None`, or a regular expression searched in `variable.path`,
            as in `regularize`. The authors leave the output layer to a
            full-space `HypersphericalEnergy`.
        exclude: As `include`, of the kernels to leave out.
        seed: Integer, or `None` for a random one.
        name: String. The name of the layer.

    State: layer weights, the random seed; not trainable.
    Runs: in training, once a pass and kernel; not for kernels that are frozen,
        and not in evaluation. Under LoRA it is the kernel in effect.
    Cost: `projections` small matrix products a kernel, and as many matrices of
        `n x n` cosines in memory.

    With few dimensions two projected neurons can come very close, and a power
    of 2 then kicks hard: lower the power, or clip gradients.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range and
            patterns that are none; where no kernel is left, in `attach` and
            `compile`, or in the first step of a model that is not built.

    Once the model is built the kernels are chosen, and stay so until the next
    `compile`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    net = keras.Sequential(
        [keras.Input((256,)), keras.layers.Dense(16), keras.layers.Dense(3)]
    )
    part = dlkit.regularizers.CompressiveEnergy(0.1, projections=4)
    model = dlkit.attach(net, part)
    model.compile("sgd", "mse")
    ```

    References:
        - [Lin et al., 2020](https://arxiv.org/abs/1906.04892)
    """

    def __init__(
        self,
        factor: float = 1.0,
        *,
        dimension: int = 40,
        projections: int = 20,
        power: int = 2,
        half_space: bool = True,
        angular: bool = False,
        include: str | None = None,
        exclude: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.factor = _checks.check_number("factor", factor, at_least=0)
        self.dimension = _checks.check_count("dimension", dimension, at_least=2)
        self.projections = _checks.check_count(
            "projections", projections, at_least=1
        )
        check_energy(power, half_space, angular)
        self.settings: dict[str, Any] = {
            "power": power,
            "half_space": bool(half_space),
            "angular": bool(angular),
        }
        _selection.check_patterns(include, exclude)
        self.include, self.exclude = include, exclude
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def check_model(self, model):
        vars(self).pop("_chosen", None)
        if model.built:
            self._kernels(model)

    def penalty(self, model):
        if self.factor == 0:
            return keras.ops.zeros(())
        energies = [
            self._projected_energy(_value(k), k.axis)
            for k in self._kernels(model)
            if _is_trained(k)
        ]
        if not energies:
            return keras.ops.zeros(())
        return self.factor * keras.ops.sum(keras.ops.stack(energies))

    def energies(self, model: keras.Model) -> dict[str, Any]:
        """The energy of each kernel without projection, by its path."""
        return {
            k.path: hyperspherical_energy(
                _value(k), axis=k.axis, **self.settings
            )
            for k in self._kernels(model)
            if _is_trained(k)
        }

    def _kernels(self, model):
        """Those of the model that are chosen, looked for once it is built."""
        known, kernels = vars(self).get("_chosen", (None, None))
        if known is not model:
            kernels = selected_kernels(model, self.include, self.exclude)
            if _keras.is_built_throughout(model):
                # Past `__setattr__`, which would make the model a part of it.
                vars(self)["_chosen"] = model, kernels
        return kernels

    def _projected_energy(self, value, axis):
        weights = kernel_rows(value, axis).shape[1]
        if weights <= self.dimension:
            return hyperspherical_energy(value, axis=axis, **self.settings)
        matrices = keras.random.normal(
            (self.projections, weights, self.dimension),
            dtype="float32",
            seed=self.seed_generator,
        )
        return compressive_energy(value, matrices, axis=axis, **self.settings)

    def get_config(self):
        return {
            **super().get_config(),
            "factor": self.factor,
            "dimension": self.dimension,
            "projections": self.projections,
            **self.settings,
            "include": self.include,
            "exclude": self.exclude,
            "seed": self.seed,
        }


def _value(kernel):
    return keras.ops.convert_to_tensor(
        kernel_in_effect(kernel.layer)
        if _is_adapted(kernel)
        else kernel.variable
    )


def _is_adapted(kernel):
    """Whether LoRA trains two factors in its place."""
    return has_lora(kernel.layer) and kernel.name in ("kernel", "embeddings")


def _is_trained(kernel):
    if kernel.variable is None:  # not built
        return False
    if _is_adapted(kernel):
        return kernel.layer.trainable
    return kernel.variable.trainable
