import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit

RNG = np.random.default_rng(0)
GRADIENTS = [RNG.normal(size=shape) for shape in [(3, 4), (4,), ()]]
WEIGHTS = [RNG.normal(size=g.shape) for g in GRADIENTS]


def tensors(arrays, dtype="float32"):
    return [ops.convert_to_tensor(a, dtype=dtype) for a in arrays]


def test_it_is_the_gradient_at_length_rho():
    e = dlkit.ops.sam_perturbation(tensors(GRADIENTS), tensors(WEIGHTS), 0.3)
    norm = np.sqrt(sum((g**2).sum() for g in GRADIENTS))
    for actual, g in zip(e, GRADIENTS):
        np.testing.assert_allclose(
            ops.convert_to_numpy(actual), 0.3 * g / norm, rtol=1e-5
        )


def test_scales():
    scales = [np.abs(WEIGHTS[0]) + 0.1, None, np.abs(WEIGHTS[2])]
    e = dlkit.ops.sam_perturbation(
        tensors(GRADIENTS),
        tensors(WEIGHTS),
        0.3,
        scales=[None if t is None else tensors([t])[0] for t in scales],
    )
    scales[1] = np.ones(4)
    norm = np.sqrt(sum(((t * g) ** 2).sum() for t, g in zip(scales, GRADIENTS)))
    for actual, g, t in zip(e, GRADIENTS, scales):
        np.testing.assert_allclose(
            ops.convert_to_numpy(actual), 0.3 * t**2 * g / norm, rtol=1e-5
        )


def test_none_gradients_are_left_out():
    gradients = tensors(GRADIENTS)
    gradients[0] = None
    e = dlkit.ops.sam_perturbation(gradients, tensors(WEIGHTS), 1.0)
    assert e[0] is None
    norm = np.sqrt(sum(float(ops.sum(v**2)) for v in e[1:]))
    assert norm == pytest.approx(1.0, rel=1e-5)


def test_no_gradients_at_all():
    none = [None] * 3
    assert dlkit.ops.sam_perturbation(none, tensors(WEIGHTS), 1.0) == none


def test_zero_gradients_give_zeros():
    zeros = [ops.zeros(g.shape) for g in GRADIENTS]
    for e in dlkit.ops.sam_perturbation(zeros, tensors(WEIGHTS), 0.3):
        assert float(ops.max(ops.abs(e))) == 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_norm_is_float32(dtype):
    """Squares of 300 overflow float16."""
    gradients = [ops.full((100,), 300.0, dtype=dtype)]
    (e,) = dlkit.ops.sam_perturbation(gradients, tensors([np.ones(100)]), 1.0)
    assert keras.backend.standardize_dtype(e.dtype) == "float32"
    np.testing.assert_allclose(ops.convert_to_numpy(e), 0.1, rtol=1e-5)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 gradients, 3 weights"):
        dlkit.ops.sam_perturbation(
            tensors(GRADIENTS[:2]), tensors(WEIGHTS), 0.1
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_there_is_no_way_to_go_from_what_is_not_finite(value):
    """Also where only the norm is infinite; and no NaN anywhere."""
    gradients = [g.copy() for g in GRADIENTS]
    gradients[0][1, 2] = value
    scales = [np.abs(w) for w in WEIGHTS]
    for given in (None, tensors(scales)):
        for e in dlkit.ops.sam_perturbation(
            tensors(gradients), tensors(WEIGHTS), 0.3, scales=given
        ):
            assert float(ops.max(ops.abs(e))) == 0.0
