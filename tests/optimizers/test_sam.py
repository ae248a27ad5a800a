"""SAM against float64 NumPy, and all that its arguments promise."""

import functools

import keras
import numpy as np
import pytest

import keras_dlkit as dlkit
from tests.optimizers import reference
from tests.optimizers.comparison import compare
from tests.optimizers.comparison import distance
from tests.optimizers.comparison import fit
from tests.optimizers.comparison import make_batches
from tests.optimizers.comparison import make_net
from tests.optimizers.comparison import numpy_run
from tests.running import slow_to_compile

SETTINGS = {
    "plain": {},
    "asam": {"rho": 0.5, "adaptive": "weights", "eta": 0.1},
    "all": {"rho": 0.5, "adaptive": "all"},
    "sam_on": {"variables": "gamma|beta"},
    "every": {"every_steps": 3},
    "late": {"start_step": 3},
    "both": {"every_steps": 2, "start_step": 3},
    "micro": {"micro_batches": 3},
}


def check(setting, inner="momentum", weighted=False):
    arguments = {"rho": 0.2, **setting}
    numpy_arguments = dict(arguments)
    if numpy_arguments.pop("variables", None):
        numpy_arguments["selected"] = ["gamma", "beta"]
    _, expected = compare(
        lambda optimizer: dlkit.optimizers.SAM(optimizer, **arguments),
        functools.partial(reference.train, **numpy_arguments),
        inner,
        weighted,
    )
    # Far enough from what one gradient gives for the comparison to mean it.
    plain = numpy_run(inner, weighted, rho=0.0)
    assert distance(plain, expected) > 1e-3


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_match_float64(setting):
    check(SETTINGS[setting])


@pytest.mark.parametrize("inner", ["sgd", "adam", "adamw"])
def test_inner_optimizers_match_float64(inner):
    check({}, inner)


def test_sample_weights_and_uneven_micro_batches_match_float64():
    check({"micro_batches": 4}, weighted=True)


def test_rho_schedule_counts_updates():
    def rho(step):
        return 0.1 + 0.1 * step

    @keras.saving.register_keras_serializable("tests")
    class Rising(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1 + 0.1 * keras.ops.cast(step, "float32")

        def get_config(self):
            return {}

    rng = np.random.default_rng(0)
    weights, batches = reference.initial_weights(rng), make_batches(rng)
    model = dlkit.attach(make_net(weights))
    model.compile(
        dlkit.optimizers.SAM(keras.optimizers.SGD(0.1), rho=Rising()), "mse"
    )
    fit(model, batches)
    expected, *_ = reference.train(weights, batches, reference.SGD(0.1), rho)
    for variable, value in zip(model.trainable_variables, expected):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(variable), value, atol=2e-5
        )
    copy = dlkit.optimizers.SAM.from_config(model.optimizer.get_config())
    assert float(copy.rho(3)) == pytest.approx(0.4)


