"""Batch parts in a `tf.data` pipeline, on the TensorFlow backend."""

import keras
import numpy as np
import pytest

import keras_dlkit as dlkit

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    from keras_dlkit.layers import CutMix
    from keras_dlkit.layers import CutOut
    from keras_dlkit.layers import MixUp
    from keras_dlkit.layers import RandomChoice

    PARTS = {
        "mix_up": lambda: MixUp(1.0, num_classes=3, seed=0),
        "cut_mix": lambda: CutMix(num_classes=3, seed=0),
        "cut_mix_batch": lambda: CutMix(
            num_classes=3, per_sample=False, seed=0
        ),
        "cut_out": lambda: CutOut(2, count=2, probability=0.9, seed=0),
        "choice": lambda: RandomChoice(
            [MixUp(1.0, num_classes=3), CutMix(), CutOut(2)], seed=0
        ),
        "choice_a_sample": lambda: RandomChoice(
            [MixUp(1.0, num_classes=3), CutMix()], per_batch=False, seed=0
        ),
    }
    X = np.random.default_rng(0).uniform(size=(10, 5, 4, 2)).astype("float32")
    Y = np.arange(10) % 3

    def dataset(part, *data):
        batches = tf.data.Dataset.from_tensor_slices(data).batch(3)
        return batches.map(lambda *batch: part(batch))

    @pytest.mark.parametrize("name", PARTS)
    def test_in_a_pipeline(name):
        """Batches of 3 and, of a dynamic size, a last one of 1."""
        batches = dataset(PARTS[name](), X, Y)
        net = keras.Sequential(
            [
                keras.Input((5, 4, 2)),
                keras.layers.Flatten(),
                keras.layers.Dense(3, "softmax"),
            ]
        )
        kind = "sparse_categorical" if name == "cut_out" else "categorical"
        net.compile("sgd", f"{kind}_crossentropy", metrics=["accuracy"])
        net.fit(batches, epochs=2, shuffle=False, verbose=0)
        first, again = list(batches), list(batches)
        assert [len(b[0]) for b in first] == [3, 3, 3, 1]
        x = np.concatenate([b[0] for b in first])
        assert (x != X).any()
        assert (x != np.concatenate([b[0] for b in again])).any()
        if name != "cut_out":
            for _, y in first:
                np.testing.assert_allclose(y.numpy().sum(1), 1, rtol=1e-6)

    @pytest.mark.parametrize("name", PARTS)
    def test_under_xla(name):
        part = PARTS[name]()
        step = tf.function(part.call, jit_compile=True)
        x, y = step((tf.constant(X[:4]), tf.constant(Y[:4])))
        assert x.shape == (4, 5, 4, 2)
        assert y.shape == ((4,) if name == "cut_out" else (4, 3))

    def test_images_of_unknown_size():
        """With the masks that go with them, and weights."""
        part = CutMix(seed=0)
        signature = tuple(
            tf.TensorSpec(shape, dtype)
            for shape, dtype in [
                ((None, None, None, 2), tf.uint8),
                ((None, None, None), tf.int32),
                ((None,), tf.float32),
            ]
        )
        x = (255 * X).astype("uint8")
        masks = x[..., 0].astype("int32")
        weights = np.ones(10, "float32")
        mapped = tf.data.Dataset.from_generator(
            lambda: iter([(x, masks, weights)]), output_signature=signature
        ).map(lambda *batch: part(batch))
        assert mapped.element_spec[0].shape.as_list() == [None, None, None, 2]
        (mixed, y, w), *_ = list(mapped)
        assert mixed.dtype == tf.uint8 and y.dtype == tf.int32
        assert (mixed.numpy() != x).any()
        np.testing.assert_array_equal(mixed.numpy()[..., 0], y.numpy())
        assert w.shape == (10, 5, 4)

    def test_masks_that_turn_out_to_be_of_another_size():
        part = CutMix(seed=0)
        step = tf.function(
            lambda x, y: part((x, y)),
            input_signature=[
                tf.TensorSpec((None, None, None, 2), tf.float32),
                tf.TensorSpec((None, None, None), tf.int32),
            ],
        )
        step(X, X[..., 0].astype("int32"))
        with pytest.raises(tf.errors.InvalidArgumentError):
            step(X, np.zeros((len(X), 5, 3), "int32"))

    def test_half_precision_and_policies():
        keras.config.set_dtype_policy("mixed_float16")
        for dtype in (tf.float16, tf.bfloat16):
            x = tf.cast(X, dtype)
            for part in (MixUp(1.0, num_classes=3), CutMix(num_classes=3)):
                batch = next(iter(dataset(part, x, Y)))
                assert batch[0].dtype == dtype
                assert batch[1].dtype == tf.float32

    def test_weights_of_unknown_length():
        """Time steps that a signature does not know."""
        y = np.ones((8, 5, 2), "float32")
        weights = np.full((8, 5), 2.0, "float32")
        batches = tf.data.Dataset.from_generator(
            lambda: iter([(y, y, weights)] * 2),
            output_signature=tuple(
                tf.TensorSpec(shape, tf.float32)
                for shape in [(None, None, 2), (None, None, 2), (None, None)]
            ),
        )
        for part in (MixUp(1.0), CutMix()):
            net = keras.Sequential(
                [keras.Input((None, 2)), keras.layers.Dense(2)]
            )
            model = dlkit.attach(net, part)
            model.compile("sgd", "mse")
            history = model.fit(
                batches.repeat(), steps_per_epoch=2, shuffle=False, verbose=0
            )
            assert np.isfinite(history.history["loss"][0])
