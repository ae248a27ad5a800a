import keras
import numpy as np
import pytest
from keras import layers

import keras_dlkit as dlkit
from keras_dlkit.layers import Supermask
from tests.sparsity import nets
from tests.sparsity.nets import array

sparsity = dlkit.sparsity


@pytest.mark.parametrize("make", [nets.branched, nets.nested])
def test_a_supermask_of_a_model_trains_and_strips_to_the_same_outputs(make):
    model = make()
    model.compile("adam", "mse")
    before = [array(w) for w in model.weights]
    masked = sparsity.supermask(model, 0.4, seed=1)
    assert model.compiled and not masked.compiled
    assert [w.name for w in masked.trainable_weights] == [
        "kernel_scores"
    ] * len([w for w in model.weights if w.name == "kernel"])
    masked.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    x = nets.data(model)
    masked.fit(x, np.ones((5, 2)), epochs=2, verbose=0)

    plain = sparsity.strip(masked)
    assert not plain.compiled and not hasattr(plain, "optimizer")
    assert nets.names(plain) == nets.names(model)
    assert not any(
        "keras_dlkit" in type(layer).__module__ for layer in plain.layers
    )
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), masked.predict(x, verbose=0), atol=1e-6
    )
    for w in plain.weights:
        if w.name == "kernel":
            assert (array(w) == 0).sum() == round(0.4 * array(w).size)
            assert not np.signbit(array(w)[array(w) == 0]).any()
        assert w.trainable == ("moving" not in w.name)
    for a, b in zip(before, model.weights):
        np.testing.assert_array_equal(a, array(b))


def test_masks_on_the_weights_of_a_trained_model():
    model = nets.randomize(nets.branched())
    x = nets.data(model)
    masked = sparsity.supermask(model, 0.0, weights=None)
    np.testing.assert_array_equal(
        masked.predict(x, verbose=0), model.predict(x, verbose=0)
    )


def test_layers_are_chosen_by_name_and_seeds_differ():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, name="a"),
            layers.Dense(4, name="b"),
            layers.BatchNormalization(name="norm_head"),
            layers.Dense(2, name="head"),
        ]
    )
    nets.randomize(model)
    masked = sparsity.supermask(model, exclude="head", seed=3)
    kinds = [type(layer) for layer in masked.layers]
    left_out = [layers.BatchNormalization, layers.Dense]
    assert kinds == [Supermask, Supermask, *left_out]
    for old, new in zip(model.layers[2:], masked.layers[2:]):
        for a, b in zip(old.weights, new.weights, strict=True):
            np.testing.assert_array_equal(array(a), array(b))
    a, b = (array(layer.kernels[0]) for layer in masked.layers[:2])
    assert (a != b).any()
    again = sparsity.supermask(model, exclude="head", seed=3)
    np.testing.assert_array_equal(a, array(again.layers[0].kernels[0]))
    with pytest.raises(ValueError, match="at least one layer.*'a', 'b'"):
        sparsity.supermask(model, include="conv")
    with pytest.raises(ValueError, match="leave out.*exclude='tail'"):
        sparsity.supermask(model, exclude="tail")


def test_what_cannot_be_copied_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    own = Own(name="own")
    with pytest.raises(ValueError, match="'own', which is not built"):
        sparsity.strip(own)
    own(np.ones((1, 2)))
    with pytest.raises(ValueError, match="Sequential or Functional.*'own'"):
        sparsity.strip(own)
    with pytest.raises(TypeError, match="must be a `keras.Model`"):
        sparsity.strip(layers.Dense(2))
    x = keras.Input((4, 3))
    net = keras.Model(x, layers.MultiHeadAttention(2, 3, name="mha")(x, x))
    with pytest.raises(ValueError, match="exclude='mha'"):
        sparsity.supermask(net)
    inside = layers.TimeDistributed(Supermask(layers.Dense(2), name="deep"))
    net = keras.Sequential([keras.Input((4, 3)), inside])
    with pytest.raises(ValueError, match="another layer.*deep"):
        sparsity.strip(net)


def test_an_attached_model_loses_all_that_is_ours():
    model = nets.nested()
    energy = dlkit.regularizers.HypersphericalEnergy(0.1)
    dlkit.regularizers.regularize(model, energy)
    attached = dlkit.attach(model, dlkit.layers.MixUp(0.2))
    plain = sparsity.strip(attached)
    assert "keras_dlkit" not in plain.to_json()
    assert "keras_dlkit" in model.to_json()  # the user's own is left alone
    x = nets.data(model)
    np.testing.assert_array_equal(
        plain.predict(x, verbose=0), model.predict(x, verbose=0)
    )
