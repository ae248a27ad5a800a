"""GSAM, FriendlySAM, LookSAM and MomentumSAM against float64 NumPy."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit._train_step import lists
from tests.optimizers import reference
from tests.optimizers.comparison import compare
from tests.optimizers.comparison import distance
from tests.optimizers.comparison import numpy_run
from tests.running import slow_to_compile

GSAM, FriendlySAM = dlkit.optimizers.GSAM, dlkit.optimizers.FriendlySAM
LookSAM, MomentumSAM = dlkit.optimizers.LookSAM, dlkit.optimizers.MomentumSAM


@keras.saving.register_keras_serializable("tests")
class Listed(keras.optimizers.schedules.LearningRateSchedule):
    """A value for each update."""

    def __init__(self, values):
        self.values = values

    def __call__(self, step):
        return ops.take(ops.convert_to_tensor(self.values, "float32"), step)

    def get_config(self):
        return {"values": self.values}


# LookSAM looks in the first and the fourth update, where there is nothing.
RADII = Listed([0.2, 0.3, 0.1, 0.0, 0.1, 0.3])

# Arguments of each class, and the rules that they are in NumPy.
METHODS = {
    "gsam": (GSAM, {"alpha": 0.5}, lambda: reference.Gsam(0.5)),
    "gsam_from_clean": (
        GSAM,
        {"alpha": 0.5, "minimize_fp": False},
        lambda: reference.Gsam(0.5, False),
    ),
    "friendly": (
        FriendlySAM,
        {"sigma": 0.75, "decay": 0.5},
        lambda: reference.Friendly(0.75, 0.5),
    ),
    "look": (
        LookSAM,
        {"alpha": 0.5, "every_steps": 3},
        lambda: reference.Look(0.5),
    ),
}
SETTINGS = {
    "plain": {},
    "adaptive": {"rho": 0.5, "adaptive": "weights", "eta": 0.1},
    "norm_layers": {"variables": "gamma|beta"},
    "every_and_late": {
        "every_steps": 2,
        "start_step": 1,
        "adaptive": "all",
        "rho": 0.5,
    },
    "schedule_and_micro": {"rho": RADII, "micro_batches": 3},
}


def check(name, setting, inner="momentum", weighted=False):
    make, own, rules = METHODS[name]
    arguments = {"rho": 0.2, **own, **setting}
    numpy_arguments = {
        k: v
        for k, v in arguments.items()
        if k not in ("alpha", "minimize_fp", "sigma", "decay", "variables")
    }
    if "variables" in arguments:
        numpy_arguments["selected"] = ["gamma", "beta"]
    if arguments["rho"] is RADII:
        numpy_arguments["rho"] = RADII.values.__getitem__
    _, expected = compare(
        lambda optimizer: make(optimizer, **arguments),
        lambda *run: reference.train(*run, method=rules(), **numpy_arguments),
        inner,
        weighted,
        # Differences of gradients lose digits, and one of them is kept on.
        atol=1e-4 if name == "look" else 5e-5,
    )
    # Another method than SAM with the same arguments.
    assert distance(numpy_run(inner, weighted, **numpy_arguments), expected) > (
        2e-4
    )


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", METHODS)
def test_settings_match_float64(name, setting):
    check(name, SETTINGS[setting])


@pytest.mark.parametrize("inner", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("name", ["gsam", "friendly", "look"])
def test_inner_optimizers_match_float64(name, inner):
    check(name, {}, inner)


@slow_to_compile
@pytest.mark.parametrize("name", ["gsam", "friendly", "look"])
def test_sample_weights_match_float64(name):
    check(name, {"micro_batches": 4}, weighted=True)


def check_momentum_sam(setting, inner, weighted=False):
    arguments = {"rho": 0.2, **setting}
    numpy_arguments = dict(arguments)
    if numpy_arguments.pop("variables", None):
        numpy_arguments["selected"] = ["gamma", "beta"]
    if arguments["rho"] is RADII:
        numpy_arguments["rho"] = RADII.values.__getitem__
    _, expected = compare(
        lambda optimizer: MomentumSAM(optimizer, **arguments),
        functools.partial(reference.train_momentum_sam, **numpy_arguments),
        inner,
        weighted,
    )
    assert distance(numpy_run(inner, weighted, rho=0.0), expected) > 1e-3


@pytest.mark.parametrize("inner", ["momentum", "adam", "adamw"])
def test_momentum_sam_matches_float64(inner):
    check_momentum_sam({}, inner, weighted=True)


@pytest.mark.parametrize(
    "setting",
    [
        {"rho": 0.5, "adaptive": "weights", "eta": 0.1},
        {"variables": "gamma|beta"},
        {"start_step": 1, "adaptive": "all", "rho": RADII},
    ],
)
def test_settings_of_momentum_sam_match_float64(setting):
    check_momentum_sam(setting, "momentum")


def test_the_radius_of_gsam_follows_the_learning_rate():
    rates = [0.125, 0.25, 0.5]
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], rates)
    optimizer = GSAM(
        keras.optimizers.SGD(rate),
        rho=0.4,
        rho_min=0.1,
        learning_rate_range=(0.25, 0.75),
    )

    def radius(step):  # of the six steps
        rate = rates[0] if step <= 1 else rates[1] if step <= 3 else rates[2]
        return 0.1 + 0.3 * max(0.0, (rate - 0.25) / 0.5)

    class Falling(reference.SGD):
        steps = 0

        def apply(self, w, g):
            step = self.steps
            self.learning_rate = (
                rates[0] if step <= 1 else rates[1] if step <= 3 else rates[2]
            )
            self.steps += 1
            return super().apply(w, g)

    compare(
        lambda inner: optimizer,
        lambda w, batches, inner: reference.train(
            w, batches, Falling(0.0), radius, method=reference.Gsam(0.4)
        ),
    )


@pytest.mark.parametrize(
    "inner",
    [
        *(keras.optimizers.get(name) for name in ("adam", "adamw", "nadam")),
        *(keras.optimizers.get(name) for name in ("adamax", "lion")),
        keras.optimizers.Lamb(),
        keras.optimizers.Muon(),
        keras.optimizers.RMSprop(momentum=0.9),
        keras.optimizers.SGD(0.1, momentum=0.9),
    ],
    ids=lambda inner: inner.name,
)
def test_momentum_sam_moves_against_the_last_gradient(inner):
    """After one step any momentum is along its gradient."""
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    optimizer = MomentumSAM(inner, rho=0.5)
    variables = net.trainable_variables
    optimizer.build(variables)
    kernel = np.array([[3.0, -4.0], [1.0, 2.0]], "float32")
    gradients = [ops.convert_to_tensor(kernel), ops.zeros((2,))]
    still = optimizer.lookahead([ops.ones((2, 2)), ops.ones(2)], variables)
    assert not np.any(ops.convert_to_numpy(still[0]))
    with optimizer.attached():
        optimizer.apply(gradients, variables)
    e, bias = optimizer.lookahead([ops.ones((2, 2)), ops.ones(2)], variables)
    e = ops.convert_to_numpy(e)
    assert np.linalg.norm(e) == pytest.approx(0.5, rel=1e-4)
    assert (np.sign(e) == -np.sign(kernel)).all()
    np.testing.assert_allclose(ops.convert_to_numpy(bias), 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "inner",
    [
        "sgd",
        "rmsprop",
        "adagrad",
        "adadelta",
        "adafactor",
        "ftrl",
        keras.optimizers.SGD(0.1, momentum=0.0),
        keras.optimizers.Adam(0.1, beta_1=0.0),
    ],
)
def test_momentum_sam_needs_a_momentum(inner):
    with pytest.raises(ValueError, match="must keep one.*Received"):
        MomentumSAM(inner, rho=0.1)


@pytest.mark.parametrize(
    ("make", "arguments", "match"),
    [
        (GSAM, {"alpha": -1}, "alpha"),
        (GSAM, {"rho_min": 0.01}, "learning_rate_range"),
        (GSAM, {"learning_rate_range": (0, 1)}, "rho_min"),
        (GSAM, {"rho_min": 0.2, "learning_rate_range": (0, 1)}, "at most"),
        (GSAM, {"rho_min": 0.0, "learning_rate_range": (1, 1)}, "low < high"),
        (GSAM, {"micro_batches": 0}, "micro_batches"),
        (FriendlySAM, {"sigma": -0.1}, "sigma"),
        (FriendlySAM, {"decay": 1.5}, "decay"),
        (LookSAM, {"alpha": float("nan")}, "alpha"),
        (LookSAM, {"every_steps": 0}, "every_steps"),
        (MomentumSAM, {"rho": -1}, "rho"),
        (MomentumSAM, {"start_step": -1}, "start_step"),
    ],
)
def test_bad_arguments(make, arguments, match):
    with pytest.raises(ValueError, match=match):
        make("adam", **{"rho": 0.1, **arguments})


@pytest.mark.parametrize("argument", ["every_steps", "micro_batches"])
def test_momentum_sam_takes_no_arguments_without_effect(argument):
    with pytest.raises(TypeError, match=f"Received: {{'{argument}': 2}}.*SAM"):
        MomentumSAM("adam", 0.1, **{argument: 2})


@pytest.mark.parametrize("outer", [GSAM, MomentumSAM])
def test_one_of_the_family_at_most(outer):
    inner = dlkit.optimizers.SAM("adam")
    with pytest.raises(ValueError, match="Wrap another"):
        outer(inner, 0.1)


@pytest.mark.parametrize("pair", [0.1, (0.1,), (0.0, 0.1, 0.2)])
def test_a_range_of_learning_rates_that_is_no_pair(pair):
    with pytest.raises(ValueError, match="must be a pair"):
        GSAM("adam", 0.1, rho_min=0.05, learning_rate_range=pair)
    several = keras.optimizers.MultiOptimizer([("sgd", ".*")])
    with pytest.raises(ValueError, match="must have one.*MultiOptimizer"):
        GSAM(several, 0.1, rho_min=0.05, learning_rate_range=(0.0, 1.0))


@pytest.mark.parametrize("name", ["friendly", "look"])
def test_a_bad_batch_does_not_stay_in_the_state(name):
    """A NaN gradient reaches the inner optimizer, not the method's state."""
    make, own, _ = METHODS[name]
    optimizer = make(keras.optimizers.SGD(0.1, momentum=0.9), rho=0.1, **own)
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model = dlkit.attach(net)
    model.compile(optimizer, "mse")
    bad = np.array([[np.nan, 1.0], [1.0, 1.0]], "float32")
    model.fit(bad, np.ones((2, 1)), verbose=0)
    assert optimizer.own_variables
    for variable in optimizer.own_variables:
        assert np.isfinite(ops.convert_to_numpy(variable)).all()


