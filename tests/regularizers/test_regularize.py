"""`regularize`, on every layer of Keras that has a kernel."""

import inspect
import json

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit import _keras
from keras_dlkit.regularizers.regularize import KERNELS
from keras_dlkit.regularizers.regularize import find_energy
from keras_dlkit.regularizers.regularize import strip_energies
from tests.regularizers.test_hyperspherical_energy import Energy
from tests.regularizers.test_hyperspherical_energy import Sum
from tests.regularizers.test_hyperspherical_energy import network
from tests.regularizers.test_hyperspherical_energy import number
from tests.regularizers.test_hyperspherical_energy import numbers
from tests.regularizers.test_hyperspherical_energy import trained
from tests.running import slow_to_compile

regularize = dlkit.regularizers.regularize

# Regularizers of what has no neurons.
NO_KERNEL = {
    "activity_regularizer",
    "alpha_regularizer",
    "beta_regularizer",
    "bias_regularizer",
    "gamma_regularizer",
}


def self_attention(layer):
    return lambda x: layer(x, x)


# A layer, the shape of its input, and the neurons of each of its kernels.
LAYERS = {
    "Dense": (lambda: layers.Dense(5), (4,), [5]),
    "EinsumDense": (
        lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3)),
        (6, 4),
        [6],
    ),
    "Embedding": (lambda: layers.Embedding(9, 4), (6,), [9]),
    "ReversibleEmbedding": (
        lambda: layers.ReversibleEmbedding(9, 4, tie_weights=False),
        (6,),
        [9, 9],
    ),
    "Conv1D": (lambda: layers.Conv1D(5, 3), (8, 2), [5]),
    "Conv2D": (lambda: layers.Conv2D(6, 3, groups=2), (8, 8, 2), [6]),
    "Conv3D": (lambda: layers.Conv3D(5, 2), (4, 4, 4, 2), [5]),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(5, 3), (8, 2), [5]),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(5, 3), (8, 8, 2), [5]),
    "Conv3DTranspose": (
        lambda: layers.Conv3DTranspose(5, 2),
        (4, 4, 4, 2),
        [5],
    ),
    "DepthwiseConv1D": (
        lambda: layers.DepthwiseConv1D(3, depth_multiplier=2),
        (8, 3),
        [6],
    ),
    "DepthwiseConv2D": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        (8, 8, 3),
        [6],
    ),
    "SeparableConv1D": (
        lambda: layers.SeparableConv1D(5, 3, depth_multiplier=2),
        (8, 3),
        [6, 5],
    ),
    "SeparableConv2D": (
        lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2),
        (8, 8, 3),
        [6, 5],
    ),
    "MultiHeadAttention": (
        lambda: self_attention(layers.MultiHeadAttention(2, 3)),
        (6, 4),
        [6, 6, 6, 4],
    ),
    "GroupQueryAttention": (
        lambda: self_attention(layers.GroupQueryAttention(3, 4, 2)),
        (6, 5),
        [12, 6, 6, 5],
    ),
    "SimpleRNN": (lambda: layers.SimpleRNN(3), (6, 4), [3, 3]),
    "LSTM": (lambda: layers.LSTM(3), (6, 4), [12, 12]),
    "GRU": (lambda: layers.GRU(3), (6, 4), [9, 9]),
    "SimpleRNNCell": (
        lambda: layers.RNN(layers.SimpleRNNCell(3)),
        (6, 4),
        [3, 3],
    ),
    "LSTMCell": (lambda: layers.RNN(layers.LSTMCell(3)), (6, 4), [12, 12]),
    "GRUCell": (lambda: layers.RNN(layers.GRUCell(3)), (6, 4), [9, 9]),
    "ConvLSTM1D": (lambda: layers.ConvLSTM1D(3, 2), (4, 8, 2), [12, 12]),
    "ConvLSTM2D": (lambda: layers.ConvLSTM2D(3, 2), (4, 8, 8, 2), [12, 12]),
    "ConvLSTM3D": (
        lambda: layers.ConvLSTM3D(3, 2),
        (3, 4, 4, 4, 2),
        [12, 12],
    ),
    # Layers around layers.
    "Bidirectional": (
        lambda: layers.Bidirectional(layers.LSTM(3)),
        (6, 4),
        [12, 12, 12, 12],
    ),
    "TimeDistributed": (
        lambda: layers.TimeDistributed(layers.Dense(5)),
        (6, 4),
        [5],
    ),
    "SpectralNormalization": (
        lambda: layers.SpectralNormalization(layers.Conv2D(5, 3)),
        (8, 8, 2),
        [5],
    ),
}


