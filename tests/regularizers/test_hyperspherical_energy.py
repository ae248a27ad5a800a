import inspect
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests.ops.gradients import BACKEND
from tests.running import slow_to_compile

ROOT = pathlib.Path(__file__).parents[2]
Energy, Sum = dlkit.regularizers.HypersphericalEnergy, dlkit.regularizers.Sum
X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.arange(12) % 3


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


def numbers(tensors):
    return [number(t) for t in tensors]


def network(regularizer=None):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, "tanh", kernel_regularizer=regularizer),
            layers.Dense(3, name="output"),
        ]
    )


def trained(model, **arguments):
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **arguments,
    )
    history = model.fit(
        X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0
    ).history
    weights = [ops.convert_to_numpy(w) for w in model.weights]
    return history["loss"], weights


def test_it_is_the_factor_times_the_energy():
    kernel = ops.convert_to_tensor(X)
    for arguments in (
        {"power": 0},
        {"power": 1, "half_space": False},
        {"angular": True, "axis": 0},
        {"epsilon": 0.5, "block_size": 2},
    ):
        expected = number(dlkit.ops.hyperspherical_energy(kernel, **arguments))
        value = number(Energy(0.3, **arguments)(kernel))
        assert value == pytest.approx(0.3 * expected, rel=1e-6)


def test_every_argument_reaches_the_formula(monkeypatch):
    """The size of the blocks, too, which the value does not show."""
    arguments = {
        "power": 1,
        "half_space": False,
        "angular": True,
        "axis": (0,),
        "epsilon": 0.5,
        "block_size": 2,
    }
    module = inspect.getmodule(Energy)
    monkeypatch.setattr(module, "hyperspherical_energy", lambda x, **kw: kw)
    assert Energy(**arguments).energy(X) == arguments


def test_it_is_in_the_loss_and_training_lowers_it():
    losses, _ = trained(network(Energy(0.5)))
    model = network(Energy(0.5))
    (energy,) = numbers(model.losses)
    plain, _ = trained(network())
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    with_energy = model.evaluate(X, Y, verbose=0)
    without = network()
    without.compile(loss=model.loss)
    assert with_energy == pytest.approx(
        without.evaluate(X, Y, verbose=0) + energy, rel=1e-5
    )
    assert losses[0] > plain[0]
    model.fit(X, Y, epochs=20, verbose=0)
    assert number(model.losses[0]) < energy


def test_factor_zero_changes_nothing():
    losses, weights = trained(network(Energy(0)))
    plain_losses, plain_weights = trained(network())
    assert losses == plain_losses
    for actual, expected in zip(weights, plain_weights):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.skipif(BACKEND == "torch", reason="no XLA")
def test_compiled_by_xla_it_is_the_same():
    eager = trained(network(Energy(0.5)), jit_compile=False)
    compiled = trained(network(Energy(0.5)), jit_compile=True)
    for actual, expected in zip(compiled[1], eager[1]):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_it_is_float32_in_mixed_precision(policy):
    (expected,) = numbers(network(Energy()).losses)
    keras.config.set_dtype_policy(policy)
    model = network(Energy())
    model(X)
    (energy,) = model.losses
    assert keras.backend.standardize_dtype(energy.dtype) == "float32"
    assert number(energy) == expected
    losses, _ = trained(model)
    assert np.isfinite(losses).all()


def test_narrow_weights_have_a_float32_energy():
    layer = layers.Dense(6, kernel_regularizer=Energy(), dtype="bfloat16")
    layer.build((None, 4))
    (energy,) = layer.losses
    kernel = ops.cast(ops.convert_to_tensor(layer.kernel), "float32")
    assert number(energy) == pytest.approx(
        number(dlkit.ops.hyperspherical_energy(kernel)), rel=1e-6
    )


def test_frozen_layers_cost_nothing():
    model = network(Energy())
    model.layers[0].trainable = False
    assert model.losses == []
    _, weights = trained(model)
    np.testing.assert_array_equal(
        weights[0], ops.convert_to_numpy(network().weights[0])
    )
    model.layers[0].trainable = True
    assert len(model.losses) == 1


def test_a_layer_that_is_built_late_has_it():
    layer = layers.Dense(5, kernel_regularizer=Energy())
    model = keras.Sequential([layer])
    model(X)
    assert len(model.losses) == 1


