import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from tests.ops.gradients import BACKEND
from tests.ops.gradients import central_differences
from tests.ops.gradients import differentiated
from tests.ops.gradients import differentiated_twice

KERNEL = np.random.default_rng(0).normal(size=(5, 7))
FORMULAS = [
    {"power": power, "half_space": half_space, "angular": angular}
    for power, half_space, angular in itertools.product(
        (0, 1, 2), (False, True), (False, True)
    )
]
SCALES = [1, 3, 1e-5, 1e5, 1e-15, 1e15, 1e-24, 1e30]
compiled = pytest.mark.parametrize("compiled", [False, True])


def energy(kernel, **arguments):
    kernel = ops.convert_to_tensor(kernel, dtype="float32")
    value = dlkit.ops.hyperspherical_energy(kernel, **arguments)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    return float(ops.convert_to_numpy(value))


def value_and_gradient(kernel, compiled=False, **arguments):
    return derivative(compiled, **arguments)(kernel)


def derivative(compiled=False, **arguments):
    return differentiated(
        lambda x: dlkit.ops.hyperspherical_energy(x, **arguments), compiled
    )


def by_hand(
    kernel, power=2, half_space=True, angular=False, epsilon=0.0, floor=0.0
):
    """The mean over all pairs of columns, one pair at a time, in float64."""
    kernel = np.asarray(kernel, "float64")
    columns = list(kernel.T)
    if half_space:
        columns += [-column for column in columns]
    energies = []
    for i, a in enumerate(columns):
        for j in range(i):
            b = columns[j]
            cosine = (a @ b) / np.sqrt((a @ a + epsilon) * (b @ b + epsilon))
            if half_space and i - j == kernel.shape[1] and not epsilon:
                cosine = -1.0  # exactly: the slope of arccos is infinite there
            cosine = min(cosine, 1 - floor / 2)
            distance = np.sqrt(2 - 2 * cosine)
            if angular:
                distance = np.arccos(cosine) / np.pi
            energies.append(distance**-power if power else np.log(1 / distance))
    return np.mean(energies)


