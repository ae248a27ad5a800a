"""The perturbation of sharpness-aware minimisation, as a pure function."""

from typing import Any

from keras import ops

from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit._train_step import lists
from keras_dlkit.ops._dtypes import as_dtype
from keras_dlkit.ops._dtypes import wide_dtype

EPSILON = 1e-12

FORET = Paper(
    "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    "Pierre Foret and Ariel Kleiner and Hossein Mobahi and Behnam Neyshabur",
    2021,
    "International Conference on Learning Representations",
    arxiv="2010.01412",
)
KWON = Paper(
    "ASAM: Adaptive Sharpness-Aware Minimization for "
    "Scale-Invariant Learning of Deep Neural Networks",
    "Jungmin Kwon and Jeongseop Kim and Hyunseo Park and In Kwon Choi",
    2021,
    "International Conference on Machine Learning",
    arxiv="2102.11600",
)


@cites(FORET, KWON)
def sam_perturbation(
    gradients: list, weights: list, rho: Any, *, scales: list | None = None
) -> list:
    r"""The step to the sharpest point near `weights`, for own training loops.

    With \(g\) the gradient, \(T\) the scales (1 where none are given) and the
    norm taken over all arrays together,

    $$e = \rho \, \frac{T^2 g}{\lVert T g \rVert_2 + 10^{-12}}$$

    With `scales=None` this is SAM (Foret et al.); with
    \(T = |w| + \eta\) it is adaptive SAM (Kwon et al.).

    Args:
        gradients: List of float tensors of any shapes; `None` entries have no
            gradient and get no perturbation.
        weights: List of float tensors of the same shapes, where the
            gradients were taken. They set the dtype of the result.
        rho: Float or scalar tensor, at least 0. The radius, in units of the
            weights (relative to them, when scaled).
        scales: `None`, or a list with, for each weight, a tensor that
            broadcasts to it, or `None` for 1.

    Returns:
        List of tensors with the shape and dtype of `weights`, or `None` where
        the gradient is `None`. The norm is computed in float32 (float64 for
        float64 weights), whatever the dtype of the gradients. A gradient of
        zeros gives zeros, and so does one with a NaN or infinity in it.

    Example:

    ```python
    from keras import ops
    import keras_dlkit as dlkit

    weights = [ops.array([1.0, 2.0])]
    gradients = [ops.array([3.0, 4.0])]
    (e,) = dlkit.ops.sam_perturbation(gradients, weights, 0.5)
    # e is [0.3, 0.4]; take the gradient again at weights + e
    ```

    References:
        - [Foret et al., 2021](https://arxiv.org/abs/2010.01412)
        - [Kwon et al., 2021](https://arxiv.org/abs/2102.11600)
    """
    if not len(gradients) == len(weights) == len(scales or weights):
        raise ValueError(
            "`gradients`, `weights` and `scales` must have one entry a weight."
            f" Received: {len(gradients)} gradients, {len(weights)} weights "
            f"and scales={scales if scales is None else len(scales)}"
        )
    scales = scales or [None] * len(weights)
    # Scaled gradients T g, in the dtype of the sums.
    ascent = [
        None if g is None else _scaled(as_dtype(g, wide_dtype(g)), t)
        for g, t in zip(gradients, scales)
    ]
    norm = lists.norm(ascent)
    factor = ops.cast(rho, norm.dtype) / (norm + EPSILON)
    # From a gradient that is not finite there is no way to go: stay, and let
    # it do what it does to one weight without taking the others along.
    factor = ops.where(ops.isfinite(norm), factor, 0.0)
    return [
        None if e is None else as_dtype(_scaled(e, t), w.dtype)
        for e, w, t in zip(lists.products(ascent, factor), weights, scales)
    ]


def _scaled(x, scale):
    return x if scale is None else x * ops.cast(scale, x.dtype)
