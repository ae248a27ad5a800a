"""What holds for all inputs, and not for those alone that a test thought of.

How many are tried is said by the profiles in `conftest.py`.
"""

import keras
import numpy as np
import pytest
from hypothesis import assume
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.ops import _pruning

CutMix, MixUp = dlkit.layers.CutMix, dlkit.layers.MixUp
CLASSES, ROWS = 3, 6
seeds = st.integers(0, 2**30)
# A backend may take tinier ones for zeros.
floats = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
# Of few shapes: each is compiled once.
shapes = st.sampled_from([(ROWS, 4, 4, 1), (ROWS, 1, 7, 2)])
magnitudes = st.integers(-12, 12).map(lambda exponent: 10.0**exponent)


def to_numpy(x):
    return ops.convert_to_numpy(x)


def normal(seed, shape, scale=1.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=shape)).astype("float32")


# Mixing.


def random_choice(alpha, seed, per_batch=True):
    layers = [
        MixUp(alpha, num_classes=CLASSES, seed=seed),
        CutMix(alpha, num_classes=CLASSES, seed=seed + 1),
    ]
    return dlkit.layers.RandomChoice(layers, seed=seed, per_batch=per_batch)


MIXERS = {
    "mix_up": lambda alpha, seed: MixUp(alpha, num_classes=CLASSES, seed=seed),
    "cut_mix": lambda alpha, seed: CutMix(
        alpha, num_classes=CLASSES, seed=seed
    ),
    "cut_mix_of_one_box": lambda alpha, seed: CutMix(
        alpha, num_classes=CLASSES, seed=seed, per_sample=False
    ),
    "random_choice": random_choice,
    "random_choice_of_samples": lambda alpha, seed: random_choice(
        alpha, seed, per_batch=False
    ),
}
each_mixer = pytest.mark.parametrize("make", MIXERS.values(), ids=MIXERS)


@each_mixer
@given(seed=seeds, alpha=st.floats(0.01, 10.0), shape=shapes)
def test_labels_stay_distributions(make, seed, alpha, shape):
    labels = np.random.default_rng(seed).integers(0, CLASSES, ROWS)
    _, y = make(alpha, seed)((normal(seed, shape), labels))
    assert y.shape == (ROWS, CLASSES) and (y >= 0).all()
    np.testing.assert_allclose(y.sum(-1), 1.0, rtol=1e-6)
    # A row has its own class and that of one partner.
    assert ((y > 0).sum(-1) <= 2).all()


@each_mixer
@given(seed=seeds, value=floats, shape=shapes)
def test_the_weights_of_a_mixture_sum_to_one(make, seed, value, shape):
    """What all rows agree on is what comes out."""
    y = np.full((ROWS, CLASSES), value, "float32")
    x, y = make(1.0, seed)((np.full(shape, value, "float32"), y))
    np.testing.assert_allclose(x, value, rtol=1e-6)
    np.testing.assert_allclose(y, value, rtol=1e-6)


@each_mixer
@given(seed=seeds, scale=magnitudes, shape=shapes)
def test_alpha_zero_changes_nothing(make, seed, scale, shape):
    x, y = normal(seed, shape, scale), normal(seed + 1, (ROWS, CLASSES), scale)
    mixed, targets = make(0.0, seed)((x, y))
    np.testing.assert_array_equal(mixed, x)
    np.testing.assert_array_equal(targets, y)


@given(
    lam=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    place=st.lists(st.floats(0, 1, exclude_max=True), min_size=8, max_size=8),
    sizes=st.sampled_from([(5, 8), (1, 7), (32, 32)]),
)
def test_a_box_holds_the_share_that_is_not_its_own(lam, place, sizes):
    centers = (np.reshape(place, (4, 2)) * sizes).astype("int32")
    lam = np.array(lam, "float32")
    boxes, share = map(to_numpy, dlkit.ops.cut_mix_boxes(lam, centers, *sizes))
    starts, ends = boxes[:, :2], boxes[:, 2:]
    assert (starts >= 0).all() and (ends <= sizes).all()
    cut = np.maximum(ends - starts, 0).prod(-1) / np.prod(sizes)
    np.testing.assert_allclose(share, 1 - cut, atol=1e-6)
    assert ((share >= 0) & (share <= 1)).all()
    assert (cut[lam == 1] == 0).all()


# Masks.

