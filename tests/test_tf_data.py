"""Batch parts in a `tf.data` pipeline, on the TensorFlow backend."""

import keras
import numpy as np

import keras_dlkit as dlkit

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def test_mix_up_in_a_pipeline():
        x = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")
        y = np.arange(10) % 3
        part = dlkit.layers.MixUp(1.0, num_classes=3, seed=0)
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
        dataset = dataset.map(lambda *batch: part(batch))
        net = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3, "softmax")]
        )
        net.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
        net.fit(dataset, epochs=2, shuffle=False, verbose=0)
        batches = list(dataset)
        assert [len(b[0]) for b in batches] == [4, 4, 2]
        assert (batches[0][0].numpy() != x[:4]).any()
        np.testing.assert_allclose(batches[0][1].numpy().sum(1), 1, rtol=1e-6)
        again = list(dataset)
        assert (again[0][0].numpy() != batches[0][0].numpy()).any()

    def test_mix_up_under_xla():
        part = dlkit.layers.MixUp(0.2, num_classes=3, seed=0)
        step = tf.function(part.call, jit_compile=True)
        x, y = step((tf.ones((4, 2)), tf.constant([0, 1, 2, 0])))
        assert x.shape == (4, 2) and y.shape == (4, 3)

    def test_weights_of_unknown_length():
        """Time steps that a signature does not know."""
        y = np.ones((8, 5, 2), "float32")
        weights = np.full((8, 5), 2.0, "float32")
        dataset = tf.data.Dataset.from_generator(
            lambda: iter([(y, y, weights)] * 2),
            output_signature=tuple(
                tf.TensorSpec(shape, tf.float32)
                for shape in [(None, None, 2), (None, None, 2), (None, None)]
            ),
        )
        net = keras.Sequential([keras.Input((None, 2)), keras.layers.Dense(2)])
        model = dlkit.attach(net, dlkit.layers.MixUp(1.0))
        model.compile("sgd", "mse")
        history = model.fit(
            dataset.repeat(), steps_per_epoch=2, shuffle=False, verbose=0
        )
        assert np.isfinite(history.history["loss"][0])
