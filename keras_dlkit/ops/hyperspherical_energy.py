"""The hyperspherical energy of the neurons of a kernel, as a pure function."""

import math
from typing import Any

from keras import ops

from keras_dlkit import _checks
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.ops._dtypes import as_dtype
from keras_dlkit.ops._dtypes import wide_dtype

# Squared distances below this count as this: in float32, 2 - 2 cos of two
# neurons in the same direction is rounding noise of some 1e-7, of any sign.
FLOOR = 1e-5
LIMIT = 1 - FLOOR / 2
# A neuron whose weights are all below this has no direction.
TINY = 1e-25
POWERS = (0, 1, 2)
# Rows of cosines at a time: such that they stay in the cache of a processor.
BLOCK_SIZE = 512


LIU_W = Paper(
    "Learning towards Minimum Hyperspherical Energy",
    "Weiyang Liu and Rongmei Lin and Zhen Liu and Lixin Liu and "
    "Zhiding Yu and Bo Dai and Le Song",
    2018,
    "Advances in Neural Information Processing Systems",
    arxiv="1805.09298",
)


@cites(LIU_W)
def hyperspherical_energy(
    kernel: Any,
    *,
    power: int = 2,
    half_space: bool = True,
    angular: bool = False,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = 0.0,
    block_size: int | None = None,
) -> Any:
    r"""How close together the directions of the neurons of a kernel are.

    With \(u_i = w_i / \sqrt{\lVert w_i \rVert^2 + \epsilon}\) for the
    weights \(w_i\) of neuron \(i\) of \(n\), the mean over the pairs

    $$E = \frac{2}{n (n - 1)} \sum_{i < j} f(u_i \cdot u_j), \qquad
      f = d^{-s} \;(s = 1, 2), \quad f = \log d^{-1} \;(s = 0)$$

    where \(d = \sqrt{2 - 2 \cos}\), or \(d = \arccos(\cos) / \pi\) for
    `angular`, and \(s\) is the power. With `half_space`, the \(2n\) vectors
    \(\pm u_i\) take the place of the \(n\), so that opposite neurons count
    as alike; the mean is over all \(n (2n - 1)\) pairs, those of a neuron and
    its own negative included. It costs one matrix of \(n \times n\) cosines
    all the same.

    Args:
        kernel: Float tensor or variable of two axes or more.
        power: `0`, `1` or `2`.
        half_space: Boolean.
        angular: Boolean.
        axis: Integer or tuple of integers. The axes of `kernel` that count
            its neurons; along the others lie the weights of one.
        epsilon: Float, at least 0. Neurons shorter than its square root fade
            out, and so does their gradient, which else grows as the inverse
            of their length. The authors' code has `1e-4`.
        block_size: `None`, or an integer of at least 1. The rows of the
            matrix of cosines that are in memory at a time, in the backward
            pass as in the forward pass; `None` for some 500.

    Returns:
        Scalar tensor: float32, whatever the dtype of the kernel (float64 for
        float64). 0 for a single neuron, which has no pair, and for neurons of
        a single weight, which all lie on one line.

    Raises:
        TypeError, ValueError: For arguments out of range, for axes that the
            kernel does not have, and for axes that leave no weights.

    Values and gradients are finite for all finite kernels. Distances below
    \(\sqrt{10^{-5}}\) count as that (about 0.2 degrees), with gradient 0:
    neurons of the very same direction have none to part in. A neuron of zeros
    is at a right angle to all others, without a gradient if `epsilon` is 0.

    The gradient is written out, and computes the cosines anew. It can be
    differentiated again in reverse mode, not in forward mode.

    Example:

    ```python
    from keras import ops
    import keras_dlkit as dlkit

    kernel = ops.eye(3)  # three neurons at right angles: d**2 is 2
    dlkit.ops.hyperspherical_energy(kernel, half_space=False)  # 0.5
    ```

    References:
        - [Liu et al., 2018](https://arxiv.org/abs/1805.09298)
    """
    check_energy(power, half_space, angular, axis, epsilon, block_size)
    vectors = kernel_rows(ops.convert_to_tensor(kernel), axis)
    if 1 in vectors.shape:
        return ops.sum(vectors[1:, 1:])
    vectors = _directions(vectors, epsilon)
    settings = {"power": power, "half_space": half_space, "angular": angular}
    total = _pair_sum(vectors, settings, block_size, has_unit_rows=not epsilon)
    return _mean_of_pairs(total, vectors, epsilon, settings)


def mean_energy(vectors, settings):
    """The mean energy of many sets of vectors, `(sets, neurons, weights)`."""
    sets, neurons, dimension = vectors.shape
    if 1 in (neurons, dimension):
        return ops.sum(vectors[:, 1:, 1:])
    vectors = _directions(vectors, 0.0)
    total = _pair_sum(vectors, settings, neurons, has_unit_rows=True)
    all_vectors = ops.reshape(vectors, (sets * neurons, dimension))
    return _mean_of_pairs(total, all_vectors, 0.0, settings, sets)