def classes_with_kernels():
    """By introspection: those that take a regularizer of a kernel."""
    found = set()
    for cls in vars(layers).values():
        if not inspect.isclass(cls) or not issubclass(cls, layers.Layer):
            continue
        for base in cls.__mro__:
            names = inspect.signature(base.__init__).parameters
            if any(
                name.endswith("_regularizer") and name not in NO_KERNEL
                for name in names
            ):
                found.add(cls)
    return found


def test_no_layer_of_keras_is_forgotten():
    names = {getattr(layers, name) for name in LAYERS}
    assert classes_with_kernels() <= names
    for cls in classes_with_kernels():
        for name in inspect.signature(cls.__init__).parameters:
            if name.endswith("_regularizer"):
                assert name in KERNELS or name in NO_KERNEL, (cls, name)


def model_of(name):
    make, shape, neurons = LAYERS[name]
    tokens = "Embedding" in name
    x = keras.Input(shape, dtype="int32" if tokens else "float32")
    return keras.Model(x, make()(x)), neurons


@pytest.mark.parametrize("name", LAYERS)
def test_every_kernel_gets_its_neuron_axis(name):
    model, neurons = model_of(name)
    chosen = regularize(model, Energy(0.5))
    kernels = {v.path: v for v in model.trainable_variables}
    assert chosen.keys() <= kernels.keys()
    counts = {}
    for path, regularizer in chosen.items():
        kernel = ops.convert_to_numpy(kernels[path])
        axes = np.atleast_1d(regularizer.axis)
        counts[path] = np.prod([kernel.shape[a] for a in axes])
    assert sorted(counts.values()) == sorted(neurons)
    # And every kernel is there: what is left are scales and shifts.
    left = [v for v in model.trainable_variables if v.path not in chosen]
    assert all("bias" in v.name for v in left)
    for path, regularizer in chosen.items():
        assert kernels[path].regularizer is regularizer


# One neuron is one feature of the output (one row, of an embedding), at all
# places: without it, this share of the outputs is lost, and no other.
DIRECT = [
    "Dense",
    "EinsumDense",
    "Embedding",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "Conv1DTranspose",
    "Conv2DTranspose",
    "Conv3DTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
]


@pytest.mark.parametrize("name", DIRECT)
def test_a_neuron_makes_a_feature_of_the_output(name):
    model, (neurons,) = model_of(name)
    ((path, regularizer),) = regularize(model, Energy()).items()
    (kernel,) = [v for v in model.variables if v.path == path]
    values = np.ones(kernel.shape)
    first = [slice(None)] * values.ndim
    for axis in np.atleast_1d(regularizer.axis):
        first[axis] = 0
    values[tuple(first)] = np.nan
    kernel.assign(values)
    shape = (neurons, *model.input_shape[1:])
    x = np.ones(shape)
    if name == "Embedding":
        x = np.broadcast_to(np.arange(neurons)[:, None], shape)
    output = ops.convert_to_numpy(model(x))
    assert np.isnan(output).mean() == pytest.approx(1 / neurons)


