"""What is particular to learned log-variances."""

import inspect
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests.losses import reference
from tests.losses.test_weightings import KINDS
from tests.losses.test_weightings import compiled
from tests.losses.test_weightings import fit
from tests.running import slow_to_compile

UncertaintyWeighting = dlkit.losses.UncertaintyWeighting


def values(part):
    return {
        task: float(ops.convert_to_numpy(v))
        for task, v in part.log_variances.items()
    }


def test_the_formula():
    losses, s = [4.0, 0.5], [0.3, -1.2]
    kinds = ["regression", "classification"]
    expected = 0.5 * np.exp(-0.3) * 4.0 + np.exp(1.2) * 0.5
    total = dlkit.ops.uncertainty_weighted(losses, s, kinds)
    assert float(total) == pytest.approx(expected + 0.15 - 0.6, rel=1e-6)
    total = dlkit.ops.uncertainty_weighted(losses, s, kinds, formula="liebel")
    extra = np.log1p(np.exp(0.3)) + np.log1p(np.exp(-1.2))
    assert float(total) == pytest.approx(expected + extra, rel=1e-6)
    with pytest.raises(ValueError, match="an entry a task"):
        dlkit.ops.uncertainty_weighted(losses, s[:1], kinds[:1])
    with pytest.raises(ValueError, match="an entry a task"):
        dlkit.ops.uncertainty_weighted(losses, s[:1], kinds)
    with pytest.raises(ValueError, match="must be one of"):
        dlkit.ops.uncertainty_weighted(losses, s, ["regression", "mse"])


@slow_to_compile
def test_known_noise_is_found():
    """Gal's experiment: two regressions with noise of sigma 10 and 1."""
    rng = np.random.default_rng(0)
    rows = 1000
    x = rng.normal(size=(rows, 1)).astype("float32")
    y = {
        "a": 2 * x + 8 + 10 * rng.normal(size=x.shape).astype("float32"),
        "b": 3 * x + 3 + rng.normal(size=x.shape).astype("float32"),
    }
    inputs = keras.Input((1,))
    outputs = {name: layers.Dense(1, name=name)(inputs) for name in "ab"}
    part = UncertaintyWeighting({"a": "regression", "b": "regression"})
    model = dlkit.attach(keras.Model(inputs, outputs), part)
    rate = keras.optimizers.schedules.CosineDecay(0.2, 400)
    optimizer = keras.optimizers.Adam(rate, beta_2=0.9)
    model.compile(optimizer, loss={"a": "mse", "b": "mse"})
    model.fit(x, y, batch_size=rows, epochs=400, verbose=0)
    predicted = model.predict(x, verbose=0)
    for name, true in (("a", 10.0), ("b", 1.0)):
        sigma = np.exp(0.5 * values(part)[name])
        rmse = np.sqrt(np.mean((predicted[name] - y[name]) ** 2))
        assert abs(sigma / rmse - 1) <= 0.02
        assert abs(sigma / true - 1) <= 0.15


def test_a_task_without_loss_stays_in_bounds():
    x, _, b = reference.data()
    part = UncertaintyWeighting(KINDS)
    model = compiled(part, keras.optimizers.Adam(0.02))
    model.model.get_layer("a").set_weights([np.zeros((3, 1))])
    targets = {"a": np.zeros((len(x), 1), "float32"), "b": b}
    part.log_variances["a"].assign(-5.9)
    history = model.fit(x, targets, epochs=20, verbose=0).history
    assert values(part)["a"] == -6.0
    assert history["b_loss"][-1] < 0.5 * history["b_loss"][0]
    assert np.isfinite(history["loss"]).all()


