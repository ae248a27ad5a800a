"""The linear map of BatchEnsemble (Wen et al., 2020)."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites

WEN = Paper(
    title="BatchEnsemble: An Alternative Approach to Efficient Ensemble and "
    "Lifelong Learning",
    author="Yeming Wen and Dustin Tran and Jimmy Ba",
    year=2020,
    venue="International Conference on Learning Representations",
    arxiv="2002.06715",
)
GORISHNIY = Paper(
    title="TabM: Advancing Tabular Deep Learning with Parameter-Efficient "
    "Ensembling",
    author="Yury Gorishniy and Akim Kotelnikov and Artem Babenko",
    year=2025,
    venue="International Conference on Learning Representations",
    arxiv="2410.24210",
)


@cites(WEN)
def batch_ensemble(
    inputs: Any,
    function: Callable,
    input_scales: Any,
    output_scales: Any,
    *,
    biases: Any = None,
    input_axes: int | Sequence[int] = -1,
    output_axes: int | Sequence[int] = -1,
) -> Any:
    r"""A linear map as members see it, who share its kernel.

    With the rows in \(M\) blocks, one a member, and a `function` that is
    linear in its channels, as \(x \mapsto W x\), the rows of member \(m\) give

    $$y = \sum_k s_{mk} \odot W (r_{mk} \odot x) + b_m,$$

    which is the map with the kernel \(W \odot \sum_k r_{mk} s_{mk}^\top\).
    That kernel is never made: `function` is called once, on all rows.

    Args:
        inputs: Tensor of shape `(M * rows, ...)`: the rows of the first
            member, those of the second, and so on.
        function: Function of a tensor of such rows to one of as many rows,
            without a bias.
        input_scales: Tensor \(r\) of shape `(M, K, ...)`, whose axes after
            the second are those of `input_axes`.
        output_scales: Tensor \(s\), the same for the outputs.
        biases: `None`, or a tensor \(b\) of shape `(M, ...)`, as
            `output_scales` without `K`.
        input_axes: Integer, or increasing integers: the axes of `inputs` that
            are scaled. Not 0, the rows. Defaults to `-1`.
        output_axes: The same for the outputs.

    Returns:
        Tensor of shape `(M * rows, ...)`.

    Raises:
        ValueError: For a number of rows that is known, and no multiple of M.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    x, kernel = keras.ops.ones((4 * 8, 5)), keras.ops.ones((5, 3))
    r, s = keras.ops.ones((4, 1, 5)), keras.ops.ones((4, 1, 3))
    y = dlkit.ops.batch_ensemble(x, lambda x: x @ kernel, r, s)
    assert y.shape == (32, 3)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
    """
    members, terms = input_scales.shape[:2]
    check_rows(inputs, members)
    blocks = (members,) if terms == 1 else (members, terms)
    x = _split(inputs, (members,) + (1,) * (len(blocks) - 1))
    x = x * _aligned(input_scales, blocks, input_axes, len(inputs.shape))
    y = function(_joined(x, len(blocks)))
    rank = len(y.shape)
    y = _split(y, blocks)
    y = y * _aligned(output_scales, blocks, output_axes, rank)
    if terms > 1:
        y = ops.sum(y, axis=1)
    if biases is not None:
        y = y + _aligned(biases, (members,), output_axes, rank)
    return _joined(y, 1)


def per_member(inputs, function: Callable, members: int):
    """`function` of the rows as `(members, rows, ...)`, and back."""
    check_rows(inputs, members)
    return _joined(function(_split(inputs, (members,))), 1)


def aligned(values, axes, rank):
    """`(M, ...)` made to broadcast against rows as `(M, rows, ...)`.

    Args:
        values: Tensor whose axes after the first are `axes` of the rows.
        axes: Integer, or increasing integers: axes of `(M * rows, ...)`.
        rank: Integer. The rank of that.
    """
    return _aligned(values, values.shape[:1], axes, rank)


def check_rows(inputs, members):
    rows = inputs.shape[0]
    if rows is not None and rows % members:
        raise ValueError(
            f"The rows must be those of the {members} members, one block "
            f"each: a multiple of {members}. Received: inputs of shape "
            f"{tuple(inputs.shape)}. `keras_dlkit.models.BatchEnsemble` "
            "gives each member its rows."
        )


def _split(x, blocks):
    return ops.reshape(x, (*blocks, -1, *ops.shape(x)[1:]))


def _joined(x, count):
    """Back to one axis of rows, after `count` axes of blocks and one."""
    return ops.reshape(x, (-1, *ops.shape(x)[count + 1 :]))


def _aligned(values, blocks, axes, rank):
    axes = [axes] if isinstance(axes, int) else axes
    shape = [1] * rank
    for axis, size in zip(axes, values.shape[-len(axes) :] if axes else ()):
        shape[axis] = size
    return ops.reshape(values, (*blocks, *shape))
