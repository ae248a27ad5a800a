"""CoMHE: against float64 NumPy, and with its random state in the model."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests.ops.gradients import central_differences
from tests.ops.gradients import differentiated
from tests.running import slow_to_compile

CompressiveEnergy = dlkit.regularizers.CompressiveEnergy
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(9, 5))
PROJECTIONS = RNG.normal(size=(3, 9, 4))


def energy(columns, power, half_space, angular=False):
    """All pairs of columns, and of their negatives, one by one."""
    u = columns / np.linalg.norm(columns, axis=0)
    if half_space:
        u = np.concatenate([u, -u], axis=1)
    count = u.shape[1]
    terms = []
    for i in range(count):
        for j in range(i):
            d = np.linalg.norm(u[:, i] - u[:, j])
            if angular:
                d = np.arccos(np.clip(u[:, i] @ u[:, j], -1, 1)) / np.pi
            terms.append(d**-power if power else -np.log(d))
    return np.mean(terms)


def expected(kernel, **arguments):
    return np.mean([energy(p.T @ kernel, **arguments) for p in PROJECTIONS])


def ours(**arguments):
    def function(kernel):
        matrices = ops.convert_to_tensor(PROJECTIONS, "float32")
        return dlkit.ops.compressive_energy(kernel, matrices, **arguments)

    return differentiated(function)


@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize("half_space", [False, True])
@pytest.mark.parametrize("angular", [False, True])
def test_value_and_gradient(power, half_space, angular):
    arguments = {
        "power": power,
        "half_space": half_space,
        "angular": angular,
    }
    value, gradient = ours(**arguments)(KERNEL)
    assert value == pytest.approx(expected(KERNEL, **arguments), rel=1e-5)
    slopes = central_differences(lambda k: expected(k, **arguments), KERNEL)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-3, atol=1e-5)


def test_one_projection_that_keeps_all_is_the_energy_itself():
    identity = ops.convert_to_tensor(np.eye(9)[None], "float32")
    for angular in (False, True):
        ours = dlkit.ops.compressive_energy(
            ops.convert_to_tensor(KERNEL, "float32"), identity, angular=angular
        )
        plain = dlkit.ops.hyperspherical_energy(
            ops.convert_to_tensor(KERNEL, "float32"), angular=angular
        )
        assert float(ours) == pytest.approx(float(plain), rel=1e-6)


def test_degenerate_kernels_are_finite():
    for kernel in (np.ones((9, 5)), np.zeros((9, 5)), 1e20 * KERNEL):
        value, gradient = ours()(kernel)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    opposite = np.concatenate([KERNEL, -KERNEL], axis=1)
    for half_space in (False, True):
        arguments = {"half_space": half_space, "angular": True}
        value, gradient = ours(**arguments)(opposite)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        if not half_space:
            right = expected(opposite, power=2, **arguments)
            assert value == pytest.approx(right, rel=1e-5)
    single = ops.convert_to_tensor(KERNEL[:, :1], "float32")
    matrices = ops.convert_to_tensor(PROJECTIONS, "float32")
    assert float(dlkit.ops.compressive_energy(single, matrices)) == 0.0
    kernel = ops.convert_to_tensor(KERNEL, "float32")  # projected on a line
    assert float(dlkit.ops.compressive_energy(kernel, matrices[..., :1])) == 0.0


X = RNG.normal(size=(12, 9)).astype("float32")
Y = RNG.normal(size=(12, 3)).astype("float32")


def compiled(part, optimizer=None):
    keras.utils.set_random_seed(3)
    net = keras.Sequential(
        [
            keras.Input((9,)),
            layers.Dense(5, name="hidden"),
            layers.Dense(3, name="output"),
        ]
    )
    model = dlkit.attach(net, *([part] if part else []))
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse")
    return model


def part(factor=1.0, **arguments):
    return CompressiveEnergy(
        factor, dimension=4, projections=3, seed=1, **arguments
    )


def fit(model, epochs=4, **arguments):
    return model.fit(
        X,
        Y,
        batch_size=12,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **arguments,
    ).history["loss"]


def test_each_step_draws_anew():
    still = compiled(part(include="hidden"), keras.optimizers.SGD(0.0))
    losses = np.array(fit(still))
    plain = still.evaluate(X, Y, verbose=0)  # without the penalty
    assert len(set(losses)) == len(losses)
    kernel = ops.convert_to_numpy(still.get_layer("hidden").kernel)
    draws = [
        np.mean(
            [energy(RNG.normal(size=(4, 9)) @ kernel, 2, True) for _ in "123"]
        )
        for _ in range(400)
    ]
    added = losses - plain
    assert np.min(draws) * 0.8 < added.min() < added.max() < 1.2 * np.max(draws)


def test_a_kernel_in_few_dimensions_is_taken_as_it_is():
    model = compiled(part(include="output"), keras.optimizers.SGD(0.0))
    wide = CompressiveEnergy(dimension=5, include="output")
    unprojected = compiled(wide, keras.optimizers.SGD(0.0))
    kernel = ops.convert_to_numpy(model.get_layer("output").kernel)
    added = fit(unprojected, 1)[0] - unprojected.evaluate(X, Y, verbose=0)
    plain = float(dlkit.ops.hyperspherical_energy(kernel))
    assert added == pytest.approx(plain, rel=1e-4)
    assert fit(model, 1)[0] != fit(unprojected, 1)[0]


@slow_to_compile
def test_it_lowers_the_energy():
    gentle = CompressiveEnergy(0.3, dimension=6, power=0, seed=1)
    model, without = compiled(gentle), compiled(None)
    fit(model, 30), fit(without, 30)

    def mean_energy(model):
        kernel = ops.convert_to_numpy(model.get_layer("hidden").kernel)
        return energy(kernel, 2, True)

    assert mean_energy(model) < 0.99 * mean_energy(without)


@slow_to_compile
@pytest.mark.parametrize("sam", [False, True])
def test_saved_and_resumed(sam, tmp_path):
    def optimizer():
        inner = keras.optimizers.SGD(0.1)
        return dlkit.optimizers.SAM(inner, rho=0.1) if sam else inner

    unbroken = compiled(part(), optimizer())
    losses = fit(unbroken)
    broken = compiled(part(), optimizer())
    fit(broken, 2)
    broken.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert fit(loaded, 4, initial_epoch=2) == losses[2:]


def test_factor_zero_and_frozen_layers():
    null = compiled(part(0.0))
    assert fit(null) == fit(compiled(None))
    frozen = compiled(part(include="hidden"))
    frozen.get_layer("hidden").trainable = False
    frozen.compile(keras.optimizers.SGD(0.0), "mse")
    plain = frozen.evaluate(X, Y, verbose=0)
    assert fit(frozen, 1)[0] == pytest.approx(plain, rel=1e-6)


def test_under_lora_it_is_that_of_the_kernel_in_effect():
    """Of the narrow kernel, which is not projected."""
    whole = CompressiveEnergy(dimension=9, include="hidden")
    model = compiled(whole, keras.optimizers.SGD(0.0))
    hidden = model.get_layer("hidden")
    hidden.enable_lora(2)
    hidden.lora_kernel_b.assign(RNG.normal(size=(2, 5)))
    kernel = ops.convert_to_numpy(hidden.kernel)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    added = fit(model, 1)[0] - model.evaluate(X, Y, verbose=0)
    assert added == pytest.approx(energy(kernel, 2, True), rel=1e-4)
    hidden.trainable = False
    model.compile(keras.optimizers.SGD(0.0), "mse")
    added = fit(model, 1)[0] - model.evaluate(X, Y, verbose=0)
    assert added == pytest.approx(0, abs=1e-5)


def test_layers_that_are_not_built_stay_out():
    net = keras.Model()
    net.first, net.late = layers.Dense(5), layers.Dense(2)
    net.first.build((None, 9))
    penalty = CompressiveEnergy(dimension=9).penalty(net)
    kernel = ops.convert_to_numpy(net.first.kernel)
    penalty = float(ops.convert_to_numpy(penalty))
    assert penalty == pytest.approx(energy(kernel, 2, True), rel=1e-4)


def test_bad_input():
    for arguments in (
        {"factor": -1.0},
        {"dimension": 1},
        {"projections": 0},
        {"power": 3},
        {"half_space": "no"},
        {"include": "("},
        {"include": b"a"},
        {"exclude": len},
    ):
        with pytest.raises(ValueError, match="Received"):
            CompressiveEnergy(**arguments)
    net = keras.Sequential([layers.Dense(3)])
    late = dlkit.attach(net, part(include="nothing"))
    late.compile("sgd", "mse")
    net.build((None, 9))
    for action in (
        lambda: dlkit.attach(net, part(include="nothing")),
        lambda: late.compile("sgd", "mse"),
    ):
        with pytest.raises(
            ValueError, match="^`include`.* at least one kernel"
        ):
            action()


def test_kernels_are_looked_for_once():
    model = compiled(part())
    (energy,) = model.parts
    fit(model, 1)
    assert energy._kernels(model.model) is energy._kernels(model.model)
    assert set(energy.energies(model.model)) == {
        model.get_layer(name).kernel.path for name in ("hidden", "output")
    }
    assert energy._flatten_layers(include_self=False) == []
    energy.include = "output"  # what `compile` sees
    model.compile("sgd", "mse")
    assert len(energy.energies(model.model)) == 1
