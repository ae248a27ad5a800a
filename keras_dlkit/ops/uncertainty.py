"""What several predictions of the same thing say about their uncertainty."""

from typing import Any

from keras import ops

from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.ops._dtypes import as_dtype
from keras_dlkit.ops._dtypes import wide_dtype

DEPEWEG = Paper(
    "Decomposition of Uncertainty in Bayesian Deep Learning for Efficient and "
    "Risk-sensitive Learning",
    r"Stefan Depeweg and Jos{\'e} Miguel Hern{\'a}ndez-Lobato and "
    "Finale Doshi-Velez and Steffen Udluft",
    2018,
    "International Conference on Machine Learning",
    arxiv="1710.07283",
)
GAL = Paper(
    "What Uncertainties Do We Need in Bayesian Deep Learning for Computer "
    "Vision?",
    "Alex Kendall and Yarin Gal",
    2017,
    "Advances in Neural Information Processing Systems",
    arxiv="1703.04977",
)


@cites(DEPEWEG)
def categorical_uncertainty(probabilities: Any) -> dict[str, Any]:
    r"""Total, aleatoric and epistemic uncertainty of class probabilities.

    With S samples \(p_s\), their mean \(\bar p\) and the entropy \(H\),

    $$\underbrace{H(\bar p)}_{\text{total}} =
      \underbrace{\tfrac1S \sum_s H(p_s)}_{\text{aleatoric}} +
      \underbrace{I}_{\text{epistemic}}$$

    in nats. The epistemic part is the mutual information of the class and the
    sample: how much the samples disagree.

    Args:
        probabilities: Tensor, `(samples, batch, ..., classes)`: of paths of an
            SDE-Net, passes with dropout, members of an ensemble.

    Returns:
        Dict of `"mean"` and `"std"` (over the samples, of the probabilities,
        `(batch, ..., classes)`) and `"total"`, `"aleatoric"`, `"epistemic"`
        (`(batch, ...)`).

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    logits = keras.random.normal((10, 4, 3))  # 10 samples of 4 rows
    found = dlkit.ops.categorical_uncertainty(keras.ops.softmax(logits))
    found["epistemic"]  # (4,)
    ```

    References:
        - [Depeweg et al., 2018](https://arxiv.org/abs/1710.07283)
    """
    p = as_dtype(probabilities, wide_dtype(probabilities))
    mean = ops.mean(p, axis=0)
    total = _entropy(mean)
    aleatoric = ops.mean(_entropy(p), axis=0)
    return {
        "mean": mean,
        "std": ops.sqrt(_variance(p)),
        "total": total,
        "aleatoric": aleatoric,
        "epistemic": ops.maximum(total - aleatoric, 0.0),
    }


@cites(GAL)
def gaussian_uncertainty(mean: Any, scale: Any) -> dict[str, Any]:
    r"""Total, aleatoric and epistemic uncertainty of means and scales.

    With S samples of a mean \(\mu_s\) and a standard deviation \(s_s\), by the
    law of total variance,

    $$\text{aleatoric} = \tfrac1S \sum_s s_s^2, \qquad
      \text{epistemic} = \operatorname{Var}_s(\mu_s), \qquad
      \text{total} = \text{aleatoric} + \text{epistemic}$$

    These are variances: the root of the total is the standard deviation of
    what is predicted.

    Args:
        mean: Tensor, `(samples, batch, ...)`.
        scale: Tensor of that shape, the standard deviations.

    Returns:
        Dict of `"mean"`, `"std"` (of the means, over the samples), `"total"`,
        `"aleatoric"` and `"epistemic"`, each `(batch, ...)`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    means, scales = keras.random.normal((10, 4, 1)), keras.ops.ones((10, 4, 1))
    found = dlkit.ops.gaussian_uncertainty(means, scales)
    found["total"]  # about 2
    ```

    References:
        - [Kendall and Gal, 2017](https://arxiv.org/abs/1703.04977)
    """
    dtype = wide_dtype(mean, scale)
    mean, scale = as_dtype(mean, dtype), as_dtype(scale, dtype)
    epistemic = _variance(mean)
    aleatoric = ops.mean(ops.square(scale), axis=0)
    return {
        "mean": ops.mean(mean, axis=0),
        "std": ops.sqrt(epistemic),
        "total": aleatoric + epistemic,
        "aleatoric": aleatoric,
        "epistemic": epistemic,
    }


def _entropy(p):
    tiny = 1e-30  # p log p is 0 at 0
    return -ops.sum(p * ops.log(ops.maximum(p, tiny)), axis=-1)


def _variance(x):
    """Over the samples, unbiased; 0 for a single one."""
    count = max(x.shape[0] - 1, 1)
    centred = x - ops.mean(x, axis=0, keepdims=True)
    return ops.sum(ops.square(centred), axis=0) / count