def look_sam_of_two_weights():
    optimizer = LookSAM(keras.optimizers.SGD(0.1), rho=0.1)
    variables = [keras.Variable(np.ones(n, "float32")) for n in (500, 3)]
    optimizer.build(variables)
    rng = np.random.default_rng(0)
    clean = [rng.normal(size=v.shape).astype("float32") for v in variables]
    return optimizer, clean, variables


def test_rounding_is_no_direction_to_look_sam():
    """As long as the gradient it would be, of alpha of the step."""
    optimizer, clean, variables = look_sam_of_two_weights()
    g = [ops.convert_to_tensor(x) for x in clean]
    for move, is_kept in (
        (lambda x: np.nextafter(x, 9), False),
        (np.exp, True),
    ):
        s = [ops.convert_to_tensor(np.asarray(move(x))) for x in clean]
        optimizer.learn(optimizer.remember(g, s, variables), variables)
        for slot in optimizer.own_variables:
            assert np.any(ops.convert_to_numpy(slot)) == is_kept


def test_look_sam_does_not_write_what_it_did_not_learn(monkeypatch):
    optimizer, clean, variables = look_sam_of_two_weights()
    monkeypatch.setattr(lists, "assign_where", None)
    if keras.config.backend() == "tensorflow":
        return  # there both kinds of steps are one graph
    memory = optimizer.remember(clean, None, variables)
    optimizer.learn(memory, variables)
    with pytest.raises(TypeError):
        optimizer.learn([m + 1 for m in memory], variables)


@pytest.mark.parametrize("name", METHODS)
def test_configs(name):
    make, own, _ = METHODS[name]
    optimizer = make("adam", rho=RADII, variables="kernel", **own)
    copy = make.from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()
    assert float(copy.rho(1)) == np.float32(0.3)
