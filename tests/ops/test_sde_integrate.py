"""Against float64 loops written here, closed forms and orders."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit

integrate = dlkit.ops.sde_integrate


def reference(f, g, x, z, t_end, solver):
    """The schemes as the books have them, in float64."""
    dt = t_end / len(z)
    for k, normal in enumerate(z):
        t, dw = k * dt, np.sqrt(dt) * normal
        if solver == "euler":
            x = x + f(t, x) * dt + g(t, x) * dw
        elif solver == "heun":
            there = x + f(t, x) * dt + g(t, x) * dw
            drift = (f(t, x) + f(t + dt, there)) / 2
            x = x + drift * dt + g(t, x) * dw
        else:
            aside = x + f(t, x) * dt + g(t, x) * np.sqrt(dt)
            slope = (g(t, aside) - g(t, x)) / np.sqrt(dt)
            x = x + f(t, x) * dt + g(t, x) * dw
            x = x + 0.5 * slope * (dw**2 - dt)
    return x


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("solver", ["euler", "heun", "milstein"])
def test_against_a_loop_in_float64(solver, unroll):
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(5, 3)), rng.normal(size=(4, 5, 3))
    end = integrate(
        lambda t, x: ops.sin(x) + t,
        lambda t, x: 0.5 * ops.cos(x) + 0.1 * t,
        ops.convert_to_tensor(x, "float32"),
        ops.convert_to_tensor(z, "float32"),
        num_steps=4,
        t_end=2.0,
        solver=solver,
        unroll=unroll,
    )
    expected = reference(
        lambda t, x: np.sin(x) + t,
        lambda t, x: 0.5 * np.cos(x) + 0.1 * t,
        x,
        z,
        2.0,
        solver,
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(end), expected, rtol=2e-5, atol=2e-5
    )


def gbm_error(solver, steps, fine):
    """The mean distance from the closed form at time 1, path by path."""
    a, b, paths = 0.5, 0.8, fine.shape[1]
    z = fine.reshape(steps, -1, paths).sum(1) * np.sqrt(steps / len(fine))
    end = integrate(
        lambda t, x: a * x,
        lambda t, x: b * x,
        ops.ones((paths,)),
        ops.convert_to_tensor(z, "float32"),
        num_steps=steps,
        t_end=1.0,
        solver=solver,
    )
    w = fine.sum(0) / np.sqrt(len(fine))
    exact = np.exp((a - b**2 / 2) + b * w)
    return np.abs(ops.convert_to_numpy(end) - exact).mean()


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 0.5), ("milstein", 1.0)]
)
def test_strong_order_on_geometric_brownian_motion(solver, order):
    fine = np.random.default_rng(1).normal(size=(64, 3000))
    steps = (8, 16, 32, 64)
    errors = [gbm_error(solver, n, fine) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.12


def test_moments_of_ornstein_uhlenbeck():
    """Mean and variance of the closed form; additive noise, at the start."""
    theta, sigma, paths = 1.5, 0.7, 20_000
    z = np.random.default_rng(2).normal(size=(64, paths, 1))
    end = ops.convert_to_numpy(
        integrate(
            lambda t, x: -theta * x,
            sigma * ops.ones((paths, 1)),
            2.0 * ops.ones((paths, 1)),
            ops.convert_to_tensor(z, "float32"),
            num_steps=64,
            t_end=1.0,
            solver="heun",
        )
    )
    variance = sigma**2 * (1 - np.exp(-2 * theta)) / (2 * theta)
    assert abs(end.mean() - 2 * np.exp(-theta)) < 4 * np.sqrt(variance / paths)
    assert abs(end.var() / variance - 1) < 0.05


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_without_noise(solver, order):
    def error(steps):
        end = integrate(
            lambda t, x: ops.cos(t) * x,
            None,
            ops.ones((1, 1)),
            num_steps=steps,
            t_end=2.0,
            solver=solver,
        )
        exact = np.exp(np.sin(2.0))
        return abs(float(ops.convert_to_numpy(end)[0, 0]) - exact)

    assert abs(np.log2(error(8) / error(16)) - order) < 0.35


def test_noise_that_is_missing_or_of_another_shape_is_refused():
    x = ops.ones((2, 3))
    for brownian, message in (
        (None, "brownian=None"),
        (np.zeros((3, 2, 3)), r"\(4, 2, 3\).*Received: \(3, 2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            integrate(lambda t, x: x, x, x, brownian, num_steps=4, t_end=1.0)


def test_floats_of_16_bits_are_carried_in_float32():
    """1,000 steps, each of which float16 would round away."""
    end = integrate(
        lambda t, x: 1e-4 * ops.ones_like(x),
        None,
        ops.ones((2,), dtype="float16"),
        num_steps=1000,
        t_end=1000.0,
    )
    assert keras.backend.standardize_dtype(end.dtype) == "float32"
    np.testing.assert_allclose(ops.convert_to_numpy(end), 1.1, rtol=1e-3)


def test_categorical_uncertainty():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=(6, 5))
    found = dlkit.ops.categorical_uncertainty(ops.convert_to_tensor(p))
    mean = p.mean(0)
    total = -(mean * np.log(mean)).sum(-1)
    aleatoric = -(p * np.log(p)).sum(-1).mean(0)
    kullback = (p * np.log(p / mean)).sum(-1).mean(0)
    for name, value in {
        "mean": mean,
        "std": p.std(0, ddof=1),
        "total": total,
        "aleatoric": aleatoric,
        "epistemic": kullback,
    }.items():
        np.testing.assert_allclose(
            ops.convert_to_numpy(found[name]), value, rtol=1e-4, atol=1e-6
        )
    certain = dlkit.ops.categorical_uncertainty(
        ops.convert_to_tensor(np.eye(3, dtype="float32")[None].repeat(2, 0))
    )
    assert float(ops.max(certain["total"])) == 0  # not NaN


def test_gaussian_uncertainty():
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(size=(6, 5, 2)), rng.uniform(1, 2, (6, 5, 2))
    found = dlkit.ops.gaussian_uncertainty(
        ops.convert_to_tensor(mean), ops.convert_to_tensor(scale)
    )
    for name, value in {
        "mean": mean.mean(0),
        "std": mean.std(0, ddof=1),
        "aleatoric": (scale**2).mean(0),
        "epistemic": mean.var(0, ddof=1),
        "total": (scale**2).mean(0) + mean.var(0, ddof=1),
    }.items():
        np.testing.assert_allclose(
            ops.convert_to_numpy(found[name]), value, rtol=1e-5
        )
