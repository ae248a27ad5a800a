"""Masked, around every optimizer that Keras has."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit import _keras
from keras_dlkit._train_step import masking
from keras_dlkit.optimizers import wrapper_optimizer
from tests.optimizers import reference
from tests.optimizers.comparison import fit
from tests.optimizers.comparison import make_batches
from tests.optimizers.comparison import make_net

Masked = dlkit.optimizers.Masked
optimizers = keras.optimizers
# Not an update rule, or one with arguments that must be given.
WRAPPERS = ("LossScaleOptimizer", "MultiOptimizer", "Optimizer")
ALL = {
    name: cls
    for name, cls in vars(optimizers).items()
    if inspect.isclass(cls)
    and issubclass(cls, optimizers.Optimizer)
    and name not in WRAPPERS
}
# What a slot holds where a weight was never updated, if that is not zero.
BEGIN = {"Adagrad": {"_accumulators": 0.1}, "Ftrl": {"_accumulators": 0.1}}
# What Adafactor keeps is made of the sums of rows and columns.
COUPLED_SLOTS = ("Adafactor",)
MASK = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [1, 0, 0]], "uint8")


def to_numpy(values):
    return [np.asarray(ops.convert_to_numpy(v)) for v in values]


def weights():
    rng = np.random.default_rng(0)
    names = {"kernel": (4, 3), "bias": (3,), "gamma": (2, 3)}
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name)
        for name, shape in names.items()
    ]


def gradients(seed):
    rng = np.random.default_rng(seed)
    shapes = [(4, 3), (3,), (2, 3)]
    return [
        ops.convert_to_tensor(rng.normal(size=s).astype("float32"))
        for s in shapes
    ]


def train(optimizer, variables, steps):
    for step in steps:
        optimizer.apply(gradients(step), variables)


def check_pruned(optimizer, variables, begin=()):
    kernel = variables[0]
    gone = MASK == 0
    assert (to_numpy([kernel])[0][gone] == 0).all()
    inner = wrapper_optimizer.innermost(optimizer)
    slots = _keras.optimizer_slots(inner, kernel)
    if type(inner).__name__ in COUPLED_SLOTS:
        return slots
    for name, slot in slots:
        expected = dict(begin).get(name, 0.0)
        value = to_numpy([slot])[0]
        np.testing.assert_array_equal(value[gone], np.float32(expected), name)
    return slots


SETTINGS = {
    "plain": {},
    "decay": {"weight_decay": 0.1, "clipnorm": 1.0},
    "ema": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "accumulation": {"gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize(
    "name, setting",
    [(name, "plain") for name in ALL]
    + [
        (name, setting)
        for name in ("SGD", "Adagrad", "Muon")
        for setting in list(SETTINGS)[1:]
    ],
)
def test_pruned_places_stay_as_they_began(name, setting):
    optimizer = Masked(ALL[name](0.1, **SETTINGS[setting]))
    variables = weights()
    optimizer.build(variables)
    train(optimizer, variables, range(3))
    optimizer.set_masks({"kernel": MASK})
    begin = BEGIN.get(name, {})
    check_pruned(optimizer, variables, begin)
    for step in range(3, 7):
        train(optimizer, variables, [step])
        check_pruned(optimizer, variables, begin)
    kernel, bias, gamma = to_numpy(variables)
    assert np.isfinite(kernel).all() and (kernel[MASK == 1] != 0).all()
    assert (bias != 0).all() and (gamma != 0).all()


def test_slots_are_found():
    """Else there would be nothing to check above."""
    least = {"SGD": 0, "Adam": 2, "Adagrad": 1, "Ftrl": 2, "Muon": 1, "Lion": 1}
    for name, count in least.items():
        optimizer, variables = Masked(ALL[name](0.1)), weights()
        optimizer.build(variables)
        optimizer.set_masks({"kernel": MASK})
        slots = check_pruned(optimizer, variables, BEGIN.get(name, {}))
        assert len(slots) >= count, (name, slots)


@pytest.mark.parametrize("name", ALL)
def test_masks_of_ones_change_nothing(name):
    plain, variables, others = ALL[name](0.1), weights(), weights()
    masked = Masked(ALL[name](0.1))
    train(plain, variables, range(3))
    train(masked, others, range(3))
    for a, b in zip(to_numpy(variables), to_numpy(others)):
        np.testing.assert_array_equal(a, b)


def test_gradients_are_masked_before_the_norm():
    """Against float64: clipping counts what is left alone."""
    optimizer, variables = (
        Masked(optimizers.SGD(0.5, global_clipnorm=1.0)),
        weights(),
    )
    optimizer.build(variables)
    optimizer.set_masks({"kernel": MASK})
    before = [v.astype("float64") for v in to_numpy(variables)]
    g = [v.astype("float64") for v in to_numpy(gradients(0))]
    g[0] = g[0] * MASK
    norm = np.sqrt(sum((v**2).sum() for v in g))
    train(optimizer, variables, [0])
    for a, b, c in zip(to_numpy(variables), before, g):
        np.testing.assert_allclose(a, b - 0.5 * c / norm, atol=1e-6)


@pytest.mark.skipif(
    not hasattr(optimizers, "MultiOptimizer"), reason="needs Keras 3.15"
)
def test_several_optimizers_at_once():
    parts = {"kernel": optimizers.Adagrad(0.1), "rest": optimizers.Adam(0.1)}
    optimizer = Masked(
        optimizers.MultiOptimizer(
            lambda v: parts["kernel" if v.name == "kernel" else "rest"]
        )
    )
    variables = weights()
    optimizer.build(variables)
    train(optimizer, variables, range(2))
    optimizer.set_masks({"kernel": MASK})
    train(optimizer, variables, range(2, 4))
    slots = check_pruned(optimizer, variables, BEGIN["Adagrad"])
    assert [name for name, _ in slots] == ["_accumulators"]


def test_optimizers_that_are_not_known_are_masked_again():
    class Leaky(optimizers.SGD):
        def apply(self, grads, trainable_variables=None):
            super().apply(grads, trainable_variables)
            for v in self._trainable_variables:
                v.assign(v + 1.0)

    optimizer, variables = Masked(Leaky(0.1)), weights()
    optimizer.build(variables)
    optimizer.set_masks({"kernel": MASK})
    train(optimizer, variables, [0])
    check_pruned(optimizer, variables)


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_zero_slots_without_an_epsilon(name):
    """Where the plain optimizer divides zero by zero."""
    optimizer, variables = Masked(ALL[name](0.1, epsilon=0.0)), weights()
    optimizer.build(variables)
    optimizer.set_masks({"kernel": MASK})
    train(optimizer, variables, range(3))
    check_pruned(optimizer, variables)
    assert np.isfinite(to_numpy(variables)[0]).all()


if keras.config.backend() == "torch":

    @pytest.mark.parametrize("name", ["Adam", "AdamW", "Nadam"])
    def test_no_root_of_zero(name, monkeypatch):
        """It takes twenty times as long as that of other numbers."""
        import torch

        optimizer, variables = Masked(ALL[name](0.1)), weights()
        optimizer.build(variables)
        optimizer.set_masks({"kernel": MASK})
        seen, root = [], torch._foreach_sqrt

        def watched(tensors):
            seen.extend(t.min().item() for t in tensors)
            return root(tensors)

        monkeypatch.setattr(torch, "_foreach_sqrt", watched)
        train(optimizer, variables, range(3))
        assert len(seen) == 9 and min(seen) > 1e-35
        check_pruned(optimizer, variables)

    def test_gradients_are_masked_in_place():
        """A new array for each costs more than the product."""
        optimizer, variables = Masked("sgd"), weights()
        optimizer.build(variables)
        optimizer.set_masks({"kernel": MASK})
        given = gradients(0)
        optimizer.apply(given, variables)
        assert (to_numpy(given)[0][MASK == 0] == 0).all()

    @pytest.mark.parametrize("kind", ["of_two_weights", "of_one_number"])
    def test_gradients_that_share_memory(kind):
        """As `torch.autograd.grad` gives them."""
        optimizer = Masked(optimizers.SGD(1.0))
        pair = [keras.Variable(np.ones((4, 3)), name=n) for n in "ab"]
        optimizer.build(pair)
        masks = [MASK, 1 - MASK]
        optimizer.set_masks(dict(zip("ab", masks)))
        first = ops.full((4, 3), 0.5)
        second = first
        if kind == "of_one_number":
            first, second = (ops.convert_to_tensor(0.5).expand(4, 3),) * 2
        optimizer.apply([first, second], pair)
        for value, mask in zip(to_numpy(pair), masks):
            np.testing.assert_array_equal(value, 0.5 * mask)


class OneMore(keras.constraints.Constraint):
    def __call__(self, w):
        return w + 1.0


def test_constraints_cannot_bring_weights_back():
    optimizer, variables = Masked(optimizers.SGD(0.1)), weights()
    variables[0].constraint = OneMore()
    optimizer.build(variables)
    optimizer.set_masks({"kernel": MASK})
    train(optimizer, variables, [0])
    check_pruned(optimizer, variables)


def test_what_is_prunable():
    net = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(7, 4, name="words"),
            keras.layers.GRU(3, return_sequences=True),
            keras.layers.LayerNormalization(axis=(1, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="out"),
        ]
    )

    def names(**arguments):
        optimizer = Masked("sgd", **arguments)
        optimizer.build(net.trainable_variables)
        return [v.path.rsplit("/", 2)[-2:] for v in optimizer.masked_variables]

    kernels = [name for _, name in names()]
    assert kernels == ["embeddings", "kernel", "recurrent_kernel", "kernel"]
    assert names(include="out") == [["out", "kernel"]]
    assert len(names(exclude="out|words")) == 2
    everything = names(include=lambda v: True, exclude="kernel")
    assert ["out", "bias"] in everything and len(everything) == 5
    attention = keras.layers.MultiHeadAttention(2, 2)
    attention.build((None, 5, 4), (None, 5, 4))
    optimizer = Masked("sgd")
    optimizer.build(attention.trainable_variables)
    assert {v.name for v in optimizer.masked_variables} == {"kernel"}
    assert len(optimizer.masked_variables) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"include": "nowhere"}, "nowhere.*kernel"),
        ({"exclude": "."}, "at least one kernel"),
        ({"exclude": "nowhere"}, "leave out.*exclude='nowhere'"),
    ],
)
def test_nothing_to_prune(arguments, message):
    with pytest.raises(ValueError, match=message):
        Masked("sgd", **arguments).build(weights())


def test_bad_arguments():
    with pytest.raises(ValueError, match="regular expression"):
        Masked("sgd", include="(")
    with pytest.raises(ValueError, match="two `Masked`"):
        Masked(dlkit.optimizers.SAM(Masked("sgd")))
    with pytest.raises(TypeError, match="inner_optimizer"):
        Masked(3)
    optimizer = Masked("sgd")
    with pytest.raises(ValueError, match="not built"):
        optimizer.set_masks({})
    optimizer.build(weights())
    for masks, message in (
        ({"bias": np.ones(3)}, "paths of weights that are masked"),
        ({"kernel": np.ones(3)}, r"shape of the weight, \(4, 3\)"),
        ({"kernel": np.full((4, 3), 0.5)}, "zeros and ones"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.set_masks(masks)


# In `fit`.


def net_with_masks(wrap, inner, attach=True, **compile_arguments):
    rng = np.random.default_rng(0)
    model = make_net(reference.initial_weights(rng))
    if attach:
        model = dlkit.attach(model)
    model.compile(wrap(inner), "mse", **compile_arguments)
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    masked = wrapper_optimizer.find_wrapper(optimizer, Masked)
    masks = half(masked)
    masked.set_masks(masks)
    return model, masked, masks


def half(masked):
    rng = np.random.default_rng(1)
    return {p: rng.uniform(size=m.shape) > 0.5 for p, m in masked.masks.items()}


class Watch(keras.callbacks.Callback):
    """Sees what the weights are in the middle of an epoch."""

    def __init__(self, masked):
        super().__init__()
        self.masked, self.seen = masked, 0

    def on_train_batch_end(self, batch, logs=None):
        assert self.model is not None  # on JAX: gets what the step has left
        masks = self.masked.masks.values()
        for v, mask in zip(self.masked.masked_variables, masks):
            value = np.asarray(ops.convert_to_numpy(v))
            assert (value[mask == 0] == 0).all() and (
                value[mask == 1] != 0
            ).all()
        self.seen += 1


WRAPS = {
    "masked": lambda inner: Masked(inner),
    "muon": lambda inner: Masked(optimizers.Muon(0.1, use_ema=True)),
    "inside_scaler": lambda inner: optimizers.LossScaleOptimizer(Masked(inner)),
    "around_scaler": lambda inner: Masked(optimizers.LossScaleOptimizer(inner)),
    "around_sam": lambda inner: Masked(dlkit.optimizers.SAM(inner, rho=0.2)),
    "inside_sam": lambda inner: dlkit.optimizers.SAM(Masked(inner), rho=0.2),
    "in_all": lambda inner: optimizers.LossScaleOptimizer(
        dlkit.optimizers.SAM(Masked(inner), rho=0.2), initial_scale=8.0
    ),
    "friendly": lambda inner: Masked(dlkit.optimizers.FriendlySAM(inner, 0.2)),
    "gsam": lambda inner: dlkit.optimizers.GSAM(Masked(inner), 0.2),
    "look": lambda inner: Masked(
        dlkit.optimizers.LookSAM(inner, 0.2, every_steps=2)
    ),
    "momentum": lambda inner: Masked(dlkit.optimizers.MomentumSAM(inner, 0.2)),
}


def numpy_masked(w, masks, batches, rho, inner):
    """SAM over the living weights, in float64."""
    net = reference.Net()
    masks = [masks.get(i, 1.0) for i in range(len(w))]
    w = [a * m for a, m in zip(w, masks)]
    for batch in batches:
        g = [a * m for a, m in zip(net.gradient(w, *batch), masks)]
        e = reference.perturbation(g, w, rho)
        s = net.gradient([a + b for a, b in zip(w, e)], *batch)
        net.update(w, batch[0])
        w = inner.apply(w, [a * m for a, m in zip(s, masks)])
    return w


@pytest.mark.parametrize("name", WRAPS)
def test_in_fit_and_with_sam(name):
    inner = optimizers.SGD(0.125, momentum=0.75)
    attach = name not in ("masked", "muon", "inside_scaler")
    model, masked, masks = net_with_masks(WRAPS[name], inner, attach)
    batches = make_batches(np.random.default_rng(2))
    watch = Watch(masked)
    data = [np.concatenate(t).astype("float32") for t in zip(*batches)]
    model.fit(*data, batch_size=7, shuffle=False, verbose=0, callbacks=[watch])
    assert watch.seen == len(batches)
    if name in ("friendly", "gsam", "look", "momentum", "muon"):
        return
    rho = 0.2 if name in ("around_sam", "inside_sam", "in_all") else 0.0
    expected = numpy_masked(
        reference.initial_weights(np.random.default_rng(0)),
        dict(zip((0, 3), masks.values())),
        batches,
        rho,
        reference.SGD(0.125, 0.75),
    )
    for a, b in zip(to_numpy(model.trainable_variables), expected):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="others need no pieces"
)
def test_masked_piece_by_piece(monkeypatch):
    monkeypatch.setattr(masking, "PIECE", 4)
    mask = keras.Variable(np.eye(3, 5), dtype="uint8", trainable=False)
    values = np.arange(1.0, 16.0, dtype="float32").reshape(3, 5)
    for order in "CF":  # in one piece, where memory is in another order
        tensor = ops.convert_to_tensor(np.array(values, order=order))
        got = masking.masked_gradient(tensor, mask)
        assert got is tensor
        np.testing.assert_array_equal(to_numpy([got])[0], values * np.eye(3, 5))


def test_saved_and_loaded(tmp_path):
    model, masked, masks = net_with_masks(
        lambda inner: Masked(inner, exclude="bias"), optimizers.Adam(0.05)
    )
    batches = make_batches(np.random.default_rng(2))
    fit(model, batches)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for m in (model, loaded):
        fit(m, batches)
    assert isinstance(loaded.optimizer, Masked)
    assert loaded.optimizer.exclude == "bias"
    for a, b in zip(loaded.optimizer.masks.values(), masks.values()):
        np.testing.assert_array_equal(a, b)
    a, b = (
        m.trainable_variables + m.optimizer.variables for m in (model, loaded)
    )
    for x, y in zip(to_numpy(a), to_numpy(b)):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("attach", [True, False])
def test_detach_takes_the_masks_off(attach, tmp_path):
    inner = optimizers.SGD(0.1, momentum=0.5)
    model, _, _ = net_with_masks(lambda i: Masked(i), inner, attach)
    batches = make_batches(np.random.default_rng(2))
    fit(model, batches)
    plain = dlkit.detach(model)
    assert type(plain) is keras.Sequential and plain.optimizer is inner
    fit(plain, batches)
    assert all((v != 0).all() for v in to_numpy(plain.trainable_variables[:1]))
    config = plain.get_compile_config()["optimizer"]
    assert config["class_name"] == "SGD"
