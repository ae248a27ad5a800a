import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops
from scipy import stats

import keras_dlkit as dlkit


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 3),
    seed=st.integers(0, 1000),
    scalar=st.booleans(),
)
def test_mix_up_matches_numpy(rows, width, seed, scalar):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, width)).astype("float32")
    permutation = rng.permutation(rows)
    lam = rng.uniform(size=() if scalar else rows).astype("float32")
    mixed = ops.convert_to_numpy(dlkit.ops.mix_up(values, permutation, lam))
    share = lam if scalar else lam[:, None]
    np.testing.assert_allclose(
        mixed, share * values + (1 - share) * values[permutation], atol=1e-6
    )
    # The shares sum to 1: what all rows agree on is unchanged.
    same = ops.convert_to_numpy(
        dlkit.ops.mix_up(
            np.full((rows, width), 3.0, "float32"), permutation, lam
        )
    )
    np.testing.assert_allclose(same, 3.0, rtol=1e-6)


def test_lambda_one_is_the_identity_to_the_bit():
    values = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    mixed = dlkit.ops.mix_up(values, np.arange(8)[::-1].copy(), np.ones(8))
    assert (ops.convert_to_numpy(mixed) == values).all()


@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (0, 3, 1, 2), (3, 0, 1, 2)])
def test_a_view_is_mixed_as_its_values(axes):
    rng = np.random.default_rng(0)
    stored = rng.normal(size=(5, 3, 4, 5)).astype("float32")
    values = stored.transpose(axes)
    permutation, lam = rng.permutation(5), rng.uniform(size=5)
    view = ops.transpose(ops.convert_to_tensor(stored), axes)
    mixed = dlkit.ops.mix_up(view, permutation, lam)
    share = lam[:, None, None, None]
    np.testing.assert_allclose(
        ops.convert_to_numpy(mixed),
        share * values + (1 - share) * values[permutation],
        atol=1e-6,
    )
    if keras.config.backend() == "torch" and axes[0] == 0:  # no copy
        assert mixed.stride() == view.stride()


def distance(alpha, beta, count=20_000):
    """Kolmogorov's, from draws for `alpha` to Beta(beta, beta).

    At thresholds that float32 can tell from 0 and 1: a U-shaped Beta has more
    than a percent of its mass nearer to 1 than the last float32.
    """
    seed = keras.random.SeedGenerator(11)
    draws = ops.convert_to_numpy(dlkit.ops.sample_beta(alpha, (count,), seed))
    assert np.isfinite(draws).all()
    assert draws.min() >= 0 and draws.max() <= 1
    thresholds = stats.beta(1, 1).ppf(np.linspace(1e-5, 1 - 1e-5, 999))
    empirical = np.searchsorted(np.sort(draws), thresholds) / count
    gap = empirical - stats.beta(beta, beta).cdf(thresholds)
    return np.sqrt(count) * np.abs(gap).max()


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0, 8.0])
def test_sample_beta_is_beta(alpha):
    assert distance(alpha, alpha) < 1.95  # p = 0.001


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_another_beta_is_told_apart(alpha):
    assert distance(alpha, 1.15 * alpha) > 1.95