rates = st.lists(st.floats(0.0, 0.95), min_size=1, max_size=6)
scopes = st.sampled_from(["global", "layer"])


def weights_with_ties(seed):
    rng = np.random.default_rng(seed)
    return [np.round(3 * rng.normal(size=s)) for s in ((4, 5), (7,), (2, 3, 2))]


@given(seed=seeds, rates=rates, scope=scopes)
def test_masks_lose_in_each_round_and_never_gain(seed, rates, scope):
    """Whatever the weights have become in between."""
    masks = [np.ones(w.shape, "uint8") for w in weights_with_ties(seed)]
    for index, rate in enumerate(rates):
        weights = weights_with_ties(seed + index)
        new = dlkit.ops.magnitude_masks(weights, masks, rate, scope=scope)
        assert all((a <= b).all() for a, b in zip(new, masks))
        if scope == "global":
            live, left = (sum(int(m.sum()) for m in k) for k in (masks, new))
            assert left == live - round(rate * live)
        masks = new


@given(
    seed=seeds,
    final=st.floats(0.0, 0.99),
    part=st.floats(0.0, 1.0),
    begin=st.integers(0, 10),
    length=st.integers(1, 10),
    power=st.floats(0.1, 9.0),
    scope=scopes,
)
def test_masks_of_a_schedule_lose_and_end_where_it_does(
    seed, final, part, begin, length, power, scope
):
    schedule = dlkit.schedules.PolynomialSparsity(
        final,
        begin_step=begin,
        end_step=begin + length,
        initial_sparsity=part * final,
        power=power,
    )
    steps = range(begin + length + 2)
    sparsity = [schedule(step) for step in steps]
    assert sparsity == sorted(sparsity) and sparsity[-1] == final
    assert all(0 <= s <= final for s in sparsity)
    masks = [np.ones(w.shape, "uint8") for w in weights_with_ties(seed)]
    sizes = [m.size for m in masks]
    for step in steps:
        scores = [np.abs(w) for w in weights_with_ties(seed + step)]
        new = _pruning.prune_to_sparsity(scores, masks, schedule(step), scope)
        assert all((a <= b).all() for a, b in zip(new, masks))
        masks = new
    live = [int(m.sum()) for m in masks]
    if scope == "global":
        assert sum(live) == sum(sizes) - round(final * sum(sizes))
    else:
        assert live == [n - round(final * n) for n in sizes]


@given(seed=seeds, sparsity=st.tuples(*[st.floats(0.0, 0.99)] * 2))
def test_a_sparser_supermask_is_a_part_of_the_other(seed, sparsity):
    scores = weights_with_ties(seed)[0].astype("float32")
    low, high = sorted(sparsity)
    more, less = (
        to_numpy(dlkit.ops.score_mask(scores, s)) for s in (low, high)
    )
    assert (less <= more).all() and set(np.unique(more)) <= {0.0, 1.0}
    for mask, share in ((more, low), (less, high)):
        count = min(round(share * scores.size), scores.size - 1)
        assert (mask == 0).sum() == count


# The energy of directions.

formulas = st.fixed_dictionaries(
    {
        "power": st.sampled_from([0, 1, 2]),
        "half_space": st.booleans(),
        "angular": st.booleans(),
    }
)


def energy(kernel, **formula):
    kernel = np.asarray(kernel, "float32")
    return float(to_numpy(dlkit.ops.hyperspherical_energy(kernel, **formula)))


def spread_out(seed):
    """A kernel whose energy float32 can tell: no two neurons as good as one."""
    kernel = normal(seed, (5, 6))
    unit = kernel / np.linalg.norm(kernel, axis=0)
    cosine = np.abs(unit.T @ unit) - np.eye(6)
    assume(cosine.max() < 0.99 and np.linalg.norm(kernel, axis=0).min() > 0.1)
    return kernel


def same_energy(kernel, other, formula):
    expected = energy(kernel, **formula)
    assert energy(other, **formula) == pytest.approx(
        expected, rel=2e-4, abs=1e-4
    )


@given(
    seed=seeds,
    formula=formulas,
    scales=st.lists(magnitudes, min_size=6, max_size=6),
)
def test_the_energy_has_no_scale(seed, formula, scales):
    kernel = spread_out(seed)
    same_energy(kernel, kernel * np.array(scales), formula)


@given(seed=seeds, formula=formulas, order=st.permutations(range(6)))
def test_the_energy_has_no_order(seed, formula, order):
    kernel = spread_out(seed)
    same_energy(kernel, kernel[:, order], formula)