optimizers = keras.optimizers
WITH_DECAY = [
    name
    for name, cls in vars(optimizers).items()
    if inspect.isclass(cls)
    and issubclass(cls, optimizers.Optimizer)
    and "weight_decay" in inspect.signature(cls.__init__).parameters
    # Ftrl forgets where its weights began, decayed or not.
    and name not in ("Optimizer", "Ftrl")
]
WRAPPED = {
    "scaler": optimizers.LossScaleOptimizer,
    "sam": dlkit.optimizers.SAM,
    "masked": dlkit.optimizers.Masked,
    "all": lambda o: optimizers.LossScaleOptimizer(
        dlkit.optimizers.Masked(dlkit.optimizers.SAM(o))
    ),
}
if hasattr(optimizers, "MultiOptimizer"):  # since Keras 3.15
    WRAPPED |= {
        "multi": lambda o: optimizers.MultiOptimizer(
            optimizers.OptimizerMap(o)
        ),
        "chosen": lambda o: optimizers.MultiOptimizer(lambda variable: o),
    }


def decaying(name):
    kind = getattr(optimizers, name)
    more = {}
    if "adam_weight_decay" in inspect.signature(kind).parameters:  # of Muon
        more = {"adam_weight_decay": 1e4}
    return kind(learning_rate=1e-6, weight_decay=1e4, **more)


@pytest.mark.parametrize("name", [*WITH_DECAY, *WRAPPED])
def test_not_decayed(name, tmp_path):
    """Whatever the optimizer, and after loading, too."""
    part = UncertaintyWeighting(KINDS, initial_log_variance=2.0)
    inner = decaying("AdamW" if name in WRAPPED else name)
    model = dlkit.attach(reference.network(), part)
    inner.exclude_from_weight_decay([model.get_layer("a").kernel])
    optimizer = WRAPPED.get(name, lambda o: o)(inner)
    model.compile(optimizer, loss={"a": "mse", "b": "mse"})
    before = model.model.get_weights()
    fit(model, 1)
    if name == "all":
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
        fit(model, 1)
    weights = model.model.get_weights()
    assert values(model.parts[0])["a"] == pytest.approx(2.0, abs=1e-3)
    # Decayed, if by little: ScheduleFreeAdamW averages over the steps.
    assert np.abs(weights[0]).max() < 0.98 * np.abs(before[0]).max()
    if name not in ("all", "multi", "chosen"):  # what the user excluded
        np.testing.assert_allclose(weights[1], before[1], atol=1e-3)


class BuildsItself(keras.Model):
    def __init__(self):
        super().__init__()
        self.heads = [layers.Dense(1, use_bias=False) for _ in "ab"]

    def call(self, x):
        return {name: head(x) for name, head in zip("ab", self.heads)}


@pytest.mark.skipif("chosen" not in WRAPPED, reason="no MultiOptimizer")
@pytest.mark.parametrize("make", [reference.network, BuildsItself])
def test_not_decayed_by_what_is_chosen_late(make):
    """`MultiOptimizer` knows its parts once it is built: in the first step."""
    x, a, b = reference.data()
    part = UncertaintyWeighting(KINDS, initial_log_variance=2.0)
    model = dlkit.attach(make(), part)
    model.compile(
        WRAPPED["chosen"](decaying("AdamW")), {"a": "mse", "b": "mse"}
    )
    for _ in range(3):
        model.train_on_batch(x, {"a": a, "b": b})
    assert values(part)["a"] == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("variables", [None, "kernel", "log_variance"])
def test_moved_by_sam_only_where_asked(variables):
    seen = []

    class Spy(dlkit.optimizers.SAM):
        def direction(self, gradients, weights, variables):
            seen.extend(
                v.path for v, g in zip(variables, gradients) if g is not None
            )
            return super().direction(gradients, weights, variables)

    part = UncertaintyWeighting(KINDS)
    model = compiled(part, Spy("sgd", rho=0.1, variables=variables))
    fit(model, 1)
    asked = variables == "log_variance"
    assert any("log_variance" in path for path in seen) == asked
    assert any("kernel" in path for path in seen) != asked