def _mean_of_pairs(total, vectors, epsilon, settings, sets=1):
    """From the sum over the pairs of rows within each of the sets."""
    neurons = vectors.shape[0] // sets
    if not settings["half_space"]:
        return total / (sets * neurons * (neurons - 1) / 2)
    # A float: it may be too large for an integer of 32 bits.
    pairs = float(sets * neurons * (2 * neurons - 1))
    # `(i, j)` and `(-i, -j)`, `(i, -j)` and `(-i, j)`; then `(i, -i)`.
    own = _own_pairs(vectors, epsilon, settings) / pairs
    return total * (2 / pairs) + own


def check_energy(
    power, half_space, angular, axis=-1, epsilon=0.0, block_size=None
):
    _checks.check_one_of("power", power, POWERS)
    _checks.check_count("power", power, at_least=0)  # no boolean
    _checks.check_one_of("half_space", half_space, (False, True))
    _checks.check_one_of("angular", angular, (False, True))
    for entry in axis if isinstance(axis, (tuple, list)) else (axis,):
        _checks.check_count("axis", entry, at_least=-math.inf)
    _checks.check_number("epsilon", epsilon, at_least=0)
    if block_size is not None:
        _checks.check_count("block_size", block_size, at_least=1)


def kernel_rows(kernel, axis):
    """The kernel as a matrix with a row a neuron, in a wide dtype."""
    rank = len(kernel.shape)
    axes = list(axis) if isinstance(axis, (tuple, list)) else [axis]
    neuron_axes = [a + rank if a < 0 else a for a in axes]
    weight_axes = [a for a in range(rank) if a not in neuron_axes]
    if (
        any(not 0 <= a < rank for a in neuron_axes)
        or len(set(neuron_axes)) < max(1, len(axes))
        or not weight_axes
    ):
        raise ValueError(
            "`axis` must name different axes of the kernel and leave one or "
            f"more for the weights of a neuron. Received: axis={axis} for a "
            f"kernel of shape {tuple(kernel.shape)}"
        )
    neurons = math.prod(kernel.shape[a] for a in neuron_axes)
    kernel = ops.transpose(kernel, neuron_axes + weight_axes)
    return as_dtype(ops.reshape(kernel, (neurons, -1)), wide_dtype(kernel))


def _directions(vectors, epsilon):
    """Rows over their norm, by way of their largest entry.

    The square of an entry of 1e-20 is 0 in float32, that of 1e20 infinite.
    """
    size = ops.max(ops.abs(ops.stop_gradient(vectors)), axis=-1, keepdims=True)
    if epsilon:
        size = ops.maximum(size, math.sqrt(epsilon))
    # Over infinity a row below `TINY` is 0, and its gradient with it.
    alive = size > TINY
    vectors = vectors / ops.where(alive, size, math.inf)
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    if epsilon:
        squares = squares + ops.square(math.sqrt(epsilon) / size)
    return vectors * ops.rsqrt(ops.where(alive, squares, 1.0))