@pytest.mark.parametrize(
    ("equation", "output_shape", "axes"),
    [
        ("ab,bc->ac", 5, (1,)),
        ("...x,xy->...y", 5, (1,)),
        ("abcd,cde->abe", (None, 5), (2,)),
        ("abc,cde->abde", (None, 2, 3), (1, 2)),
        ("abc,dc->abd", (None, 5), (0,)),
        # A kernel for each entry of `b`: neurons of every one of them.
        ("abc,bcd->abd", (4, 5), (0, 2)),
    ],
)
def test_einsum_equations(equation, output_shape, axes):
    rank = len(equation.split(",")[0].replace("...", "ab"))
    x = keras.Input((4, 6, 3)[: rank - 1])
    model = keras.Model(x, layers.EinsumDense(equation, output_shape)(x))
    (regularizer,) = regularize(model, Energy()).values()
    assert regularizer.axis == axes


@pytest.mark.parametrize(
    ("equation", "output_shape"), [("ab,b->ab", 4), ("abc,c->ab", 3)]
)
def test_an_einsum_without_neurons_is_left_out(equation, output_shape):
    x = keras.Input((3, 4)[-len(equation.split(",")[0]) + 1 :])
    h = layers.EinsumDense(equation, output_shape)(x)
    model = keras.Model(x, layers.Dense(2)(h))
    assert [path for path in regularize(model, Energy())] == ["dense/kernel"]


def test_kernels_with_one_weight_a_neuron_are_left_out():
    x = keras.Input((4, 4, 1))
    h = layers.DepthwiseConv2D(1)(layers.DepthwiseConv2D(2)(x))
    model = keras.Model(x, layers.Dense(5)(h))
    (path,) = regularize(model, Energy())
    assert path == model.layers[1].kernel.path


def test_quantized_kernels_are_left_out():
    model = network()
    model.layers[0].quantize("int8")
    assert list(regularize(model, Energy())) == [model.layers[1].kernel.path]


# Which kernels.


def test_include_and_exclude():
    model = network()
    first, last = (w.path for w in model.weights[::2])
    assert list(regularize(model, Energy())) == [first, last]
    model = network()
    first, last = (w.path for w in model.weights[::2])
    output = Energy(10, half_space=False)
    assert list(regularize(model, output, include="output")) == [last]
    assert list(regularize(model, Energy(), exclude="output")) == [first]
    factors = [w.regularizer.factor for w in model.weights[::2]]
    assert factors == [1, 10]


def test_nothing_matches():
    model = network()
    with pytest.raises(ValueError, match="include='encoder'.*kernel"):
        regularize(model, Energy(), include="encoder")
    with pytest.raises(ValueError, match="at least one kernel"):
        regularize(model, Energy(), include="bias")
    with pytest.raises(ValueError, match="exclude='kernel'"):
        regularize(model, Energy(), exclude="kernel")
    with pytest.raises(ValueError, match="leave out.*exclude='head'.*kernel"):
        regularize(model, Energy(), exclude="head")
    for wrong in ("(", len):
        with pytest.raises(ValueError, match="or a regular expression. Rec"):
            regularize(model, Energy(), include=wrong)
    assert model.losses == []
    regularize(model, Energy(), exclude="bias")  # there, but no kernel
    assert model.losses != []


def test_bad_input():
    with pytest.raises(TypeError, match="`model`.*Dense"):
        regularize(layers.Dense(2), Energy())
    for regularizer in ("l2", None, keras.regularizers.L2(0.1)):
        with pytest.raises(TypeError, match="`regularizer`"):
            regularize(network(), regularizer)
    with pytest.raises(ValueError, match="not built"):
        regularize(keras.Sequential([layers.Dense(2)]), Energy())


class Lazy(keras.Model):
    """Built, with layers that are not."""

    def __init__(self, late):
        super().__init__()
        self.first, self.late = layers.Dense(5), late

    def build(self, shape):
        self.first.build(shape)

    def call(self, x):
        return self.late(self.first(x))


def test_layers_that_are_built_later():
    model = Lazy(layers.Dense(3, kernel_regularizer="l2"))
    model.build((None, 4))
    assert "dense_1/kernel" in "".join(regularize(model, Energy()))
    model(np.ones((2, 4)))
    assert find_energy(model.late.kernel.regularizer) is not None
    assert len(model.losses) == 2