def test_precision_and_frozen():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        part = UncertaintyWeighting(KINDS)
        model = compiled(part)
        fit(model, 1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(v.dtype == "float32" for v in part.log_variances.values())
    part = UncertaintyWeighting(KINDS)
    part.trainable = False
    fit(compiled(part))
    assert values(part) == {"a": 0.0, "b": 0.0}


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="no float64 unless asked for"
)
def test_double_precision():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        for part in (dlkit.losses.PCGrad(), dlkit.losses.RandomLossWeighting()):
            logs = fit(compiled(part), 1).history
            assert np.isfinite(logs["loss"]).all()
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def test_validation_is_the_plain_sum():
    x, a, b = reference.data()
    model = compiled(UncertaintyWeighting(KINDS))
    logs = fit(model, validation_data=(x, {"a": a, "b": b})).history
    sums = np.add(logs["val_a_loss"], logs["val_b_loss"])
    extra = 0.01 * np.sum(model.model.get_weights()[0] ** 2)
    assert logs["val_loss"][-1] == pytest.approx(sums[-1] + extra, rel=1e-4)
    assert "val_a_weight" not in logs


def test_sample_weights_count_in_the_loss_alone():
    x, a, b = reference.data()
    model = compiled(UncertaintyWeighting(KINDS, initial_log_variance=1.0))
    half = np.full(len(x), 0.5, "float32")
    l2 = 0.01 * np.sum(reference.network().get_weights()[0] ** 2)
    logs = model.train_on_batch(
        x, {"a": a, "b": b}, {"a": half, "b": half}, return_dict=True
    )
    fitted = np.exp(-1.0) * (0.5 * logs["a_loss"] + logs["b_loss"])
    assert logs["loss"] == pytest.approx(fitted + 1.0 + l2, rel=1e-4)


def absolute_error(y, p):
    return ops.mean(ops.abs(y - p), -1)


def test_masks_functions_and_loss_weights():
    inputs = keras.Input((5, 2))
    h = layers.Masking()(inputs)
    outputs = [
        layers.Dense(1, name="a")(h),
        layers.Dense(3, "softmax", name="b")(h),
    ]
    model = dlkit.attach(
        keras.Model(inputs, outputs), UncertaintyWeighting(KINDS)
    )
    model.compile(
        keras.optimizers.SGD(0.0),
        loss=[absolute_error, "categorical_crossentropy"],
        loss_weights=[3.0, 1.0],
    )
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 5, 2)).astype("float32")
    rows[:, 3:] = 0.0
    y = [
        rng.normal(size=(4, 5, 1)).astype("float32"),
        np.eye(3, dtype="float32")[rng.integers(0, 3, (4, 5))],
    ]
    logs = model.train_on_batch(rows, y, return_dict=True)
    p = model.predict_on_batch(rows)
    expected = [
        np.mean(np.abs(y[0] - p[0])[:, :3]),
        -np.mean(np.log(np.sum(y[1] * p[1], -1))[:, :3]),
    ]
    assert logs["a_loss"] == pytest.approx(expected[0], rel=1e-4)
    assert logs["b_loss"] == pytest.approx(expected[1], rel=1e-4)
    total = 0.5 * 3.0 * expected[0] + expected[1]
    assert logs["loss"] == pytest.approx(total, rel=1e-4)


def test_negative_losses_are_said_once():
    x, a, b = reference.data()
    model = dlkit.attach(reference.network(), UncertaintyWeighting(KINDS))
    model.compile(
        "sgd", loss={"a": lambda y, p: -ops.square(y) + 0.0 * p, "b": "mse"}
    )
    with pytest.warns(UserWarning, match="not negative.*'a'") as caught:
        model.fit(x, {"a": a, "b": b}, epochs=2, verbose=0)
    assert sum("not negative" in str(w.message) for w in caught) == 1


