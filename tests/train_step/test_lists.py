import keras
import numpy as np
import pytest
from keras import ops

from keras_dlkit._train_step import lists

RNG = np.random.default_rng(0)
XS = [RNG.normal(size=shape) for shape in [(3, 4), (4,), ()]]
YS = [RNG.normal(size=x.shape) for x in XS]


def tensors(arrays, dtype="float32"):
    return [
        None if a is None else ops.convert_to_tensor(a, dtype=dtype)
        for a in arrays
    ]


def check(actual, expected, rtol=1e-5):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        if e is None:
            assert a is None
        else:
            np.testing.assert_allclose(
                ops.convert_to_numpy(a), e, rtol=rtol, atol=1e-6
            )


def test_inner_product_and_norm_pass_over_none():
    xs, ys = tensors([*XS, None, YS[0]]), tensors([*YS, XS[0], None])
    product = sum((x * y).sum() for x, y in zip(XS, YS))
    assert float(lists.inner_product(xs, ys)) == pytest.approx(product, 1e-5)
    square = sum((x * x).sum() for x in XS)
    assert float(lists.norm(xs[:4])) == pytest.approx(square**0.5, 1e-5)
    assert float(lists.norm([None])) == 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_products_are_float32(dtype):
    """Squares of 300 overflow float16, and 10,000 ones bfloat16."""
    (x,) = tensors([np.full(10_000, 300.0)], dtype)
    (y,) = tensors([np.full(10_000, 300.0)], dtype)
    for other in (x, y):
        product = lists.inner_product([x], [other])
        assert keras.backend.standardize_dtype(product.dtype) == "float32"
        expected = 10_000 * float(ops.cast(x[0], "float32")) ** 2
        assert float(product) == pytest.approx(expected, 1e-5)


def test_a_million_entries_keep_their_digits():
    """In order, and in float32, they would be off in the fifth digit."""
    x = np.random.default_rng(0).uniform(size=10**6).astype("float32")
    exact = np.linalg.norm(x.astype("float64"))
    assert float(lists.norm(tensors([x]))) == pytest.approx(exact, 2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_products(dtype):
    factor = ops.convert_to_tensor(0.25, dtype="float32")
    xs = tensors([*XS, None], dtype)
    rtol = 1e-5 if dtype == "float32" else 1e-2
    actual = lists.products(xs, factor)
    check(actual, [*(0.25 * x for x in XS), None], rtol)
    assert keras.backend.standardize_dtype(actual[0].dtype) == dtype


def test_a_factor_of_zero_gives_zero_of_anything():
    xs = tensors([np.array([1.0, np.nan, np.inf, -np.inf]), None])
    actual = lists.products(xs, ops.zeros(()))
    check(actual, [np.zeros(4), None])


@pytest.mark.parametrize("kind", ["float", "tensor"])
@pytest.mark.parametrize("factor", [1.0, -0.5])
def test_sums(kind, factor):
    xs, ys = tensors([*XS, None, XS[0]]), tensors([*YS, YS[0], None])
    given = ops.convert_to_tensor(factor) if kind == "tensor" else factor
    expected = [x + factor * y for x, y in zip(XS, YS)]
    check(lists.sums(xs, ys, given), [*expected, None, XS[0]])


def test_assign_where():
    variables = [keras.Variable(x.astype("float32")) for x in XS]
    values = tensors([YS[0], None, np.nan])
    lists.assign_where(ops.convert_to_tensor(False), variables, values)
    check(variables, XS)
    values = tensors([YS[0], None, YS[2]])
    lists.assign_where(ops.convert_to_tensor(True), variables, values)
    check(variables, [YS[0], XS[1], YS[2]])
    # Copied: what comes of the values later is no matter.
    assert variables[0].value is not values[0]