def test_attention_that_is_built_later_is_an_error():
    model = Lazy(layers.MultiHeadAttention(2, 2))
    model.build((None, 4))
    with pytest.raises(ValueError, match="projections.*multi_head_attention"):
        regularize(model, Energy())


# What was there before.


def test_other_regularizers_stay():
    l2 = keras.regularizers.L2(0.1)
    model = network(l2)
    kernel = model.layers[0].kernel
    (before,) = numbers(model.losses)
    for factor in (5, 2):  # the second in the place of the first
        regularize(model, Energy(factor), include=kernel.path)
    energy = number(dlkit.ops.hyperspherical_energy(kernel))
    (loss,) = numbers(model.losses)
    assert loss == pytest.approx(before + 2 * energy, rel=1e-6)
    strip_energies(model)
    assert kernel.regularizer is l2
    assert model.layers[0].kernel_regularizer is l2


def test_the_regularizer_given_is_not_changed():
    energy = Energy(0.3, axis=0)
    config = energy.get_config()
    for name in ("DepthwiseConv2D", "Dense"):
        regularize(model_of(name)[0], energy)
    assert energy.get_config() == config


def test_a_model_that_was_trained_already():
    """What Keras compiled then has no energy."""
    model, expected = network(), network(Energy())
    losses = []
    for net in (model, expected):
        net.compile("sgd", "mse")
    model.evaluate(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
    model.train_on_batch(np.ones((4, 4)), np.ones((4, 3)))
    regularize(model, Energy(), include=model.weights[0].path)
    expected.set_weights(model.get_weights())
    for net in (model, expected):
        losses.append(net.train_on_batch(np.ones((4, 4)), np.ones((4, 3))))
        losses.append(net.evaluate(np.ones((4, 4)), np.ones((4, 3)), verbose=0))
    assert losses[1] == pytest.approx(losses[3], rel=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_strip_leaves_plain_keras(name):
    model, _ = model_of(name)
    config = json.dumps(model.get_config())
    regularize(model, Energy())
    strip_energies(model)
    assert model.losses == []
    assert json.dumps(model.get_config()) == config
    for layer in _keras.all_layers(model):
        for attribute, value in vars(layer).items():
            if attribute.endswith("_regularizer"):
                assert value is None


CARRIED = [name for name in LAYERS if name != "ReversibleEmbedding"]


@pytest.mark.parametrize("name", CARRIED)
def test_the_config_carries_it(name):
    model, _ = model_of(name)
    chosen = regularize(model, Energy(0.5, power=1))
    settings = energies(keras.models.clone_model(model))
    assert settings == energies(model) and len(settings) == len(chosen)


def energies(model):
    """What the kernels of a model have for a regularizer."""
    settings = []
    for variable in model.trainable_variables:
        energy = find_energy(variable.regularizer)
        if energy is not None:
            rank, axis = len(variable.shape), energy.axis
            if isinstance(axis, dict):
                axis = axis[tuple(variable.shape)]
            axes = [int(a) % rank for a in np.atleast_1d(axis)]
            settings.append({**energy.get_config(), "axis": axes})
    return settings


@pytest.mark.parametrize(
    "attention",
    [
        lambda: layers.MultiHeadAttention(2, 3, value_dim=5),
        lambda: layers.MultiHeadAttention(2, 3, output_shape=(2, 3)),
    ],
)
def test_the_config_of_attention_carries_it(attention):
    x, y = keras.Input((6, 4)), keras.Input((6, 5))
    model = keras.Model([x, y], attention()(x, y))
    regularize(model, Energy(0.5))
    settings = energies(keras.models.clone_model(model))
    assert settings == energies(model) and len(settings) == 4


def test_a_part_of_attention_is_not_carried_over_to_the_rest():
    x = keras.Input((6, 4))
    model = keras.Model(x, layers.MultiHeadAttention(2, 3)(x, x))
    regularize(model, Energy(), include="query")
    assert len(energies(model)) == 1
    assert energies(keras.models.clone_model(model)) == []
    # What the configuration held before the part was set does not stay in it.
    regularize(model, Energy(0.2))
    regularize(model, Energy(0.5), include="query")
    assert [e["factor"] for e in energies(model)] == [0.5, 0.2, 0.2, 0.2]
    assert energies(keras.models.clone_model(model)) == []


def test_attention_with_different_settings_is_not_carried():
    x = keras.Input((6, 4))
    h = layers.MultiHeadAttention(2, 3, name="mha")(x, x)
    model = keras.Model(x, layers.Dense(2, name="last")(h))
    regularize(model, Energy(0.1), include="query|key|value")
    regularize(model, Energy(5), include="attention_output")
    assert [e["factor"] for e in energies(model)] == [0.1, 0.1, 0.1, 5]
    assert energies(keras.models.clone_model(model)) == []
    # Of a copy that was carried over: all at once, and none of it.
    regularize(model, Energy(0.1))
    copy = keras.models.clone_model(model)
    regularize(copy, Energy(3), include="last")
    regularize(copy, Energy(2), include="key")
    assert [e["factor"] for e in energies(copy)] == [0.1, 2, 0.1, 0.1, 3]


# LoRA.


def lora_network(before):
    tokens = keras.Input((5,), dtype="int32")
    h = layers.Embedding(9, 4, name="tokens")(tokens)
    h = layers.EinsumDense("abc,cde->abde", (5, 2, 3), name="einsum")(h)
    h = layers.Dense(6, name="dense")(layers.Flatten()(h))
    model = keras.Model(tokens, h)
    if before:
        regularize(model, Energy())
    for name in ("tokens", "einsum", "dense"):
        model.get_layer(name).enable_lora(2)
    if not before:
        regularize(model, Energy())
    return model


@pytest.mark.parametrize("before", [True, False])
def test_under_lora_it_is_the_energy_of_the_kernel_in_effect(before):
    model = lora_network(before)
    for layer in ("tokens", "einsum", "dense"):
        for v in model.get_layer(layer).trainable_variables:
            v.assign(np.random.default_rng(0).normal(size=v.shape))
    kernels = {
        "tokens": (model.get_layer("tokens").embeddings, 0),
        "einsum": (model.get_layer("einsum").kernel, (1, 2)),
        "dense": (model.get_layer("dense").kernel, -1),
    }
    expected = sum(
        number(dlkit.ops.hyperspherical_energy(kernel, axis=axis))
        for kernel, axis in kernels.values()
    )
    assert sum(numbers(model.losses)) == pytest.approx(expected, rel=1e-5)
    strip_energies(model)
    assert model.losses == []


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_under_lora_with_factors_of_one_shape(policy):
    """And in float32, where the kernel in effect is rounded."""
    net = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, dtype=policy, use_bias=False)]
    )
    net.layers[0].enable_lora(4, lora_alpha=2)
    regularize(net, Energy())
    rng = np.random.default_rng(0)
    base, first, second = (rng.normal(size=(4, 4)) for _ in range(3))
    for variable in net.weights:
        value = {"kernel": base, "lora_kernel_a": first}
        variable.assign(value.get(variable.name, second))
    kernel = ops.convert_to_tensor(base + 0.5 * first @ second, "float32")
    expected = number(dlkit.ops.hyperspherical_energy(kernel))
    assert sum(numbers(net.losses)) == pytest.approx(expected, rel=1e-5)
    net.compile(keras.optimizers.SGD(0.0), loss=lambda y, p: 0.0 * p)
    loss = net.train_on_batch(np.ones((2, 4)), np.ones((2, 4)))
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lora_first", [True, False])
def test_under_lora_a_quantized_kernel_has_no_energy(lora_first):
    net = keras.Sequential([keras.Input((9,)), layers.Dense(5)])
    (dense,) = net.layers
    regularize(net, Energy())
    if lora_first:
        dense.enable_lora(2)
    dense.quantize("int8")
    if not lora_first:
        dense.enable_lora(2)
    assert dense.lora_kernel_b.trainable
    assert sum(numbers(net.losses)) == 0