@compiled
@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_it_is_the_mean_over_pairs(formula, compiled):
    value, gradient = value_and_gradient(KERNEL, compiled, **formula)
    np.testing.assert_allclose(value, by_hand(KERNEL, **formula), rtol=1e-5)
    expected = central_differences(lambda x: by_hand(x, **formula), KERNEL)
    np.testing.assert_allclose(
        gradient, expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_the_gradient_has_a_gradient(formula):
    direction = np.random.default_rng(2).normal(size=KERNEL.shape)

    def slope(kernel):
        return central_differences(lambda x: by_hand(x, **formula), kernel)

    twice = differentiated_twice(
        lambda x: dlkit.ops.hyperspherical_energy(x, block_size=2, **formula)
    )
    step = 1e-4 * direction
    expected = (slope(KERNEL + step) - slope(KERNEL - step)) / 2e-4
    np.testing.assert_allclose(
        twice(KERNEL, direction), expected, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("half_space", [False, True])
@pytest.mark.parametrize(
    ("block_size", "compiled"),
    [(1, True), (2, True), (3, True), (3, False), (6, True), (100, True)],
)
def test_blocks_change_nothing(block_size, half_space, compiled):
    formula = {"power": 1, "half_space": half_space}
    whole = value_and_gradient(KERNEL, True, block_size=7, **formula)
    blocks = value_and_gradient(
        KERNEL, compiled, block_size=block_size, **formula
    )
    for actual, expected in zip(blocks, whole):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


def test_more_neurons_than_a_block_has():
    kernel = np.random.default_rng(1).normal(size=(3, 1100))
    cosine = kernel / np.linalg.norm(kernel, axis=0)
    cosine = cosine.T @ cosine
    squared = np.maximum(2 - 2 * cosine[np.triu_indices(1100, 1)], 1e-5)
    np.testing.assert_allclose(
        energy(kernel, power=1, half_space=False),
        np.mean(squared**-0.5),
        rtol=1e-4,
    )


@pytest.mark.parametrize("half_space", [False, True])
@pytest.mark.parametrize("angular", [False, True])
def test_epsilon(half_space, angular):
    """With 1e-4, and a kernel where it tells, the formula of the authors."""
    kernel = KERNEL * 0.005
    formula = {
        "half_space": half_space,
        "angular": angular,
        "epsilon": 1e-4,
        "power": 1,
    }
    value, gradient = value_and_gradient(kernel, **formula)
    np.testing.assert_allclose(value, by_hand(kernel, **formula), rtol=1e-5)
    expected = central_differences(
        lambda x: by_hand(x, **formula), kernel, step=1e-7
    )
    np.testing.assert_allclose(
        gradient, expected, atol=1e-4 * np.abs(expected).max()
    )
    assert abs(value / energy(kernel, **{**formula, "epsilon": 0.0}) - 1) > 0.01


# Closed forms.


@pytest.mark.parametrize("scale", SCALES)
def test_right_angles(scale):
    kernel = scale * np.eye(4)
    assert energy(kernel, half_space=False) == pytest.approx(1 / 2)
    assert energy(kernel, half_space=False, power=1) == pytest.approx(2**-0.5)
    assert energy(kernel, half_space=False, power=0) == pytest.approx(
        -np.log(2) / 2
    )
    assert energy(kernel, half_space=False, angular=True) == pytest.approx(4)
    # 24 pairs at right angles, 4 opposite ones.
    assert energy(kernel) == pytest.approx((24 / 2 + 4 / 4) / 28)


def test_simplex():
    """As far apart as 5 directions can be: cos -1/4."""
    kernel = np.eye(5) - 1 / 5
    assert energy(kernel, half_space=False) == pytest.approx(0.4)
    nearby = kernel + 0.1 * np.random.default_rng(0).normal(size=(5, 5))
    assert energy(nearby, half_space=False) > 0.4


def test_opposite_neurons():
    kernel = np.array([[1.0, -3.0], [2.0, -6.0]])
    assert energy(kernel, half_space=False) == pytest.approx(1 / 4)
    assert energy(kernel, half_space=False, power=0) == pytest.approx(
        -np.log(2)
    )
    # For the half space they are the same: at the floor.
    assert energy(kernel) > 1e4


def test_lengths_do_not_count():
    lengths = np.array([1e-6, 1e6, 3, 1e-20, 1e20, 1, 7])
    assert energy(KERNEL * lengths) == pytest.approx(energy(KERNEL), rel=1e-5)


@pytest.mark.parametrize("half_space", [False, True])
def test_a_single_neuron_has_no_energy(half_space):
    value, gradient = value_and_gradient(KERNEL[:, :1], half_space=half_space)
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize(
    ("shape", "axis", "order"),
    [
        ((4, 5), 0, (1, 0)),
        ((4, 5), -2, (1, 0)),
        ((3, 3, 2, 5), -1, (0, 1, 2, 3)),
        ((3, 3, 5, 2), -2, (0, 1, 3, 2)),
        ((3, 2, 4, 2), (-2, -1), (0, 1, 2, 3)),
        ((2, 4, 6), [0, 2], (1, 0, 2)),
    ],
)
def test_axis(shape, axis, order):
    kernel = np.random.default_rng(1).normal(size=shape)
    neurons = np.prod([shape[a] for a in np.atleast_1d(axis)])
    columns = kernel.transpose(order).reshape(-1, neurons)
    assert energy(kernel, axis=axis) == pytest.approx(
        by_hand(columns), rel=1e-5
    )


# Numbers at the edge.


def kernels_at_the_edge():
    duplicates = KERNEL.copy()
    duplicates[:, 1] = duplicates[:, 0]
    duplicates[:, 2] = -duplicates[:, 0]
    zeros = KERNEL.copy()
    zeros[:, :2] = 0
    near = KERNEL.copy()
    near[:, 1] = near[:, 0] * (1 + 1e-7)
    near[0, 1] += 1e-6
    return {
        "duplicates": duplicates,
        "zeros": zeros,
        "near": near,
        "all zeros": np.zeros((5, 7)),
        "all ones": np.ones((5, 7)),
    }


@pytest.mark.parametrize(
    "formula", [*FORMULAS, {"epsilon": 1e-4, "angular": True}], ids=str
)
def test_values_and_gradients_are_finite(formula):
    both = derivative(compiled=True, **formula)
    for name, kernel in kernels_at_the_edge().items():
        for scale in [*SCALES, 1e-40]:
            value, gradient = both(kernel * scale)
            assert np.isfinite(value), (name, scale)
            assert np.isfinite(gradient).all(), (name, scale)


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_neurons_of_one_weight_have_no_energy(formula):
    value, gradient = value_and_gradient(KERNEL[:1], **formula)
    assert value == 0 and (gradient == 0).all()


def test_duplicates_are_at_the_floor():
    kernel = np.repeat(KERNEL[:, :3], 2, axis=1)
    for scale in (1e-3, 1, 30, 1000):
        np.testing.assert_allclose(
            energy(kernel * scale, half_space=False),
            by_hand(kernel, half_space=False, floor=1e-5),
            rtol=1e-2,
        )


@pytest.mark.parametrize("sign", [1, -1])
def test_duplicates_have_no_direction_to_part_in(sign):
    """Rounding would give one, and a size of 1e3 and more."""
    for column in KERNEL.T:
        kernel = np.stack([column, 3 * sign * column], axis=1)
        _, gradient = value_and_gradient(kernel)
        assert (gradient == 0).all()


def test_a_neuron_of_zeros_gets_no_gradient():
    kernel = KERNEL.copy()
    kernel[:, 3] = 0
    _, gradient = value_and_gradient(kernel)
    assert (gradient[:, 3] == 0).all() and (gradient[:, 2] != 0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_kernels_are_computed_in_float32(dtype):
    """In float16 the squares of 300 overflow."""
    kernel = ops.cast(ops.convert_to_tensor(300 * KERNEL), dtype)
    value = dlkit.ops.hyperspherical_energy(kernel)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    expected = by_hand(ops.convert_to_numpy(ops.cast(kernel, "float32")))
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(BACKEND == "jax", reason="float64 is off by default")
def test_float64_stays():
    kernel = ops.convert_to_tensor(KERNEL, dtype="float64")
    for block_size in (None, 2):
        value = dlkit.ops.hyperspherical_energy(kernel, block_size=block_size)
        assert keras.backend.standardize_dtype(value.dtype) == "float64"
        expected = by_hand(KERNEL)
        assert float(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX tells before it runs")
def test_memory_grows_with_the_block():
    import jax

    def peak(block_size):
        step = jax.value_and_grad(
            lambda x: dlkit.ops.hyperspherical_energy(x, block_size=block_size)
        )
        shape = jax.ShapeDtypeStruct((4, 4096), "float32")
        compiled = jax.jit(step).lower(shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    row = 4 * 4096
    assert peak(16) < 200 * row
    assert peak(4096) > 2000 * row


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX lowers for others")
@pytest.mark.parametrize("neurons", [33, 70_000])
def test_it_lowers_for_tpu_and_cuda(neurons):
    """70,000 neurons have more pairs than an int32 can count."""
    import jax

    step = jax.value_and_grad(
        lambda x: dlkit.ops.hyperspherical_energy(x, block_size=5)
    )
    shape = jax.ShapeDtypeStruct((4, neurons), "float32")
    platforms = ("tpu", "cuda", "cpu")
    exported = jax.export.export(jax.jit(step), platforms=platforms)(shape)
    assert exported.platforms == platforms


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile():
    import torch

    kernel = torch.tensor(KERNEL, dtype=torch.float32, requires_grad=True)
    compiled = torch.compile(
        lambda x: dlkit.ops.hyperspherical_energy(x, block_size=3)
    )
    value = compiled(kernel)
    value.backward()
    value = value.detach()
    expected = value_and_gradient(KERNEL)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(kernel.grad, expected[1], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power": 3}, "`power` must be one of.*power=3"),
        ({"axis": 2}, "`axis` must name.*axis=2.*(5, 7)"),
        ({"axis": (-1, 1)}, "different axes"),
        ({"axis": (0, 1)}, "leave one"),
        ({"axis": ()}, "`axis` must name"),
        ({"epsilon": -1.0}, "`epsilon`.*-1.0"),
        ({"block_size": 0}, "`block_size` must be at least 1.*0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        energy(KERNEL, **arguments)


@pytest.mark.parametrize(
    "arguments", [{"axis": 1.0}, {"axis": "last"}, {"block_size": 2.5}]
)
def test_bad_types(arguments):
    with pytest.raises(TypeError, match=next(iter(arguments))):
        energy(KERNEL, **arguments)
