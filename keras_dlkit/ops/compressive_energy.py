"""The hyperspherical energy of projected neurons (Lin et al., 2020)."""

from typing import Any

from keras import ops

from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.ops.hyperspherical_energy import check_energy
from keras_dlkit.ops.hyperspherical_energy import kernel_rows
from keras_dlkit.ops.hyperspherical_energy import mean_energy

LIN_R = Paper(
    "Regularizing Neural Networks via Minimizing Hyperspherical Energy",
    "Rongmei Lin and Weiyang Liu and Zhen Liu and Chen Feng and "
    "Zhiding Yu and James M. Rehg and Li Xiong and Le Song",
    2020,
    "Conference on Computer Vision and Pattern Recognition",
    arxiv="1906.04892",
)


@cites(LIN_R)
def compressive_energy(
    kernel: Any,
    projections: Any,
    *,
    power: int = 2,
    half_space: bool = True,
    angular: bool = False,
    axis: int | tuple[int, ...] = -1,
) -> Any:
    r"""The mean energy of a kernel's neurons under linear projections.

    $$\frac{1}{m} \sum_{k = 1}^m E(P_k^T w_1, \dots, P_k^T w_n)$$

    with the energy \(E\) of `hyperspherical_energy`. With random matrices
    \(P_k\) of few columns angles stay much the same, by the lemma of Johnson
    and Lindenstrauss, and the energy has a slope to follow: in high dimensions
    all neurons are near right angles to each other from the start.

    Args:
        kernel: Float tensor or variable of two axes or more, with `d` weights
            a neuron.
        projections: Float tensor `(m, d, p)`. On a line, with `p` of 1, there
            are no directions: the energy is 0.
        power: As in `hyperspherical_energy`.
        half_space: As in `hyperspherical_energy`.
        angular: As in `hyperspherical_energy`.
        axis: As in `hyperspherical_energy`.

    Returns:
        Scalar float32 tensor (float64 for float64).

    Raises:
        TypeError, ValueError: As `hyperspherical_energy`.

    The `m` matrices of `n x n` cosines are in memory at once. Values and
    gradients are finite, and the gradient written out, as in
    `hyperspherical_energy`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    kernel = keras.random.normal((256, 16))
    projections = keras.random.normal((20, 256, 40))
    dlkit.ops.compressive_energy(kernel, projections)
    ```

    References:
        - [Lin et al., 2020](https://arxiv.org/abs/1906.04892)
    """
    check_energy(power, half_space, angular, axis)
    rows = kernel_rows(ops.convert_to_tensor(kernel), axis)
    projected = ops.matmul(rows[None], ops.cast(projections, rows.dtype))
    settings = {"power": power, "half_space": half_space, "angular": angular}
    return mean_energy(projected, settings)
