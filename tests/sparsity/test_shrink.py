"""The outputs of the model that is shrunk are the reference."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlkit as dlkit
from tests.running import slow_to_compile
from tests.sparsity import nets
from tests.sparsity.nets import array

shrink = dlkit.sparsity.shrink


def kill(layer, channels, axis=-1):
    """Makes the incoming weights of channels zero, and leaves the bias."""
    weight = layer.weights[0]
    values = np.moveaxis(array(weight.value).copy(), axis, 0)
    values[list(channels)] = 0
    weight.assign(np.moveaxis(values, 0, axis))


def assert_same(model, small, atol=1e-5):
    x = nets.data(model)
    for a, b in zip(
        keras.tree.flatten(model.predict(x, verbose=0)),
        keras.tree.flatten(small.predict(x, verbose=0)),
        strict=True,
    ):
        np.testing.assert_allclose(b, a, atol=atol, rtol=1e-5)


def sequential(*parts, shape=(6,)):
    return nets.randomize(keras.Sequential([keras.Input(shape), *parts]))


def test_dead_neurons_go_and_their_constants_are_folded():
    model = sequential(
        layers.Dense(10, "sigmoid", name="a"),
        layers.Dropout(0.5),
        layers.Dense(8, "relu", use_bias=False, name="b"),
        layers.Dense(3, "softmax", name="c"),
    )
    model.compile("sgd", "mse")
    kill(model.get_layer("a"), [0, 4, 9])
    kill(model.get_layer("b"), [2])
    small = shrink(model)
    assert_same(model, small)
    assert type(small) is keras.Sequential and not small.compiled
    assert small.get_layer("a").units == 7
    # It has no bias, but its inputs had constants: so it gets one.
    assert small.get_layer("b").use_bias
    # relu(0) is 0; but a sigmoid's constant makes of it what it makes.
    assert small.get_layer("b").units == 7 and small.get_layer("c").units == 3
    assert [w.name for w in model.get_layer("b").weights] == ["kernel"]


def test_neurons_that_nothing_reads_go():
    model = sequential(layers.Dense(10, "tanh"), layers.Dense(3))
    kill(model.layers[1], [1, 2, 3], axis=-2)
    small = shrink(model)
    assert small.layers[0].units == 7
    assert_same(model, small)


def test_death_goes_on_through_layers():
    model = sequential(
        layers.Dense(4, "relu"), layers.Dense(5), layers.Dense(3)
    )
    kill(model.layers[0], [0, 1])
    second = array(model.layers[1].kernel).copy()
    second[2:, [0, 3]] = 0  # read from dead neurons alone
    model.layers[1].kernel.assign(second)
    small = shrink(model)
    assert [layer.units for layer in small.layers] == [2, 3, 3]
    assert_same(model, small)


def test_a_dead_network_keeps_a_neuron():
    model = sequential(layers.Dense(4), layers.Dense(5), layers.Dense(2))
    kill(model.layers[0], range(4))
    small = shrink(model)
    assert [layer.units for layer in small.layers] == [1, 1, 2]
    assert_same(model, small)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_and_padding(padding, bias):
    model = sequential(
        layers.Conv2D(6, 3, use_bias=bias, name="a"),
        layers.BatchNormalization(name="n"),
        layers.Activation("relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(5, 3, padding=padding, name="b"),
        layers.Flatten(),
        layers.Dense(2),
        shape=(10, 10, 2),
    )
    beta = np.array([-9.0, 2.0, 0.3, 0.1, 0.2, 0.5], "float32")
    model.get_layer("n").beta.assign(beta)
    kill(model.get_layer("a"), [0, 1])  # emit 0 after ReLU, and not 0
    kill(model.get_layer("b"), [4])
    small = shrink(model)
    assert_same(model, small)
    left = 4 if padding == "valid" else 5
    assert small.get_layer("a").filters == left
    assert array(small.get_layer("n").gamma).shape == (left,)
    assert small.get_layer("b").filters == 4
    assert small.layers[-1].kernel.shape[0] == 4 * (
        4 if padding == "valid" else 16
    )


def test_a_constant_is_none_beside_a_border():
    """Of a convolution that pads, though all that it reads is constant."""
    model = sequential(
        layers.Conv2D(4, 1, name="a"),
        layers.Conv2D(3, 3, padding="same", name="b"),
        layers.Flatten(),
        layers.Dense(2),
        shape=(4, 4, 2),
    )
    kill(model.get_layer("a"), [0, 1])
    kernel = array(model.get_layer("b").kernel).copy()
    kernel[:, :, 2:, 0] = 0
    model.get_layer("b").kernel.assign(kernel)
    small = shrink(model)
    assert small.get_layer("b").filters == 3
    assert_same(model, small)


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_padding_and_averages_know_zeros_alone(bias):
    model = sequential(
        layers.Conv1D(5, 2, padding="causal", name="a"),
        layers.ZeroPadding1D(1),
        layers.AveragePooling1D(2, padding="same"),
        layers.UpSampling1D(2),
        layers.Conv1D(3, 2, padding="causal", name="b"),
        layers.Flatten(),
        layers.Dense(2),
        shape=(5, 2),
    )
    kill(model.get_layer("a"), [0, 1])
    model.get_layer("a").bias.assign(np.full(5, bias, "float32"))
    small = shrink(model)
    assert small.get_layer("a").filters == (5 if bias else 3)
    assert_same(model, small)


def test_a_scale_of_zero_makes_a_channel_constant():
    model = sequential(
        layers.Dense(6), layers.BatchNormalization(), layers.Dense(2)
    )
    gamma = np.array([1, 0, 1, 0, 1, 1], "float32")
    model.layers[1].gamma.assign(gamma)
    small = shrink(model)
    assert small.layers[0].units == 4
    assert_same(model, small)


@pytest.mark.parametrize("product", [False, True])
def test_sums_and_products_keep_their_channels_in_step(product):
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a")(inputs)
    b = layers.Conv2D(6, 1, padding="same", use_bias=False, name="b")(a)
    x = layers.ReLU()(layers.Add()([a, b]))
    y = layers.GlobalAveragePooling2D()(x * a if product else x + a)
    model = nets.randomize(keras.Model(inputs, layers.Dense(2, name="c")(y)))
    kill(model.get_layer("a"), [0, 1, 2])
    kill(model.get_layer("b"), [1, 2, 3])
    small = shrink(model)
    assert_same(model, small)
    # 1 and 2 are dead in both; 0 lives in one, but times zero.
    left = 3 if product else 4
    assert small.get_layer("a").filters == left
    assert small.get_layer("b").filters == left


def test_concatenations_flattening_and_shared_layers():
    left, right = keras.Input((4, 2)), keras.Input((3,))
    a = layers.Conv1D(5, 2, name="a")(left)
    a = layers.Flatten()(layers.LeakyReLU()(a))
    b = layers.Dense(6, "gelu", name="b")(right)
    both = layers.Concatenate()([a, b])
    shared = layers.Dense(21, "tanh", name="shared")
    once = shared(both)
    outputs = layers.Dense(2, name="head")(shared(once))
    model = nets.randomize(keras.Model([left, right], [outputs, b]))
    kill(model.get_layer("a"), [0, 3])
    kill(model.get_layer("b"), [0])  # an output of the model: it stays
    kill(model.get_layer("shared"), [7])
    model.get_layer("a").bias.assign(np.zeros(5))
    small = shrink(model)
    assert_same(model, small)
    assert small.get_layer("b").units == 6
    # Its output is its own input: 7 lives in one of the two calls.
    shared = array(small.get_layer("shared").kernel)
    assert shared.shape[0] == shared.shape[1] <= 21


def test_a_shared_layer_keeps_what_would_fold_in_two_ways():
    x, y = keras.Input((4,)), keras.Input((4,))
    a, b = layers.Dense(3, name="a")(x), layers.Dense(3, name="b")(y)
    shared = layers.Dense(2, name="shared")
    model = keras.Model([x, y], layers.Subtract()([shared(a), shared(b)]))
    nets.randomize(model)
    kill(model.get_layer("a"), [0, 1])
    kill(model.get_layer("b"), [0, 1])
    for name in "ab":  # 0 emits a constant, 1 emits nothing
        bias = array(model.get_layer(name).bias).copy()
        bias[1] = 0
        model.get_layer(name).bias.assign(bias)
    small = shrink(model)
    assert small.get_layer("a").units == 2
    assert_same(model, small)


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("constant", [False, True])
def test_a_shared_layer_folds_nothing_that_one_call_needs(constant, turn):
    inputs = keras.Input((4,))
    a, b = (layers.Dense(3, name=name)(inputs) for name in "ab")
    shared = layers.Dense(2, name="shared")
    heads = [layers.ReLU()(shared(x)) for x in (a, b)]
    if not constant:
        reads_0 = layers.Dense(1, name="reads_0")
        heads = [reads_0(heads[0]), layers.Dense(1)(heads[1])]
    model = nets.randomize(keras.Model(inputs, heads[::turn]))
    for name, bias in ("a", 1.0), ("b", 2.0 if constant else 0.0):
        kill(model.get_layer(name), [0])
        model.get_layer(name).bias.assign([bias, 0.5, 0.5])
    kernel = array(shared.kernel).copy()
    kernel[0] = [0.0, 5.0]
    if constant:  # so is output 1, in each call another
        kernel[1:, 1] = 0.0
    else:
        kill(reads_0, [1], axis=-2)
    shared.kernel.assign(kernel)
    assert_same(model, shrink(model))


def test_depthwise_convolutions_go_with_their_channels():
    model = sequential(
        layers.Conv2D(6, 1, name="a"),
        layers.DepthwiseConv2D(3, name="b"),
        layers.ReLU(6.0),
        layers.Conv2D(4, 1, name="c"),
        layers.GlobalMaxPooling2D(),
        shape=(5, 5, 2),
    )
    kill(model.get_layer("a"), [1])
    kill(model.get_layer("b"), [2], axis=-2)
    small = shrink(model)
    assert small.get_layer("a").filters == 4
    assert small.get_layer("b").weights[0].shape[-2:] == (4, 1)
    assert_same(model, small)


@pytest.mark.parametrize("seed", range(4))
def test_random_networks_of_few_weights(seed):
    model = nets.randomize(nets.branched(), seed)
    nets.sparsify(model, 0.7, seed)
    small = shrink(model)
    assert_same(model, small)
    # Nothing is left to find.
    again = shrink(small)
    assert [w.shape for w in again.weights] == [w.shape for w in small.weights]


def test_a_supermask_is_stripped_and_reloads_as_plain_keras(tmp_path):
    net = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(2)]
    )
    masked = dlkit.sparsity.supermask(net, 0.8, seed=0)
    small = shrink(masked)
    assert small.count_params() < net.count_params()
    assert_same(masked, small)
    small.save(tmp_path / "small.keras")
    assert_same(small, keras.saving.load_model(tmp_path / "small.keras"))
    small.compile("sgd", "mse")
    small.fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)


def test_layers_that_are_not_known_are_refused_by_name():
    @keras.saving.register_keras_serializable("tests")
    class Own(layers.Layer):
        def call(self, x):
            return -x

    model = sequential(
        layers.Conv1D(6, 2, name="conv"),
        layers.LSTM(5, name="rnn"),
        Own(name="own"),
        layers.Dense(4, name="a"),
        layers.Softmax(),
        layers.Dense(2),
        shape=(5, 3),
    )
    with pytest.raises(ValueError, match=r"own \(Own\)', 'rnn \(LSTM\)"):
        shrink(model)
    kill(model.get_layer("conv"), [0])
    kill(model.get_layer("a"), [0])
    small = shrink(model, keep_unsupported=True)
    assert_same(model, small)
    assert small.get_layer("conv").filters == 6  # as the LSTM reads it
    assert small.get_layer("a").units == 4  # a softmax reads all
    with pytest.raises(ValueError, match=r"\(Sequential\)"):
        shrink(nets.nested())


def test_models_in_the_model_are_kept_whole():
    model = nets.randomize(nets.nested())
    kill(model.layers[0], [1])
    kill(model.layers[1].layers[0], [2])
    small = shrink(model, keep_unsupported=True)
    assert_same(model, small)
    assert small.count_params() == model.count_params()


@slow_to_compile
def test_dictionaries_and_a_model_built_by_a_call():
    inputs = {
        "a": keras.Input((4,), name="a"),
        "b": keras.Input((3,), name="b"),
    }
    x = layers.Concatenate()([inputs["a"], inputs["b"]])
    x = layers.Dense(6, "relu", name="hidden")(x)
    model = keras.Model(inputs, {"y": layers.Dense(2)(x), "z": x})
    nets.randomize(model)
    rng = np.random.default_rng(0)
    data = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=(3, 3))}
    masked = dlkit.sparsity.supermask(model, 0.5, seed=0)
    for copy, of in (
        (dlkit.sparsity.strip(masked), masked),
        (shrink(model), model),
    ):
        expected, found = (m.predict(data, verbose=0) for m in (of, copy))
        assert found.keys() == {"y", "z"}
        for key in found:
            np.testing.assert_allclose(found[key], expected[key], atol=1e-6)
    dlkit.sparsity.prune_at_init(model, score="synflow", sparsity=0.5)

    lazy = keras.Sequential([layers.Dense(5, "relu"), layers.Dense(2)])
    lazy(np.ones((1, 3), "float32"))
    kill(lazy.layers[0], [0])
    small = shrink(dlkit.sparsity.supermask(lazy, 0.0, weights=None))
    assert small.layers[0].units == 4
    x = rng.normal(size=(3, 3))
    np.testing.assert_allclose(
        small.predict(x, verbose=0), lazy.predict(x, verbose=0), atol=1e-6
    )


def test_a_channel_stays_where_all_are_named_or_averaged():
    """By the shape of the noise of a dropout, by a number for all."""
    inputs = keras.Input((5, 6))
    x = layers.Dense(6, "relu", name="named")(inputs)
    x = layers.Dropout(0.5, noise_shape=(None, 1, 6))(x)
    x = layers.Dense(6, "relu", name="averaged")(x)
    x = layers.Dense(6, "relu", name="free")(x * keras.ops.mean(x))
    x = layers.Dropout(0.5, noise_shape=(None, 5, 1))(x)
    model = nets.randomize(keras.Model(inputs, layers.Dense(2)(x)))
    for name in ("named", "averaged", "free"):
        kill(model.get_layer(name), [0])
        model.get_layer(name).bias.assign(np.full(6, 0.5, "float32"))
    small = shrink(model)
    assert_same(model, small)
    units = [small.get_layer(n).units for n in ("named", "averaged", "free")]
    assert units == [6, 6, 5]
    small.compile("sgd", "mse")
    small.fit(nets.data(model), np.ones((5, 5, 2)), verbose=0)


def test_channels_first_and_groups_are_not_known():
    for layer in (
        layers.Conv2D(4, 1, groups=2, name="odd"),
        layers.Conv2D(4, 1, data_format="channels_first", name="odd"),
    ):
        inputs = keras.Input((4, 4, 4))
        model = keras.Model(inputs, layer(inputs))
        with pytest.raises(ValueError, match=r"odd \(Conv2D\)"):
            shrink(model)


@pytest.mark.slow
def test_it_is_really_faster():
    import time

    model = sequential(
        layers.Dense(2000, "relu"),
        layers.Dense(2000, "relu"),
        layers.Dense(10),
        shape=(2000,),
    )
    for layer in model.layers[:2]:
        kill(layer, range(1800))
    small = shrink(model)
    x = np.ones((256, 2000), "float32")

    def seconds(net):
        net.predict(x, verbose=0)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            array(net(x))
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(small) < 0.5 * seconds(model)
