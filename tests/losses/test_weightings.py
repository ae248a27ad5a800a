"""Every weighting against float64 NumPy, over epochs of real steps."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit._train_step import tasks
from tests.losses import reference
from tests.losses.reference import softmax
from tests.running import slow_to_compile
from tests.running import weights_of


class Equal:
    def weigh(self, losses, gradients):
        return np.ones(2)


class Uncertainty:
    """Regression and classification; trained by the same SGD."""

    def __init__(self, liebel=False, bounds=(-6.0, 6.0)):
        self.s, self.liebel, self.bounds = np.zeros(2), liebel, bounds

    def weigh(self, losses, gradients):
        weights = np.array([0.5, 1.0]) * np.exp(-self.s)
        slope = 1 / (1 + np.exp(-self.s)) if self.liebel else 0.5
        self.s = np.clip(
            self.s - reference.RATE * (slope - weights * losses), *self.bounds
        )
        return weights


class Geometric:
    def weigh(self, losses, gradients):
        return np.sqrt(losses.prod()) / losses / 2


class SoftOptimal:
    def weigh(self, losses, gradients):
        return softmax(1 / losses / 3.0)


class DynamicAverage:
    def __init__(self):
        self.means, self.now = [], []

    def epoch(self):
        if self.now:
            self.means.append(np.mean(self.now, axis=0))
            self.now = []

    def weigh(self, losses, gradients):
        self.now.append(losses)
        ratio = np.ones(2)
        if len(self.means) > 1:
            ratio = self.means[-1] / self.means[-2]
        return 2 * softmax(ratio / 0.5)


class Famo:
    def __init__(self):
        self.xi = self.m = self.v = np.zeros(2)
        self.t = 0

    def weigh(self, losses, gradients):
        z = softmax(self.xi)
        return z / losses / np.sum(z / losses)

    def after(self, before, after):
        fall = np.log(before) - np.log(after)
        z = softmax(self.xi)
        jacobian = np.diag(z) - np.outer(z, z)
        g = jacobian @ fall + 0.01 * self.xi
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        mean, square = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        self.xi = self.xi - 0.025 * mean / (np.sqrt(square) + 1e-8)


class Projected:
    """The vectors themselves; the weights are found from the outcome."""

    def weigh(self, losses, gradients):
        total = projected(gradients, [[1], [0]])
        return np.linalg.lstsq(gradients.T, total, rcond=None)[0]


def projected(gradients, orders):
    total = 0.0
    for own, order in zip(gradients, orders):
        g = own.copy()
        for j in order:
            product = g @ gradients[j]
            if product < 0:
                g = g - product / (gradients[j] @ gradients[j]) * gradients[j]
        total = total + g
    return total


KINDS = {"a": "regression", "b": "classification"}
W = dlkit.losses
METHODS = {
    "equal": (W.EqualWeighting, Equal),
    "uncertainty": (lambda: W.UncertaintyWeighting(KINDS), Uncertainty),
    "liebel": (
        lambda: W.UncertaintyWeighting(KINDS, formula="liebel"),
        lambda: Uncertainty(liebel=True),
    ),
    "bounded": (
        lambda: W.UncertaintyWeighting(KINDS, bounds=(-0.1, 0.2)),
        lambda: Uncertainty(bounds=(-0.1, 0.2)),
    ),
    "geometric": (W.GeometricLossStrategy, Geometric),
    "soft_optimal": (
        lambda: W.SoftOptimalUncertaintyWeighting(temperature=3.0),
        SoftOptimal,
    ),
    "dynamic_average": (
        lambda: W.DynamicWeightAverage(temperature=0.5),
        DynamicAverage,
    ),
    "famo": (W.FAMO, Famo),
    "pc_grad": (lambda: W.PCGrad(seed=1), Projected),
}


def compiled(part, optimizer=None, **arguments):
    model = dlkit.attach(reference.network(), part)
    model.compile(
        optimizer or keras.optimizers.SGD(reference.RATE),
        loss={"a": "mse", "b": "mse"},
        **arguments,
    )
    return model


def fit(model, epochs=3, **arguments):
    x, a, b = reference.data()
    arguments = {"batch_size": reference.ROWS, "verbose": 0, **arguments}
    return model.fit(
        x, {"a": a, "b": b}, epochs=epochs, shuffle=False, **arguments
    )


@pytest.mark.parametrize("name", METHODS)
def test_against_numpy(name):
    part, method = METHODS[name]
    model = compiled(part())
    expected = reference.Reference(weights_of(model.model), method())
    history = fit(model).history
    expected.fit(3, *reference.data())
    for got, want in zip(weights_of(model.model), expected.weights):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
    ends = expected.logged[reference.STEPS - 1 :: reference.STEPS]
    for index, task in enumerate("ab"):
        np.testing.assert_allclose(
            history[f"{task}_weight"],
            [end[index] for end in ends],
            rtol=2e-4,
            atol=1e-5,
        )
    if name == "pc_grad":  # or nothing was tested
        assert any(max(abs(w - 1)) > 1e-2 for w in expected.logged)


@pytest.mark.parametrize("name", ["uncertainty", "famo", "pc_grad"])
def test_options_of_keras(name):
    """Steps an execution, a scaler and XLA change nothing."""
    make = METHODS[name][0]
    plain = fit(compiled(make(), jit_compile=False)).history
    scaler = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(reference.RATE)
    )
    models = [compiled(make(), scaler)]
    if keras.config.backend() != "torch":  # which takes one, and compiles not
        models.append(compiled(make(), steps_per_execution=3))
        models.append(compiled(make(), jit_compile=True))
    for model in models:
        history = fit(model).history
        for key, values in plain.items():
            np.testing.assert_allclose(
                history[key], values, rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize("name", ["uncertainty", "pc_grad", "famo"])
def test_with_sam(name):
    """A tiny rho is none; a large one makes a difference."""
    SAM = dlkit.optimizers.SAM
    optimizers = [
        keras.optimizers.SGD(reference.RATE),
        SAM(keras.optimizers.SGD(reference.RATE), rho=1e-12),
        SAM(keras.optimizers.SGD(reference.RATE), rho=0.5),
    ]
    models = [compiled(METHODS[name][0](), o) for o in optimizers]
    x, a, b = (v[: reference.ROWS] for v in reference.data())
    logs = [
        model.train_on_batch(x, {"a": a, "b": b}, return_dict=True)
        for model in models
    ]
    for task in "ab":  # as the first pass has it
        weights = [log[f"{task}_weight"] for log in logs]
        np.testing.assert_allclose(weights, weights[0], rtol=1e-4)
    for model in models:
        fit(model)
    without, null, moved = (weights_of(model.model) for model in models)
    for a, b in zip(without, null):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    if name == "pc_grad":  # one draw of orders for both passes
        drawn = [
            ops.convert_to_numpy(m.task_weighting.seed_generator.state)
            for m in models
        ]
        np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.max(np.abs(without[0] - moved[0])) > 1e-3


def test_famo_learns_from_updates_alone():
    """Not where gradients are accumulated, nor where they overflow."""
    x, a, b = (
        np.repeat(v.reshape(reference.STEPS, 1, reference.ROWS, -1), 2, axis=1)
        for v in reference.data()
    )
    part, method = W.FAMO(), Famo()
    rate = reference.RATE
    model = compiled(
        part, keras.optimizers.SGD(rate, gradient_accumulation_steps=2)
    )
    expected = reference.Reference(weights_of(model.model), method)
    expected.fit(1, *reference.data())
    model.fit(
        x.reshape(-1, 4),
        {"a": a.reshape(-1, 1), "b": b.reshape(-1, 1)},
        batch_size=reference.ROWS,
        shuffle=False,
        verbose=0,
    )
    logits = ops.convert_to_numpy(part.logits)
    np.testing.assert_allclose(logits, method.xi, rtol=1e-3, atol=1e-5)
    for got, want in zip(weights_of(model.model), expected.weights):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)

    part = W.FAMO()
    scaler = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(rate), initial_scale=2.0**127
    )
    model = compiled(part, scaler)
    part.logits.assign([0.5, -0.5])  # which `decay` would change
    before = weights_of(model.model)
    model.train_on_batch(x[0, 0], {"a": 99 * a[0, 0], "b": 99 * b[0, 0]})
    for got, want in zip(weights_of(model.model), before):
        np.testing.assert_array_equal(got, want)
    assert ops.convert_to_numpy(part.logits).tolist() == [0.5, -0.5]
    assert float(ops.convert_to_numpy(part.steps)) == 0.0


def test_the_average_of_losses_that_are_zero():
    """One that stays there is like one that stays anywhere.

    One that leaves it has a ratio of 10.
    """
    part = W.DynamicWeightAverage(["a", "b"])
    weights = []
    for epoch, losses in enumerate(
        [[0.0, 2.0], [0.0, 1.0], [1e33, 1.0], [1, 1]]
    ):
        part.set_epoch(epoch)
        weights.append(
            ops.convert_to_numpy(part.weigh(ops.convert_to_tensor(losses)))
        )
    ratios = [[1.0, 1.0], [1.0, 1.0], [1.0, 0.5], [10.0, 1.0]]
    expected = [2 * softmax(np.array(r) / 2.0) for r in ratios]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


class Fixed:
    def __init__(self, weights):
        self.weights = weights

    def weigh(self, losses, gradients):
        return self.weights


def test_random_weights():
    model = compiled(W.RandomLossWeighting(seed=3))
    expected = reference.Reference(weights_of(model.model), None)
    x, a, b = reference.data()
    seen = []
    for start in range(0, len(x), reference.ROWS):
        rows = slice(start, start + reference.ROWS)
        logs = model.train_on_batch(
            x[rows], {"a": a[rows], "b": b[rows]}, return_dict=True
        )
        drawn = np.array([logs["a_weight"], logs["b_weight"]], "float64")
        expected.method = Fixed(drawn)
        expected.step(x[rows], a[rows], b[rows])
        seen.append(drawn)
    np.testing.assert_allclose(np.sum(seen, axis=1), 1.0, atol=1e-6)
    assert np.std(seen, axis=0).min() > 0.01
    for got, want in zip(weights_of(model.model), expected.weights):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_each_inner_product():
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    vectors = [[None, ops.convert_to_tensor(row)] for row in rows]
    products = ops.convert_to_numpy(tasks.inner_products(vectors))
    np.testing.assert_allclose(products, rows @ rows.T, rtol=1e-5, atol=1e-6)


def test_projections_of_three_tasks():
    """The outcome is that of one choice of orders, and not of one alone."""
    rng = np.random.default_rng(2)
    part = W.PCGrad(["a", "b", "c"], seed=1)
    choices = [
        list(itertools.permutations([j for j in range(3) if j != i]))
        for i in range(3)
    ]
    found = set()
    for _ in range(12):
        gradients = rng.normal(size=(3, 4))
        gradients[2] = -0.8 * gradients[0] - gradients[1]
        products = ops.convert_to_tensor(gradients @ gradients.T, "float32")
        got = ops.convert_to_numpy(part.weigh_gradients(products)) @ gradients
        fits = [
            index
            for index, orders in enumerate(itertools.product(*choices))
            if np.allclose(got, projected(gradients, orders), atol=1e-3)
        ]
        assert fits
        found.update(fits)
    assert len(found) > 2


@slow_to_compile
@pytest.mark.parametrize("name", METHODS)
def test_saved_and_resumed(name, tmp_path):
    """Two epochs, saved, loaded and one more: as three in one go."""
    part = METHODS[name][0]
    unbroken = compiled(part())
    history = fit(unbroken, 3).history
    broken = compiled(part())
    fit(broken, 2)
    broken.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    resumed = fit(loaded, 3, initial_epoch=2).history
    for a, b in zip(weights_of(unbroken), weights_of(loaded)):
        np.testing.assert_array_equal(a, b)
    assert resumed["a_weight"][-1] == history["a_weight"][-1]
    keras.saving.load_model(tmp_path / "model.keras", compile=False)


def test_tasks_are_the_outputs():
    for names in (["a"], ["a", "c"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="must be the outputs"):
            compiled(W.PCGrad(names))
    with pytest.raises(ValueError, match="each once"):
        W.PCGrad(["a", "a"])
    with pytest.raises(ValueError, match="at least one"):
        W.PCGrad([])
    model = compiled(W.EqualWeighting())
    with pytest.raises(ValueError, match=r"`compile` before.*attach\(detach"):
        model.compile("sgd", loss={"a": "mse"})


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: W.UncertaintyWeighting(["a", "b"]), "must be a dict"),
        (
            lambda: W.UncertaintyWeighting({"a": "mse"}),
            r"tasks\['a'\]` must be one of",
        ),
        (
            lambda: W.UncertaintyWeighting({"a": ["regression"]}),
            r"tasks\['a'\]` must be one of",
        ),
        (
            lambda: W.UncertaintyWeighting(KINDS, formula="gal"),
            "`formula` must be one of",
        ),
        (
            lambda: W.UncertaintyWeighting(KINDS, bounds=(2.0, -2.0)),
            "low < high",
        ),
        (lambda: W.UncertaintyWeighting(KINDS, bounds=3.0), "low, high"),
        (
            lambda: W.UncertaintyWeighting(KINDS, bounds=(-200.0, 0.0)),
            "at least -80.*-200",
        ),
        (
            lambda: W.UncertaintyWeighting(KINDS, initial_log_variance=9.0),
            "Widen `bounds`",
        ),
        (
            lambda: W.UncertaintyWeighting(
                KINDS, initial_log_variance={"a": 1.0}
            ),
            "an entry for each",
        ),
        (
            lambda: W.SoftOptimalUncertaintyWeighting(temperature=0.0),
            "above 0",
        ),
        (lambda: W.DynamicWeightAverage(temperature=-1.0), "at least 0"),
        (lambda: W.FAMO(learning_rate=-1.0), "at least 0"),
        (lambda: W.FAMO(lower_bounds=[1]), "must be a dict"),
        *(
            (lambda tasks=tasks: W.EqualWeighting(tasks), "must be a list")
            for tasks in ("a", [["a"]], 3)
        ),
        (lambda: compiled(W.FAMO(lower_bounds={"a": 0.0})), "each of"),
        (
            lambda: compiled(
                W.FAMO(), dlkit.optimizers.SAM("sgd", micro_batches=2)
            ),
            "micro_batches",
        ),
        (
            lambda: compiled(
                W.FAMO(), dlkit.optimizers.MomentumSAM("adam", rho=0.3)
            ),
            "moved point",
        ),
    ],
)
def test_bad_input(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()
