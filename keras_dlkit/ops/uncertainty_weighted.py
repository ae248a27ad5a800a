"""Losses weighted by learned variances (Kendall, Gal and Cipolla, 2018)."""

from typing import Any

from keras import ops

from keras_dlkit import _checks
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites

# What the likelihood of a task multiplies its precision by.
FACTORS = {"regression": 0.5, "classification": 1.0}
PENALTIES = {
    "kendall": lambda s: 0.5 * s,
    "liebel": lambda s: ops.softplus(s),
}


KENDALL = Paper(
    "Multi-Task Learning Using Uncertainty to Weigh Losses for "
    "Scene Geometry and Semantics",
    "Alex Kendall and Yarin Gal and Roberto Cipolla",
    2018,
    "Conference on Computer Vision and Pattern Recognition",
    arxiv="1705.07115",
)
LIEBEL = Paper(
    "Auxiliary Tasks in Multi-task Learning",
    r"Lukas Liebel and Marco K{\"o}rner",
    2018,
    arxiv="1805.06334",
)


@cites(KENDALL, LIEBEL)
def uncertainty_weighted(
    losses: Any,
    log_variances: Any,
    kinds: list[str],
    *,
    formula: str = "kendall",
) -> Any:
    r"""The joint loss of several tasks, each with a variance of its own.

    With \(s_k = \log \sigma_k^2\) the log-variance of a task,

    $$\sum_k c_k \, e^{-s_k} L_k + \frac{s_k}{2}, \qquad
      c_k = \tfrac{1}{2} \text{ in regression}, \;
      1 \text{ in classification}$$

    which for squared errors is the negative log-likelihood of Gaussians, but
    for a constant, and for cross-entropies that of softmaxes with a
    temperature, nearly. The best \(s_k\) is \(\log 2 c_k L_k\). It goes below
    zero where \(2 c_k L_k < 1/e\).

    `formula="liebel"` has \(\log(1 + e^{s_k})\) in the place of \(s_k / 2\),
    and is never negative for losses that are not.

    Args:
        losses: List of scalars, or a float tensor `(tasks,)`.
        log_variances: The same, the \(s_k\).
        kinds: List with `"regression"` or `"classification"` for each task.
        formula: `"kendall"` or `"liebel"`.

    Returns:
        Scalar float32 tensor.

    Raises:
        ValueError: For kinds, formulae or lengths that do not fit.

    Example:

    ```python
    import keras_dlkit as dlkit

    total = dlkit.ops.uncertainty_weighted(
        [4.0, 1.0], [0.0, 0.0], ["regression", "classification"]
    )
    # 4 / 2 + 1 = 3
    ```

    References:
        - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115)
        - [Liebel and Koerner, 2018](https://arxiv.org/abs/1805.06334)
    """
    weights = uncertainty_weights(log_variances, kinds)
    penalty = uncertainty_penalty(log_variances, formula)
    losses = _vector(losses)
    _check_length("losses", losses, kinds)
    return ops.sum(weights * losses) + penalty


def uncertainty_weights(log_variances, kinds):
    for kind in kinds:
        _checks.check_one_of("kinds", kind, FACTORS)
    log_variances = _vector(log_variances)
    _check_length("log_variances", log_variances, kinds)
    factors = ops.convert_to_tensor([FACTORS[k] for k in kinds], "float32")
    return factors * ops.exp(-log_variances)


def uncertainty_penalty(log_variances, formula):
    _checks.check_one_of("formula", formula, PENALTIES)
    return ops.sum(PENALTIES[formula](_vector(log_variances)))


def _check_length(name, values, kinds):
    """Raises unless there is a value for each kind: one would be broadcast."""
    if tuple(values.shape) != (len(kinds),):
        raise ValueError(
            f"`{name}` and `kinds` must have an entry a task. Received: "
            f"`{name}` of shape {tuple(values.shape)}, {len(kinds)} kinds"
        )


def _vector(values):
    if isinstance(values, (list, tuple)):
        return ops.stack([ops.cast(v, "float32") for v in values])
    return ops.cast(values, "float32")