@given(
    seed=seeds,
    formula=formulas,
    signs=st.lists(st.sampled_from([-1, 1]), min_size=6, max_size=6),
)
def test_in_half_space_the_energy_has_no_signs(seed, formula, signs):
    kernel, signs = spread_out(seed), np.array(signs)
    same_energy(kernel, kernel * signs, {**formula, "half_space": True})
    # All turned at once, it has none anywhere.
    same_energy(kernel, -kernel, formula)


def test_out_of_half_space_a_sign_tells():
    kernel = normal(0, (5, 6))
    signs = np.array([1, -1, 1, 1, -1, 1])
    a, b = (energy(k, half_space=False) for k in (kernel, kernel * signs))
    assert abs(a - b) > 1e-2


# SAM.


@given(seed=seeds, scale=magnitudes, adaptive=st.booleans())
def test_rho_zero_goes_nowhere(seed, scale, adaptive):
    gradients = [normal(seed, (3, 4), scale), normal(seed + 1, (4,), scale)]
    weights = [normal(seed + 2, g.shape) for g in gradients]
    scales = [np.abs(w) + 0.01 for w in weights] if adaptive else None
    moved = dlkit.ops.sam_perturbation(
        [ops.convert_to_tensor(g) for g in gradients],
        [ops.convert_to_tensor(w) for w in weights],
        0.0,
        scales=scales,
    )
    for w, e in zip(weights, moved):
        np.testing.assert_array_equal(w + to_numpy(e), w)


@given(seed=seeds, scale=magnitudes, rho=st.floats(1e-3, 1e3))
def test_the_length_is_rho_whatever_that_of_the_gradient(seed, scale, rho):
    gradients = [normal(seed, (3, 4), scale), normal(seed + 1, (4,), scale)]
    moved = dlkit.ops.sam_perturbation(
        [ops.convert_to_tensor(g) for g in gradients],
        [ops.zeros(g.shape) for g in gradients],
        rho,
    )
    norm = np.sqrt(sum(np.sum(np.float64(to_numpy(e)) ** 2) for e in moved))
    gradient = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in gradients))
    # With the 1e-12 of the formula, which a tiny gradient feels.
    assert norm == pytest.approx(rho * gradient / (gradient + 1e-12), rel=1e-5)


STEPS = {
    "sam": lambda inner: dlkit.optimizers.SAM(inner, rho=0.0),
    "asam": lambda inner: dlkit.optimizers.SAM(
        inner, rho=0.0, adaptive="weights"
    ),
    "gsam": lambda inner: dlkit.optimizers.GSAM(inner, rho=0.0),
    "friendly_sam": lambda inner: dlkit.optimizers.FriendlySAM(inner, rho=0.0),
    "look_sam": lambda inner: dlkit.optimizers.LookSAM(
        inner, rho=0.0, every_steps=2
    ),
    "momentum_sam": lambda inner: dlkit.optimizers.MomentumSAM(inner, rho=0.0),
}


@pytest.fixture(scope="module")
def two_models():
    """By name: that of rho = 0, and the stock one; each is compiled once."""
    made = {}

    def make(name):
        if name not in made:
            nets = [
                keras.Sequential(
                    [
                        keras.Input((4,)),
                        keras.layers.Dense(3, "tanh"),
                        keras.layers.Dense(2),
                    ]
                )
                for _ in range(2)
            ]
            inner = [keras.optimizers.SGD(0.1, momentum=0.5) for _ in nets]
            part = dlkit.attach(nets[0])
            part.compile(STEPS[name](inner[0]), "mse")
            nets[1].compile(inner[1], "mse")
            made[name] = part, nets[1]
        return made[name]

    return make


@pytest.mark.parametrize("name", STEPS)
@given(seed=seeds, scale=st.integers(-3, 3).map(lambda e: 10.0**e))
def test_a_step_of_rho_zero_is_the_stock_step(name, two_models, seed, scale):
    part, stock = two_models(name)
    weights = [normal(seed, w.shape) for w in stock.weights]
    x, y = normal(seed + 1, (ROWS, 4), scale), normal(seed + 2, (ROWS, 2))
    part.model.set_weights(weights), stock.set_weights(weights)
    for model in (part, stock):
        model.train_on_batch(x, y)
    for a, b in zip(part.model.weights, stock.weights):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