def test_with_sam_and_mix_up():
    model = dlkit.attach(
        network(Energy(0.1)), dlkit.layers.MixUp(0.2, num_classes=3)
    )
    model.compile(
        dlkit.optimizers.SAM(keras.optimizers.SGD(0.1), rho=0.05),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    before = number(model.losses[0])
    losses = model.fit(X, Y, epochs=10, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert number(model.losses[0]) < before


def test_the_gradient_counts_in_both_passes_of_sam():
    """With the energy alone for a loss, SAM moves by the gradient at w + e."""
    model = dlkit.attach(network(Energy()))
    model.compile(
        dlkit.optimizers.SAM(keras.optimizers.SGD(1.0), rho=0.5), loss=zero
    )
    model.fit(X, Y, batch_size=12, verbose=0)
    sam = ops.convert_to_numpy(model.weights[0])
    plain = network(Energy())
    plain.compile(keras.optimizers.SGD(1.0), loss=zero)
    plain.fit(X, Y, batch_size=12, verbose=0)
    start = ops.convert_to_numpy(network().weights[0])
    sgd = ops.convert_to_numpy(plain.weights[0])
    assert np.abs(sgd - start).max() > 1e-3
    assert np.abs(sam - sgd).max() > 1e-3


def zero(y, y_pred):
    return 0.0 * ops.sum(y_pred, axis=-1)


# Files.


@pytest.mark.parametrize(
    "axis", [-1, (-2, -1), [0, 1], {(3, 2, 4): (1, 2), (2, 4, 3): -1}]
)
def test_config(axis):
    regularizer = Energy(
        0.3,
        power=1,
        half_space=False,
        angular=True,
        axis=axis,
        epsilon=1e-4,
        block_size=64,
    )
    config = json.loads(json.dumps(keras.regularizers.serialize(regularizer)))
    assert config["registered_name"] == "keras_dlkit>HypersphericalEnergy"
    revived = keras.regularizers.get(config)
    assert revived.get_config() == regularizer.get_config()
    assert vars(revived) == vars(regularizer)


def test_sum():
    regularizer = Sum([keras.regularizers.L2(0.1), "l1", Energy(0.2)])
    config = json.loads(json.dumps(keras.regularizers.serialize(regularizer)))
    revived = keras.regularizers.get(config)
    kernel = ops.convert_to_tensor(X)
    expected = sum(
        number(r(kernel))
        for r in (keras.regularizers.L2(0.1), keras.regularizers.L1(0.01))
    ) + number(Energy(0.2)(kernel))
    assert number(revived(kernel)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="one or more.*\\[\\]"):
        Sum([])


RELOAD = """
import sys, json, keras, keras_dlkit
model = keras.saving.load_model(sys.argv[1])
print(json.dumps([float(keras.ops.convert_to_numpy(v)) for v in model.losses]))
"""


def reloaded_losses(model, path):
    """Those of the model in a process that has seen nothing but the file."""
    model.save(path)
    output = subprocess.run(
        [sys.executable, "-c", RELOAD, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


@slow_to_compile
def test_reload_in_a_fresh_process(tmp_path):
    x = keras.Input((6, 8))
    h = layers.MultiHeadAttention(2, 3, kernel_regularizer="l2")(x, x)
    model = keras.Model(x, layers.Dense(3)(h))
    dlkit.regularizers.regularize(model, Energy(0.1))
    losses = reloaded_losses(model, tmp_path / "model.keras")
    assert len(losses) == 5
    np.testing.assert_allclose(losses, numbers(model.losses), rtol=1e-6)


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": -1.0}, "`factor`.*-1.0"),
        ({"factor": float("nan")}, "`factor`.*nan"),
        ({"power": 3}, "`power` must be one of.*3"),
        ({"half_space": "no"}, "`half_space` must be one of.*no"),
        ({"angular": None}, "`angular` must be one of.*None"),
        ({"axis": ()}, "`axis` must name.*axis=()"),
        ({"axis": {}}, "`axis` must name.*axis={}"),
        ({"axis": {(2, 3): ()}}, "`axis` must name"),
        ({"epsilon": -1}, "`epsilon`.*-1"),
        ({"block_size": 0}, "`block_size`.*0"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        Energy(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"factor": "1"},
        {"power": True},
        {"axis": None},
        {"axis": {(2, 3): "last"}},
    ],
)
def test_bad_types(arguments):
    with pytest.raises(TypeError, match=next(iter(arguments))):
        Energy(**arguments)


def test_a_single_neuron_costs_nothing():
    layer = layers.Dense(1, kernel_regularizer=Energy())
    layer.build((None, 4))
    assert numbers(layer.losses) == [0.0]
