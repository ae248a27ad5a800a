"""Every function on models of other dtypes."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlkit as dlkit
from keras_dlkit.sparsity._encoding import as_array
from tests.running import slow_to_compile
from tests.sparsity import nets

sparsity = dlkit.sparsity


@slow_to_compile
@pytest.mark.parametrize("policy", ["bfloat16", "mixed_float16"])
def test_low_precision(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    net = nets.randomize(
        keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(12, "relu", name="a"),
                layers.Dense(3, name="b"),
            ]
        )
    )
    dtype = net.layers[0].kernel.dtype
    x = nets.data(net)
    masked = sparsity.supermask(net, 0.75, seed=0)
    plain = sparsity.strip(masked)
    assert plain.layers[0].kernel.dtype == dtype
    np.testing.assert_allclose(
        plain.predict(x, verbose=0).astype("float32"),
        masked.predict(x, verbose=0).astype("float32"),
        atol=0.05,
    )
    size = 1 if dtype == "float32" else 2
    assert sparsity.report(masked).total.dense == (108 + 15) * 4 / size
    small = sparsity.shrink(plain)
    assert small.count_params() < plain.count_params()
    np.testing.assert_allclose(
        small.predict(x, verbose=0).astype("float32"),
        plain.predict(x, verbose=0).astype("float32"),
        atol=0.1,
    )
    sparsity.save_compact(plain, tmp_path / "m")
    loaded = sparsity.load_compact(tmp_path / "m")
    for a, b in zip(plain.weights, loaded.weights, strict=True):
        assert as_array(a).tobytes() == as_array(b).tobytes()
    net.compile("sgd", "mse")
    y = np.ones((5, 3))
    for score in ("snip", "grasp", "synflow"):
        masks = sparsity.prune_at_init(net, x, y, score=score, sparsity=0.5)
        kept = sum(int(m.sum()) for m in masks.values())
        assert kept == 108 - round(0.5 * 108)


@keras.saving.register_keras_serializable("tests")
class Own(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units)

    def build(self, input_shape):
        self.hidden.build(input_shape)

    def call(self, x):
        return self.hidden(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_a_subclassed_model_is_counted_saved_and_pruned(tmp_path):
    model = Own(5)
    model(np.ones((2, 3), "float32"))
    model.compile("sgd", "mse")
    x, y = np.ones((2, 3)), np.zeros((2, 5))
    sparsity.prune_at_init(model, x, y, score="snip", sparsity=0.4)
    assert sparsity.report(model).density == 9 / 15
    sparsity.save_compact(model, tmp_path / "m")
    loaded = sparsity.load_compact(tmp_path / "m")
    assert type(loaded) is Own
    np.testing.assert_array_equal(
        as_array(model.hidden.kernel), as_array(loaded.hidden.kernel)
    )
    with pytest.raises(ValueError, match="Sequential or Functional"):
        sparsity.prune_at_init(model, score="synflow", sparsity=0.4)
    with pytest.raises(ValueError, match="Sequential or Functional"):
        sparsity.shrink(model)
