"""Which weights to keep, by their scores: an exact count, safe for XLA."""

from typing import Any

from keras import ops

from keras_dlkit import _checks
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites

# Of a non-negative float32 the bits order as the number does.
LARGEST_BITS = 0x7FFFFFFF


RAMANUJAN = Paper(
    "What's Hidden in a Randomly Weighted Neural Network?",
    "Vivek Ramanujan and Mitchell Wortsman and Aniruddha Kembhavi "
    "and Ali Farhadi and Mohammad Rastegari",
    2020,
    "Conference on Computer Vision and Pattern Recognition",
    arxiv="1911.13299",
)


@cites(RAMANUJAN)
def score_mask(scores: Any, sparsity: float) -> Any:
    """A mask that is zero at the lowest magnitudes of the scores.

    Exactly `round(sparsity * n)` of the `n` entries are zero, but one at least
    is not; among equal magnitudes those of the lowest flat index go first. The
    threshold is found by bisection on the bits of the floats: 31 counts and no
    sort, the shapes are static, and compiled it is several times as fast as
    `top_k`.

    Args:
        scores: Float tensor of any shape; taken as float32. NaN counts as
            the largest.
        sparsity: Float in `[0, 1)`. The share of zeros.

    Returns:
        Float32 tensor of the shape of `scores`, of zeros and ones. No
        gradient flows through it.

    Example:

    ```python
    from keras import ops
    import keras_dlkit as dlkit

    dlkit.ops.score_mask(ops.array([0.3, -0.1, 0.1, -0.5]), 0.5)
    # [1, 0, 0, 1]
    ```

    References:
        - [Ramanujan et al., 2019](https://arxiv.org/abs/1911.13299)
    """
    scores = ops.convert_to_tensor(scores)
    count = pruned_count(scores.shape, sparsity)
    if count == 0:
        return ops.ones(scores.shape, dtype="float32")
    magnitudes = ops.abs(ops.cast(ops.stop_gradient(scores), "float32"))
    bits = ops.view(ops.reshape(magnitudes, (-1,)), dtype="int32")
    threshold = _smallest(bits, count)
    below, ties = bits < threshold, bits == threshold
    wanted = count - ops.sum(ops.cast(below, "int32"))
    rank = ops.cumsum(ops.cast(ties, "int32"))
    pruned = ops.logical_or(below, ops.logical_and(ties, rank <= wanted))
    mask = ops.cast(ops.logical_not(pruned), "float32")
    return ops.reshape(mask, scores.shape)


def pruned_count(shape, sparsity):
    """How many weights of a tensor go: never all."""
    sparsity = check_sparsity(sparsity)
    size = 1
    for length in shape:
        size *= int(length)
    return max(0, min(round(sparsity * size), size - 1))


def check_sparsity(sparsity):
    sparsity = _checks.check_number("sparsity", sparsity, at_least=0)
    if sparsity >= 1:
        raise ValueError(
            "`sparsity`, the share of weights that are zero, must be at "
            f"least 0 and below 1. Received: sparsity={sparsity}"
        )
    return sparsity


def _smallest(bits, count):
    """The `count`-th smallest of non-negative integers."""

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = ops.sum(ops.cast(bits <= middle, "int32")) >= count
        return (
            ops.where(enough, low, middle + 1),
            ops.where(enough, middle, high),
        )

    bounds = (
        ops.convert_to_tensor(0, dtype="int32"),
        ops.convert_to_tensor(LARGEST_BITS, dtype="int32"),
    )
    return ops.fori_loop(0, 31, halve, bounds)[0]