@pytest.mark.parametrize("loss_weights", [None, 0.5])
@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_losses_below_their_bounds(method, loss_weights):
    """Of the one output, which Keras logs no loss of its own for."""
    inputs = keras.Input((4,))
    net = keras.Model(inputs, layers.Dense(1, name="a")(inputs))
    model = dlkit.attach(net, dlkit.losses.FAMO(lower_bounds={"a": -2.0}))
    model.compile(
        "sgd", loss=lambda y, p: 0.0 * p + y, loss_weights=loss_weights
    )
    said = []
    for loss in (-1.0, -3.0, -3.0):
        y = np.full((8, 1), loss / (loss_weights or 1.0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            getattr(model, method)(np.ones((8, 4)), y)
        said.append(sum("'a': -3.0" in str(w.message) for w in caught))
    assert said == [0, 1, 0]


@slow_to_compile
def test_losses_are_looked_at_with_their_weights():
    """Keras logs them without: `a` is below its bound only in its log."""
    x, a, b = reference.data()
    weighting = dlkit.losses.FAMO(lower_bounds={"a": -1.0, "b": -1.0})
    model = dlkit.attach(reference.network(), weighting)
    model.compile(
        "sgd",
        loss={name: lambda y, p: 0.0 * p - 1.5 for name in "ab"},
        loss_weights={"a": 0.5, "b": 0.5},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(x, {"a": a, "b": b}, verbose=0)


def test_detached_the_optimizer_goes_on():
    """Built anew for the weights of the network alone, with their state."""
    model = dlkit.attach(reference.network(), UncertaintyWeighting(KINDS))
    model.compile(keras.optimizers.Adam(0.01), loss={"a": "mse", "b": "mse"})
    fit(model)
    before = model.optimizer
    plain = dlkit.detach(model)
    after = plain.optimizer
    assert after is not before
    assert int(after.iterations) == int(before.iterations) > 0
    weights = len(plain.trainable_variables)
    for name in ("_momentums", "_velocities"):
        old = [ops.convert_to_numpy(v) for v in vars(before)[name]]
        new = [ops.convert_to_numpy(v) for v in vars(after)[name]]
        assert len(new) == weights < len(old)
        matches = [any(np.array_equal(n, o) for o in old) for n in new]
        assert all(matches) and all(n.any() for n in new)


@slow_to_compile
@pytest.mark.parametrize("name", ["masked", "multi"])
def test_of_a_trained_model(name):
    """Its optimizer knows nothing of log-variances: it starts anew.

    Then, and where it is plain again, it spares and prunes what it did.
    """
    if name not in WRAPPED:
        pytest.skip("no MultiOptimizer")
    x, a, b = reference.data()
    net = reference.network()
    spared, decayed = (net.get_layer(key).kernel for key in "ab")
    inner = decaying("AdamW")
    inner.exclude_from_weight_decay([spared])
    optimizer = WRAPPED[name](inner)
    net.compile(optimizer, loss={"a": "mse", "b": "mse"})
    optimizer.build(net.trainable_variables)
    if name == "masked":
        optimizer.set_masks({spared.path: np.array([[0], [1], [1]])})
    net.fit(x, {"a": a, "b": b}, verbose=0)
    before = [ops.convert_to_numpy(w).copy() for w in (spared, decayed)]
    with (
        pytest.warns(UserWarning, match="took over"),
        pytest.warns(UserWarning, match="starts anew"),
    ):
        model = dlkit.attach(net, UncertaintyWeighting(KINDS))
    fit(model)
    if name == "masked":
        assert ops.convert_to_numpy(spared)[0] == 0
        rate = ops.convert_to_numpy(model.optimizer.learning_rate)
        assert rate == pytest.approx(1e-6)
    dlkit.detach(model).fit(x, {"a": a, "b": b}, verbose=0)
    after = [ops.convert_to_numpy(w) for w in (spared, decayed)]
    np.testing.assert_allclose(after[0], before[0], atol=1e-3)
    assert np.abs(after[1]).max() < 0.98 * np.abs(before[1]).max()


@slow_to_compile
def test_list_outputs_and_their_names():
    """Tasks by index or by name, losses as a list or by name."""
    logs = []
    x, a, b = reference.data()
    for tasks in (KINDS, {0: "regression", 1: "classification"}):
        for loss in (["mse", "mse"], {"a": "mse", "b": "mse"}):
            net = reference.network()
            net = keras.Model(net.inputs, [net.output["a"], net.output["b"]])
            model = dlkit.attach(net, UncertaintyWeighting(tasks))
            model.compile("sgd", loss=loss)
            logs.append(model.fit(x, [a, b], shuffle=False, verbose=0).history)
    assert all(log == logs[0] for log in logs)
    assert "a_weight" in logs[0]
