import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests.running import slow_to_compile

Energy = dlkit.regularizers.HypersphericalEnergy
Logger = dlkit.callbacks.HypersphericalEnergyLogger


def fit(model, **arguments):
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = np.ones((8, 4)), np.ones((8, 3))
    callbacks = [Logger()]
    return model.fit(x, y, callbacks=callbacks, verbose=0, **arguments).history


@slow_to_compile
def test_it_logs_the_energy_of_each_kernel():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
    model.add(layers.Dense(3, name="late"))
    dlkit.regularizers.regularize(model, Energy(0.5, half_space=False))
    history = fit(model, epochs=3, validation_split=0.5)
    first, last = (w.path for w in model.weights[::2])
    assert len(history[f"energy/{first}"]) == 3
    energy = dlkit.ops.hyperspherical_energy(
        model.layers[1].kernel, half_space=False
    )
    np.testing.assert_allclose(
        history[f"energy/{last}"][-1], ops.convert_to_numpy(energy), rtol=1e-6
    )


def test_of_an_attached_model_too():
    net = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    dlkit.regularizers.regularize(net, Energy(0.5))
    history = fit(dlkit.attach(net))
    assert any(key.startswith("energy/") for key in history)


def test_of_a_compressive_energy_without_projection():
    net = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
    net.add(layers.Dense(3, trainable=False))
    part = dlkit.regularizers.CompressiveEnergy(dimension=2, power=1)
    history = fit(dlkit.attach(net, part))
    kernel = net.layers[0].kernel
    assert set(history) == {f"energy/{kernel.path}", "loss"}
    energy = dlkit.ops.hyperspherical_energy(kernel, power=1)
    np.testing.assert_allclose(
        history[f"energy/{kernel.path}"][-1],
        ops.convert_to_numpy(energy),
        rtol=1e-6,
    )


def test_nothing_to_log():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="which has none"):
        fit(model)


def test_frozen_and_adapted_kernels():
    """None of the first; of the second the kernel in effect, by its path."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, kernel_regularizer=Energy()),
            layers.Dense(3),
        ]
    )
    first, last = model.layers
    first.trainable = False
    assert list(fit(model)) == ["loss"]
    last.enable_lora(2)
    path = last.weights[0].path
    dlkit.regularizers.regularize(model, Energy(), include=path)
    history = fit(model)
    energy = dlkit.ops.hyperspherical_energy(last.kernel)
    assert set(history) == {f"energy/{path}", "loss"}
    np.testing.assert_allclose(
        history[f"energy/{path}"][-1], ops.convert_to_numpy(energy), rtol=1e-5
    )
