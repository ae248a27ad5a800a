"""Sharpness-aware minimisation (Foret et al., 2021; Kwon et al., 2021).

Minimise the loss at the worst point near the weights, w + e, instead of at w:
the gradient of the batch gives e, the gradient of the same batch at w + e is
what the inner optimizer applies at w.
"""

from collections.abc import Callable

import keras

from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.ops.sam import FORET
from keras_dlkit.ops.sam import KWON
from keras_dlkit.optimizers.neighbourhood import Neighbourhood
from keras_dlkit.optimizers.two_gradient import TwoGradient

MUELLER = Paper(
    "Normalization Layers Are All That Sharpness-Aware Minimization Needs",
    "Maximilian Mueller and Tiffany Vlaar and David Rolnick and Matthias Hein",
    2023,
    "Advances in Neural Information Processing Systems",
    arxiv="2306.04226",
)


@cites(FORET)
@cites(KWON, when=lambda sam: sam.adaptive is not None)
@cites(MUELLER, when=lambda sam: sam._selection is not None)
@export
class SAM(Neighbourhood, TwoGradient):
    r"""Sharpness-aware minimisation around any optimizer.

    On each batch, with gradient \(g\) at the weights \(w\),

    $$e = \rho \, \frac{T^2 g}{\lVert T g \rVert_2 + 10^{-12}}, \qquad
      \text{inner optimizer gets } \nabla L(w + e) \text{ at } w$$

    with the norm over all perturbed weights together and \(T = 1\), or the
    size of the weights for `adaptive`. Use it to generalise better for twice
    the cost of a step, above all on noisy labels and where training
    accuracy reaches 100%.

    Both passes see the same batch, dropout mask and batch-normalisation
    statistics; regularisation losses and `add_loss` count in both. What is
    reported (loss, metrics) and what is kept (moving statistics, seeds) is the
    first pass. Where a layer writes its own weight in training, as
    `keras.layers.SpectralNormalization` does, the first gradient is Keras's
    own: on TensorFlow and PyTorch at what the layer wrote, on JAX through the
    writing. The second is taken through the writing on every backend. The
    weights are never written with \(w + e\): a checkpoint cannot hold it and a
    NaN in it cannot stay.
    Clipping, weight decay and accumulation are the inner optimizer's and act
    once, on what it applies.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`, or the name of one.
        rho: Float, at least 0, or a
            `keras.optimizers.schedules.LearningRateSchedule` of the number of
            updates. The radius. The number 0 is the inner optimizer, bit for
            bit. Good values: 0.05 to 0.2; with `adaptive="weights"` 0.5 to 2.
            Defaults to `0.05`.
        adaptive: `None`, `"weights"` or `"all"`. `"weights"` is ASAM as
            published: \(T = |w| + \eta\) on kernels, embeddings and scales,
            \(T = 1\) on `bias` and `beta`. `"all"` is the form popular in
            PyTorch: \(T = |w|\) on every weight, without \(\eta\).
        eta: Float, at least 0. \(\eta\) of `adaptive="weights"`.
        variables: `None` (every trainable weight), a regular expression
            searched in `variable.path`, or a function of a variable to bool
            (one that `keras.saving` knows, if the model is to be loaded).
            Only these are perturbed and counted in the norm; SAM-ON is
            `r"gamma|beta"`.
        every_steps: Integer, at least 1. SAM on updates `every_steps`,
            `2 * every_steps`, ...; the others are plain, at plain cost.
        start_step: Integer, at least 0. Updates up to this one are plain.
        micro_batches: Integer, at least 1. m-sharpness: so many parts of the
            batch, each with its own \(e\); their gradients are averaged,
            weighted by the size of the part. So are losses: one that sums over
            the batch (`reduction="sum"`) becomes the mean of the sums.
        name: String. The name of the optimizer.

    State: none of its own; the inner optimizer's variables.
    Runs: in the train step of `keras_dlkit.attach`, two gradients a step.
    Cost: a second forward and backward pass on SAM steps, one more copy of
        weights and gradients in memory; measured in `benchmarks/README.md`.
        With `every_steps` or `start_step` the host reads the count of updates,
        and waits for the step before: on PyTorch in each step, on JAX under
        `mixed_float16` and accumulation, where a step may be no update.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range; in
            `build`, for `variables` that match nothing, and for float8 layers.
        RuntimeError: In a `fit` that is not attached, which has no second
            gradient to give.
        AttributeError: Where a setting is changed once training began: a
            compiled step would not see it.

    Under pure `"bfloat16"` or `"float16"` (not mixed) weights \(w + e\) often
    rounds back to \(w\): use a mixed policy. Weights that reach the forward
    pass by another way than their `keras.Variable` (a `TorchModuleWrapper`, or
    a `tf.function` that a layer keeps: it is traced for the first pass alone)
    cannot be moved, and are refused.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = dlkit.attach(net)
    model.compile(
        optimizer=dlkit.optimizers.SAM(keras.optimizers.SGD(0.1), rho=0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(np.ones((8, 4)), np.arange(8) % 3, verbose=0)
    ```

    References:
        - [Foret et al., 2021](https://arxiv.org/abs/2010.01412)
        - [Kwon et al., 2021](https://arxiv.org/abs/2102.11600) (ASAM)
        - [Mueller et al., 2023](https://arxiv.org/abs/2306.04226) (SAM-ON)
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        *,
        adaptive: str | None = None,
        eta: float = 0.01,
        variables: str | Callable[[keras.Variable], bool] | None = None,
        every_steps: int = 1,
        start_step: int = 0,
        micro_batches: int = 1,
        name: str | None = None,
    ):
        super().__init__(
            inner_optimizer,
            rho,
            adaptive=adaptive,
            eta=eta,
            variables=variables,
            every_steps=every_steps,
            start_step=start_step,
            micro_batches=micro_batches,
            name=name,
        )

    def direction(self, gradients, weights, variables):
        return self.to_border(gradients, weights, variables)
