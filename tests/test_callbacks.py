"""What people put around a model, tried with an attached one."""

import shutil

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from tests import zoo
from tests.running import assert_same
from tests.running import slow_to_compile
from tests.running import weights_of

BACKEND = keras.config.backend()


def start(**sgd):
    model, data, arguments = zoo.make("sequential")
    model = dlkit.attach(model, dlkit.layers.MixUp(0.4, num_classes=3, seed=1))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, **sgd)
    model.compile(
        dlkit.optimizers.SAM(optimizer, rho=0.2),
        **zoo.classifier("categorical_crossentropy"),
    )
    return model, data


def run(model, data, epochs, callbacks=()):
    return model.fit(
        **data,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )


class Stop(keras.callbacks.Callback):
    """Breaks the training off, as a killed process does."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_backup_and_restore_goes_on_as_unbroken(tmp_path):
    unbroken, data = start()
    run(unbroken, data, 4)

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    model, _ = start()
    with pytest.raises(KeyboardInterrupt):
        run(model, data, 4, [backup(), Stop()])
    resumed, _ = start()
    history = run(resumed, data, 4, [backup()])
    assert history.epoch == [2, 3]
    assert_same(weights_of(resumed), weights_of(unbroken))


def test_model_checkpoint_of_model_and_weights(tmp_path):
    model, data = start()
    whole = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    weights = keras.callbacks.ModelCheckpoint(
        tmp_path / "model.weights.h5", save_weights_only=True
    )
    run(model, data, 2, [whole, weights])
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(weights_of(loaded), weights_of(model))
    other, _ = start()
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same(weights_of(other), weights_of(model))


@slow_to_compile
def test_swap_ema_weights():
    model, data = start(use_ema=True, ema_momentum=0.5)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    run(model, data, 2, [swap])
    averages = model.optimizer._model_variables_moving_average
    for variable, average in zip(model.trainable_variables, averages):
        np.testing.assert_allclose(
            ops.convert_to_numpy(variable),
            ops.convert_to_numpy(average),
            atol=1e-6,
        )


@slow_to_compile
def test_learning_rate_callbacks():
    model, data = start()
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    run(model, data, 2, [halve])
    rate = ops.convert_to_numpy(model.optimizer.learning_rate)
    assert float(rate) == pytest.approx(0.025)
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.5, patience=0, min_delta=100.0
    )
    run(model, data, 2, [plateau])
    rate = ops.convert_to_numpy(model.optimizer.learning_rate)
    assert float(rate) < 0.025


@slow_to_compile
def test_keras_tuner(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")

    def build(choices):
        model, _, _ = zoo.make("sequential")
        model = dlkit.attach(model)
        rho = choices.Choice("rho", [0.05, 0.2])
        model.compile(dlkit.optimizers.SAM("sgd", rho=rho), **zoo.classifier())
        return model

    tuner = keras_tuner.GridSearch(
        build, objective="val_accuracy", max_trials=2, directory=tmp_path
    )
    x, y = zoo.rows(), zoo.labels()
    tuner.search(x, y, validation_data=(x, y), verbose=0)
    assert tuner.get_best_hyperparameters()[0].get("rho") in (0.05, 0.2)
    assert isinstance(tuner.get_best_models()[0], dlkit.Attached)


def test_plot_model(tmp_path):
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is no Python package")
    model, _ = start()
    dot = keras.utils.model_to_dot(model, show_shapes=True)
    assert "attached" in dot.to_string()
    # One box: Keras draws the layers of its own graphs.
    keras.utils.plot_model(model, tmp_path / "attached.png")
    assert (tmp_path / "attached.png").exists()
    keras.utils.plot_model(model.model, tmp_path / "model.png")
    assert (tmp_path / "model.png").stat().st_size > 1000


if BACKEND == "tensorflow":
    import tensorflow as tf

    def test_tensorboard(tmp_path):
        model, data = start()
        board = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1)
        run(model, data, 1, [board])
        assert list(tmp_path.rglob("events.out.tfevents*"))

    def test_export(tmp_path):
        model, data = start()
        run(model, data, 1)
        model.export(tmp_path / "served", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "served"))
        np.testing.assert_allclose(
            served.serve(data["x"]).numpy(),
            model.predict(data["x"], verbose=0),
            atol=1e-6,
        )