def test_training_under_lora_lowers_the_energy():
    model = lora_network(before=True)
    model.compile(keras.optimizers.SGD(1e-3), loss=lambda y, p: 0.0 * p)
    before = sum(numbers(model.losses))
    x, y = np.arange(20).reshape(4, 5) % 9, np.ones((4, 6))
    model.fit(x, y, epochs=10, verbose=0)
    assert sum(numbers(model.losses)) < before


# Whole networks.


@slow_to_compile
def test_keras_applications():
    model = keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, weights=None, classes=4
    )
    chosen = regularize(model, Energy(0.1), exclude="conv_preds")
    output = Energy(half_space=False)
    chosen |= regularize(model, output, include="conv_preds")
    kernels = [v for v in model.trainable_variables if "kernel" in v.name]
    assert chosen.keys() == {v.path for v in kernels}
    for kernel in kernels:
        depthwise = "_dw_" in kernel.path
        axis = (-2, -1) if depthwise else -1
        assert chosen[kernel.path].axis == axis


@slow_to_compile
def test_keras_hub(tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    chosen = regularize(backbone, Energy(0.1))
    axes = {path.split("/", 1)[-1]: r.axis for path, r in chosen.items()}
    by_end = {path: axis for path, axis in axes.items() if "attention" in path}
    assert len(by_end) == 4
    for path, axis in by_end.items():
        assert axis == ((2,) if "output" in path else (1, 2))
    assert np.isfinite(numbers(backbone.losses)).all()
    # Its file does not hold it: `regularize` again, as the docstring says.
    backbone.save(tmp_path / "bert.keras")
    loaded = keras.saving.load_model(tmp_path / "bert.keras")
    assert energies(loaded) == []
    assert len(regularize(loaded, Energy())) == len(chosen)


def test_detached_and_attached_models():
    attached = dlkit.attach(network())
    regularize(attached, Energy(0.1), include="kernel")
    assert len(attached.losses) == 2
    losses, _ = trained(attached)
    assert np.isfinite(losses).all()


def test_sums_are_seen_through():
    model = network(Sum([keras.regularizers.L2(0.1), Energy(3)]))
    regularize(model, Energy(2))
    kernel = model.layers[0].kernel
    kinds = [type(r).__name__ for r in kernel.regularizer.regularizers]
    assert kinds == ["L2", "HypersphericalEnergy"]
    assert find_energy(kernel.regularizer).factor == 2


def test_detached_models_have_no_sum_where_keras_has_one():
    norms = [keras.regularizers.L1(0.1), Sum(["l2", Energy()])]
    model = dlkit.detach(dlkit.attach(network(Sum(norms))))
    kernel = model.layers[0].kernel
    (loss,) = numbers(model.losses)
    value = ops.convert_to_numpy(kernel)
    expected = 0.1 * np.abs(value).sum() + 0.01 * np.square(value).sum()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert type(kernel.regularizer) is keras.regularizers.L1L2
    assert "keras_dlkit" not in json.dumps(model.get_config())
    orthogonal = keras.regularizers.OrthogonalRegularizer(0.1)
    model = network(Sum(["l2", orthogonal]))
    with pytest.warns(UserWarning, match="no regularizer for these sums"):
        strip_energies(model)
    assert len(numbers(model.losses)) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_sums_of_other_dtypes(dtype):
    if dtype == "float64" and keras.config.backend() == "jax":
        pytest.skip("no float64 unless asked for")
    net = keras.Sequential([keras.Input((4,)), layers.Dense(5, dtype=dtype)])
    kernel = net.layers[0].kernel
    both = Sum(["l2", Energy()])(kernel)
    wide = "float64" if dtype == "float64" else "float32"
    assert keras.backend.standardize_dtype(both.dtype) == wide
    l2 = number(ops.cast(keras.regularizers.L2(0.01)(kernel), "float32"))
    assert number(both) == pytest.approx(l2 + number(Energy()(kernel)), 1e-3)