def test_clipping_acts_once_on_the_second_gradient():
    """The norm of the whole update is that of the clip, not less."""
    rng = np.random.default_rng(0)
    weights, batches = reference.initial_weights(rng), make_batches(rng)
    model = dlkit.attach(make_net(weights))
    inner = keras.optimizers.SGD(1.0, global_clipnorm=1e-3)
    model.compile(dlkit.optimizers.SAM(inner, rho=0.2), "mse")
    fit(model, batches[:1])
    moved = [
        keras.ops.convert_to_numpy(v) - w
        for v, w in zip(model.trainable_variables, weights)
    ]
    norm = np.sqrt(sum((m**2).sum() for m in moved))
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_a_batch_smaller_than_its_micro_batches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3)).astype("float32")
    y = rng.normal(size=(2, 2)).astype("float32")
    states = []
    for count in (2, 5):
        keras.utils.set_random_seed(1)
        net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model = dlkit.attach(net)
        model.compile(
            dlkit.optimizers.SAM("sgd", rho=0.5, micro_batches=count), "mse"
        )
        history = model.fit(x, y, verbose=0)
        states.append((net.get_weights(), history.history["loss"]))
    for a, b in zip(*(weights for weights, _ in states)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert states[0][1] == pytest.approx(states[1][1])


def chosen(sam):
    """One of several, which Keras asks for which weight."""
    return keras.optimizers.MultiOptimizer(
        lambda v: sam if v.name == "kernel" else keras.optimizers.SGD()
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sam: sam,
        dlkit.optimizers.Masked,
        pytest.param(
            chosen,
            marks=pytest.mark.skipif(
                not hasattr(keras.optimizers, "MultiOptimizer"),
                reason="needs Keras 3.15",
            ),
        ),
    ],
)
def test_plain_fit_is_refused_and_loses_nothing(wrap):
    x, y = np.ones((4, 2)), np.ones((4, 1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    before = model.get_weights()
    # Of averages there are none, where there was no step.
    sgd = keras.optimizers.SGD(use_ema=True)
    model.compile(wrap(dlkit.optimizers.SAM(sgd)), "mse")
    with pytest.raises(RuntimeError, match="keras_dlkit.attach"):
        model.fit(x, y, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    # What the message says.
    attached = dlkit.attach(keras.Sequential(model.layers))
    attached.compile(dlkit.optimizers.SAM("sgd"), "mse")
    attached.fit(x, y, verbose=0)
    assert (model.get_weights()[0] != before[0]).any()


@pytest.mark.filterwarnings("ignore:`attach` took over")
@pytest.mark.parametrize(
    "wrap",
    [
        dlkit.optimizers.SAM,
        lambda inner: dlkit.optimizers.Masked(dlkit.optimizers.SAM(inner)),
        pytest.param(
            lambda inner: keras.optimizers.LossScaleOptimizer(
                dlkit.optimizers.SAM(inner)
            ),
            marks=slow_to_compile,
        ),
    ],
)
def test_after_the_refusal_the_optimizer_can_be_taken_over(wrap):
    x, y = np.ones((4, 2)), np.ones((4, 1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(wrap("adam"), "mse")
    with pytest.raises(RuntimeError, match="keras_dlkit.attach"):
        model.fit(x, y, epochs=9, verbose=0)
    before = model.get_weights()
    dlkit.attach(model).fit(x, y, verbose=0)
    # The first step of Adam is the learning rate.
    np.testing.assert_allclose(
        np.abs(model.get_weights()[0] - before[0]), 1e-3, rtol=1e-3
    )


def test_plain_fit_is_refused_inside_a_loss_scaler():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(dlkit.optimizers.SAM("sgd"), "mse")
    with pytest.raises(RuntimeError, match="keras_dlkit.attach"):
        # The first steps may overflow, and are skipped.
        model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=9, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"rho": -0.1}, ValueError, "at least 0.*rho=-0.1"),
        ({"rho": float("nan")}, ValueError, "finite.*rho=nan"),
        ({"rho": "big"}, TypeError, "rho='big'"),
        ({"eta": -1}, ValueError, "eta"),
        ({"adaptive": "kernel"}, ValueError, "'weights', 'all'"),
        ({"every_steps": 0}, ValueError, "every_steps"),
        ({"start_step": -1}, ValueError, "start_step"),
        ({"micro_batches": 0}, ValueError, "at least 1.*micro_batches=0"),
        ({"micro_batches": 1.5}, TypeError, "integer"),
        ({"variables": "("}, ValueError, "regular expression"),
        ({"inner_optimizer": 3}, TypeError, "must be a `keras.optimizers"),
        ({"inner_optimizer": None}, TypeError, "must be a `keras.optimizers"),
        ({"inner_optimizer": "no"}, TypeError, "inner_optimizer='no'"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        dlkit.optimizers.SAM(**{"inner_optimizer": "sgd", **arguments})


def test_variables_that_match_nothing():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model = dlkit.attach(net)
    model.compile(dlkit.optimizers.SAM("sgd", variables="gamma"), "mse")
    with pytest.raises(ValueError, match="matches none of .*kernel"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)


def test_settings_stay_once_training_began():
    """A compiled step would not see the change."""
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model = dlkit.attach(net)
    optimizer = dlkit.optimizers.GSAM(keras.optimizers.SGD(0.5), rho=0.5)
    optimizer.rho = 0.25
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    for name in ("rho", "alpha", "every_steps", "adaptive"):
        with pytest.raises(AttributeError, match=f"{name}.*compile anew"):
            setattr(optimizer, name, 0.125)
    assert optimizer.get_config()["rho"] == 0.25
    optimizer.learning_rate = 0.25


def test_scales_of_float8_layers_are_refused():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    net.layers[0].quantize("float8")
    model = dlkit.attach(net)
    model.compile(dlkit.optimizers.SAM("sgd"), "mse")
    with pytest.raises(ValueError, match="float8.*inputs_scale"):
        model.fit(np.ones((4, 2)), np.ones((4, 3)), verbose=0)


def test_quantized_kernels_stay_and_their_lora_trains():
    dense = keras.layers.Dense(3)
    net = keras.Sequential([keras.Input((4,)), dense])
    dense.quantize("int8")
    dense.enable_lora(2)
    before = [keras.ops.convert_to_numpy(v) for v in dense.weights]
    model = dlkit.attach(net)
    sgd = keras.optimizers.SGD(0.1)
    model.compile(dlkit.optimizers.SAM(sgd, variables="lora"), "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 3)), epochs=2, verbose=0)
    for variable, old in zip(dense.weights, before):
        moved = (keras.ops.convert_to_numpy(variable) != old).any()
        assert moved == variable.trainable
    assert "int8" in {v.dtype for v in dense.weights}


def sam_in_sam():
    return dlkit.optimizers.SAM(dlkit.optimizers.SAM("sgd"))


def test_one_second_gradient_a_step():
    with pytest.raises(ValueError, match="Wrap another optimizer"):
        sam_in_sam()


def test_gradients_without_variables():
    sam = dlkit.optimizers.SAM("sgd")
    with pytest.raises(ValueError, match="build"), sam.attached():
        sam.apply([keras.ops.ones(2)])


@slow_to_compile
def test_masks_of_micro_batches():
    """Metrics of masked time steps see the mask of the whole batch."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (6, 5))
    tokens[:, 0] = 1
    y = rng.integers(0, 3, (6, 5))
    accuracy = []
    for count in (1, 3):
        keras.utils.set_random_seed(0)
        net = keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                keras.layers.Embedding(4, 3, mask_zero=True),
                keras.layers.SimpleRNN(4, return_sequences=True),
                keras.layers.Dense(3, "softmax"),
            ]
        )
        model = dlkit.attach(net)
        model.compile(
            dlkit.optimizers.SAM(
                keras.optimizers.SGD(0.0), micro_batches=count
            ),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        history = model.fit(tokens, y, batch_size=6, verbose=0, shuffle=False)
        accuracy.append(history.history["accuracy"][0])
    assert accuracy[0] == pytest.approx(accuracy[1])


def test_a_frozen_layer_is_not_in_the_norm():
    """What comes after it trains as on its outputs, made beforehand."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, n)).astype("float32") for n in (4, 2))
    frozen = keras.layers.Dense(5, trainable=False)
    net = keras.Sequential([keras.Input((4,)), frozen, keras.layers.Dense(2)])
    head = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    head.set_weights(net.layers[1].get_weights())
    for inner, inputs in ((net, x), (head, x @ frozen.get_weights()[0])):
        model = dlkit.attach(inner)
        sgd = keras.optimizers.SGD(0.1)
        model.compile(dlkit.optimizers.SAM(sgd, rho=0.5), "mse")
        model.fit(inputs, y, epochs=3, verbose=0)
    for a, b in zip(net.layers[1].get_weights(), head.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="has zeros where there is none"
)
@pytest.mark.parametrize("every_steps", [1, 2])
def test_no_gradient_at_all_is_the_error_of_keras(every_steps):
    cut = keras.layers.Lambda(keras.ops.stop_gradient)
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1), cut])
    model = dlkit.attach(net)
    model.compile(dlkit.optimizers.SAM("sgd", every_steps=every_steps), "mse")
    with pytest.raises(ValueError, match="No gradients provided"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)


def test_variables_by_function():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = dlkit.optimizers.SAM(
        "sgd", variables=lambda v: v.name == "kernel"
    )
    optimizer.build(net.trainable_variables)
    kernel, bias = optimizer.perturbations(
        [keras.ops.ones((2, 1)), keras.ops.ones((1,))],
        [keras.ops.ones((2, 1)), keras.ops.ones((1,))],
        net.trainable_variables,
    )
    assert bias is None
    assert float(keras.ops.norm(kernel)) == pytest.approx(0.05)
    copy = dlkit.optimizers.SAM.from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()


@pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="only there does a raw weight get a gradient by itself",
)
def test_a_weight_that_cannot_be_moved_is_named():
    """A layer that reads its weight past the Keras variable."""

    class Past(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 1), name="past")

        def call(self, x):
            return keras.ops.matmul(x, self.kernel._value)

    net = keras.Sequential([keras.Input((2,)), Past()])
    model = dlkit.attach(net)
    model.compile(dlkit.optimizers.SAM("sgd"), "mse")
    with pytest.raises(ValueError, match="Received none for .*past"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