def _pair_sum(vectors, settings, block_size, has_unit_rows):
    """Sum of the energy over pairs of rows; see `_energy`.

    Of several sets of rows, `(sets, neurons, weights)`, in one block.
    """
    neurons = vectors.shape[-2]
    blocks = -(-neurons // min(block_size or BLOCK_SIZE, neurons))
    energy, gradient = (
        _of_one_block(settings, has_unit_rows)
        if blocks == 1
        else _around_the_circle(*vectors.shape, blocks, settings)
    )
    scale = settings["power"] or 1

    @ops.custom_gradient
    def pair_sum(vectors):
        def backward(*args, upstream=None):
            # On PyTorch the tensors come first.
            upstream = args[0] if upstream is None else upstream
            return (upstream * scale) * gradient(vectors)

        return energy(vectors), backward

    return pair_sum(vectors)


def _of_one_block(settings, has_unit_rows):
    """The sum, and its gradient over the power, as functions of all rows."""

    def cosines(vectors):
        return vectors @ ops.swapaxes(vectors, -1, -2)

    def energy(vectors):
        return ops.sum(ops.tril(_energy(cosines(vectors), **settings), -1))

    def gradient(vectors):
        slope = _slope(cosines(vectors), **settings)
        if not has_unit_rows:  # of those a row has no slope to itself
            slope *= 1.0 - ops.eye(vectors.shape[-2], dtype=vectors.dtype)
        return slope @ vectors

    return energy, gradient


def _around_the_circle(neurons, dimension, blocks, settings):
    """The same in blocks of rows.

    The rows stand in a circle of an odd number of blocks. Each block meets
    itself and the half of the circle behind it, so that of the two blocks of
    a pair one meets the other: as many rows each time, as a compiled loop
    needs it.
    """
    blocks += 1 - blocks % 2
    size = -(-neurons // blocks)
    half = (blocks + 1) // 2 * size
    padding = blocks * size - neurons
    # The rows of zeros that fill up the circle are at a right angle to all.
    sides = 2 if settings["half_space"] else 1
    pairs = sides * (2 * neurons + padding - 1) * padding / 2
    of_padding = pairs * _energy_of_angle(0.5, settings)

    def met_weights(dtype):
        # Within a block each pair is there twice, and each row with itself.
        index = ops.arange(half)
        weights = ops.where(index < size, 0.5, 1.0)
        weights = ops.where(ops.arange(size)[:, None] == index, 0.0, weights)
        return ops.cast(weights, dtype)

    def meeting(vectors):
        """A function of a block's number to the block and those it meets."""
        circle = ops.pad(vectors, [[0, padding], [0, 0]])
        circle = ops.concatenate([circle, circle[:half]])

        def rows(number):
            met = ops.slice(circle, (number * size, 0), (half, dimension))
            return met[:size], met

        return rows

    def energy(vectors):
        rows, weights = meeting(vectors), met_weights(vectors.dtype)

        def add_block(number, total):
            block, met = rows(number)
            cosine = block @ ops.transpose(met)
            return total + ops.sum(weights * _energy(cosine, **settings))

        zero = ops.zeros((), dtype=vectors.dtype)
        return ops.fori_loop(0, blocks, add_block, zero) - of_padding

    def gradient(vectors):
        rows, weights = meeting(vectors), met_weights(vectors.dtype)

        def add_block(number, total):
            # The rows of `total` turn, a block at a time: this one's are first.
            block, met = rows(number)
            cosine = block @ ops.transpose(met)
            slope = weights * _slope(cosine, **settings)
            of_block = slope @ met
            of_met = ops.transpose(slope) @ block
            parts = [
                total[size:half] + of_met[size:],
                total[half:],
                total[:size] + of_met[:size] + of_block,
            ]
            return ops.concatenate(parts)

        zeros = ops.zeros((blocks * size, dimension), dtype=vectors.dtype)
        return ops.fori_loop(0, blocks, add_block, zeros)[:neurons]

    return energy, gradient


def _own_pairs(vectors, epsilon, settings):
    """Sum of the energy over the pairs of a row and its negative."""
    opposite = _energy_of_angle(1.0, settings)
    if not epsilon:
        return vectors.shape[0] * opposite
    squares = ops.sum(ops.square(vectors), axis=1)
    # Constant where the angle has an infinite slope.
    short = squares < LIMIT
    cosine = -ops.where(short, squares, 0.0)
    energy = _energy(cosine, **{**settings, "half_space": False})
    return ops.sum(ops.where(short, energy, opposite))


# The energy of a pair.


def _energy_of_angle(angle, settings):
    """As a number, of an angle over pi of two vectors of unit length."""
    distance = (
        angle if settings["angular"] else 2 * math.sin(angle * math.pi / 2)
    )
    power = settings["power"]
    return distance**-power if power else -math.log(distance)


def _energy(cosine, power, half_space, angular):
    """Of `(i, j)`; with `half_space` that of `(i, -j)` added."""
    near = ops.clip(cosine, -LIMIT if half_space else -1.0, LIMIT)
    exponent = power if angular else power / 2
    energies = [
        _inverse_power(x, exponent)
        if power
        else (-1 if angular else -0.5) * ops.log(x)
        for x in _distances(near, half_space, angular)
    ]
    return sum(energies[1:], energies[0])


def _slope(cosine, power, half_space, angular):
    """Its derivative over the power (or 1), 0 where no direction is to go."""
    near = ops.clip(cosine, -LIMIT, LIMIT)
    exponent = power + 1 if angular else power / 2 + 1
    slopes = [
        _inverse_power(x, exponent)
        for x in _distances(near, half_space, angular)
    ]
    slope = slopes[0] - slopes[1] if half_space else slopes[0]
    if angular:
        slope = slope / (math.pi * ops.sqrt(1 - ops.square(near)))
    return ops.where(near == cosine, slope, 0.0)


def _distances(cosine, half_space, angular):
    """Angles over pi, or squared distances: to `j`, and to `-j`."""
    if angular:
        angle = ops.arccos(cosine) / math.pi
        return [angle, 1 - angle] if half_space else [angle]
    twice = 2 * cosine
    return [2 - twice, 2 + twice] if half_space else [2 - twice]


def _inverse_power(x, power):
    """`x ** -power`, for multiples of 1/2; the general form is slow."""
    if power == 0.5:
        return ops.rsqrt(x)
    inverse = 1 / x
    result = ops.sqrt(inverse) if power % 1 else inverse
    for _ in range(math.ceil(power) - 1):
        result = result * inverse
    return result
