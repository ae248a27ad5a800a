"""MagnitudePruning in `fit`: counts, steps, patterns, and what it refuses."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.ops import _pruning
from tests import zoo
from tests.running import slow_to_compile
from tests.schedules.test_sparsity import Pruning

BACKEND = keras.config.backend()
# Most of these take longer to trace than to run.
EAGER = BACKEND == "tensorflow"
MagnitudePruning = dlkit.callbacks.MagnitudePruning
Constant = dlkit.schedules.ConstantSparsity
Polynomial = dlkit.schedules.PolynomialSparsity
Masked = dlkit.optimizers.Masked


def net(seed=0, optimizer=None, **arguments):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(12, "tanh"), layers.Dense(4)]
    )
    optimizer = optimizer or keras.optimizers.Adam(0.01)
    arguments = {"run_eagerly": EAGER, **arguments}
    model.compile(optimizer, "mse", **arguments)
    return model


def data(rows=20):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(rows, 8)).astype("float32"),
        rng.normal(size=(rows, 4)).astype("float32"),
    )


def kernels(model):
    return [
        np.asarray(ops.convert_to_numpy(v))
        for v in model.trainable_variables
        if len(v.shape) > 1
    ]


def zeros(model):
    return sum((k == 0).sum() for k in kernels(model))


class Zeros(keras.callbacks.Callback):
    """The zeros after each execution."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def on_train_batch_end(self, batch, logs=None):
        self.counts.append(zeros(self.model))


def run(model, pruning, epochs=2, batch_size=2, **arguments):
    watch = Zeros()
    x, y = data()
    history = model.fit(
        x,
        y,
        epochs=epochs,
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[pruning, watch],
        **arguments,
    )
    return watch.counts, history.history


SIZE = 8 * 12 + 12 * 4


def expected_counts(schedule, every, begin, end, last, steps):
    """From the words of the docstring: a step a line."""
    counts, now = [], 0
    for step in range(1, steps + 1):
        if step % every == 0 or step in (max(begin, 1), end, last):
            now = max(now, round(schedule(step) * SIZE))
        counts.append(now)
    return counts


@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_exactly_so_many_are_zero_after_each_step(every):
    schedule = Polynomial(0.8, begin_step=2, end_step=17)
    counts, history = run(net(), MagnitudePruning(schedule, every_steps=every))
    assert counts == expected_counts(schedule, every, 2, 17, 20, 20)
    assert counts[-1] == round(0.8 * SIZE)
    assert history["sparsity"][-1] == pytest.approx(0.8, abs=1 / SIZE)


def test_a_schedule_longer_than_the_fit_gets_as_far_as_it_can():
    schedule = Polynomial(0.8, begin_step=0, end_step=25)
    counts, _ = run(net(), MagnitudePruning(schedule, every_steps=6))
    assert counts == expected_counts(schedule, 6, 0, 25, 20, 20)


@slow_to_compile
def test_any_function_and_a_pruning_schedule_as_it_is():
    counts, _ = run(
        net(), MagnitudePruning(lambda step: step / 40, every_steps=8)
    )
    assert counts == expected_counts(lambda t: t / 40, 8, 0, None, 20, 20)
    schedule = Pruning(0.75, 3, 14, frequency=4)
    counts, _ = run(net(), MagnitudePruning(schedule, every_steps=1))
    turns = {3, 7, 11, 14}
    now, expected = 0, []
    for step in range(1, 21):
        if step in turns:
            now = round(float(schedule(step)[1]) * SIZE)
        expected.append(now)
    assert counts == expected and counts[-1] == round(0.75 * SIZE)


def test_a_pruning_schedule_of_tfmot_itself():
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    decay = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.75, 3, 14, frequency=4)
    counts, _ = run(net(), MagnitudePruning(decay, every_steps=1))
    steps = np.array([3, 7, 11, 14])  # its own turns, and its end
    sparsity = 0.75 * (1 - (1 - (steps - 3) / 11) ** 3)
    turns = dict(zip(steps, np.round(sparsity * SIZE)))
    expected = [
        max([0, *(turns[t] for t in steps if t <= i)]) for i in range(1, 21)
    ]
    assert counts == expected


def test_the_smallest_go_and_what_is_left_is_trained():
    model = net()
    before = kernels(model)
    run(model, MagnitudePruning(Constant(0.5)), epochs=1, batch_size=20)
    flat = np.abs(np.concatenate([k.ravel() for k in before]))
    gone = np.argsort(flat, kind="stable")[: SIZE // 2]
    after = np.concatenate([k.ravel() for k in kernels(model)])
    assert set(np.flatnonzero(after == 0)) == set(gone)
    moved = after != np.concatenate([k.ravel() for k in before])
    # But for neurons that nothing leaves any more.
    assert moved.mean() > 0.9


@slow_to_compile
def test_layer_scope_and_patterns():
    model = net()
    run(model, MagnitudePruning(Constant(0.5), scope="layer"))
    assert [(k == 0).mean() for k in kernels(model)] == [0.5, 0.5]
    model = net()
    run(model, MagnitudePruning(Constant(0.5), n_m=(2, 4)))
    for kernel in kernels(model):
        live = (kernel != 0).reshape(-1, 4, kernel.shape[-1]).sum(1)
        assert (live == 2).all()
    model = net()
    run(model, MagnitudePruning(Constant(0.5), block_size=(4, 2)))
    blocks = []
    for kernel in kernels(model):
        rows, columns = kernel.shape
        grid = (kernel != 0).reshape(rows // 4, 4, columns // 2, 2)
        blocks += list(grid.sum((1, 3)).ravel())
    assert set(blocks) == {0, 8} and np.mean(np.equal(blocks, 0)) == 0.5


def test_include_and_exclude():
    model = net()
    last = model.layers[-1].name
    run(model, MagnitudePruning(Constant(0.5), exclude=last))
    assert [(k == 0).mean() for k in kernels(model)] == [0.5, 0.0]
    assert len(model.optimizer.masks) == 1
    # What is frozen may be named, of which the optimizer has nothing.
    frozen = net()
    frozen.layers[-1].trainable = False
    frozen.compile("sgd", "mse")
    last = frozen.layers[-1].name
    MagnitudePruning(Constant(0.5), exclude=last).set_model(frozen)
    assert len(frozen.optimizer.masks) == 1


@pytest.mark.parametrize("accumulate", [None, 2])
def test_steps_are_updates(accumulate):
    optimizer = keras.optimizers.SGD(
        0.01, momentum=0.5, gradient_accumulation_steps=accumulate
    )
    schedule = Polynomial(0.8, begin_step=1, end_step=9)
    pruning = MagnitudePruning(schedule, every_steps=4)
    counts, _ = run(net(optimizer=optimizer), pruning)
    k = accumulate or 1
    updates = expected_counts(schedule, 4, 1, 9, 20 // k, 20 // k)
    # Before the batch on which the update is made.
    assert counts == [([0] + updates)[i // k] for i in range(1, 21)]


@slow_to_compile
def test_a_second_fit_goes_on():
    schedule = Polynomial(0.8, begin_step=1, end_step=30)
    model, pruning = net(), MagnitudePruning(schedule, every_steps=5)
    first, _ = run(model, pruning)
    masks = model.optimizer.masks
    masked = model.optimizer
    second, _ = run(model, pruning)
    both = first + second
    # The last step of the first `fit` is a multiple of 5 all the same.
    assert both == expected_counts(schedule, 5, 1, 30, 40, 40)
    assert model.optimizer is masked  # adopted
    for path, mask in model.optimizer.masks.items():
        assert (mask <= masks[path]).all()


@slow_to_compile
def test_saved_in_the_middle_it_goes_on_as_unbroken(tmp_path):
    schedule = Polynomial(0.8, begin_step=1, end_step=30)
    whole, x_y = net(), data()
    arguments = {"batch_size": 4, "shuffle": False, "verbose": 0}
    pruning = MagnitudePruning(schedule, every_steps=4)
    whole.fit(*x_y, epochs=6, callbacks=[pruning], **arguments)
    broken = net()
    with pytest.warns(UserWarning, match="stopped at update 15.*to 30"):
        broken.fit(
            *x_y,
            epochs=6,
            callbacks=[MagnitudePruning(schedule, every_steps=4), Stop(3)],
            **arguments,
        )
    broken.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert isinstance(loaded.optimizer, Masked)
    pruning = MagnitudePruning(schedule, every_steps=4)
    loaded.fit(
        *x_y, epochs=6, initial_epoch=3, callbacks=[pruning], **arguments
    )
    for a, b in zip(
        whole.variables + whole.optimizer.variables,
        loaded.variables + loaded.optimizer.variables,
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        )


class Stop(keras.callbacks.Callback):
    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 == self.epochs


@slow_to_compile
def test_a_trained_optimizer_keeps_its_state():
    # In the graph: what was compiled before must not train on.
    model, plain = net(run_eagerly=False), net(run_eagerly=False)
    x, y = data()
    for m in (model, plain):
        m.fit(x, y, verbose=0, shuffle=False)
    never = MagnitudePruning(lambda step: 1e-9, every_steps=100)
    model.fit(x, y, verbose=0, shuffle=False, callbacks=[never])
    plain.fit(x, y, verbose=0, shuffle=False)
    for a, b in zip(kernels(model), kernels(plain)):
        np.testing.assert_array_equal(a, b)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 2


def test_mixed_float16_and_loading(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = net()
    run(model, MagnitudePruning(Constant(0.5)))
    scaler = model.optimizer
    assert isinstance(scaler, keras.optimizers.LossScaleOptimizer)
    assert isinstance(scaler.inner_optimizer, Masked)
    assert zeros(model) == SIZE // 2
    model.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert isinstance(loaded.optimizer.inner_optimizer, Masked)
    assert not isinstance(
        loaded.optimizer.inner_optimizer.inner_optimizer,
        keras.optimizers.LossScaleOptimizer,
    )
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        )
    run(loaded, MagnitudePruning(Constant(0.5)))
    assert zeros(loaded) == SIZE // 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["nested", "subclassed", "masked", "convolutional"]
)
def test_models_of_all_kinds(name):
    model, arguments, compile_arguments = zoo.make(name)
    if not model.built:
        model(arguments["x"][:2])
    model.compile("adam", **compile_arguments)
    pruning = MagnitudePruning(Constant(0.5), scope="layer")
    model.fit(**arguments, epochs=2, verbose=0, callbacks=[pruning])
    for v in model.optimizer.masked_variables:
        share = (np.asarray(ops.convert_to_numpy(v)) == 0).mean()
        assert share == pytest.approx(0.5, abs=0.1), v.path


def test_an_attached_model_with_sam():
    with pytest.warns(UserWarning, match="took over"):
        model = dlkit.attach(net())
    model.compile(dlkit.optimizers.SAM("adam", rho=0.1), "mse")
    counts, _ = run(model, MagnitudePruning(Constant(0.5, begin_step=5)))
    assert counts == [0] * 4 + [SIZE // 2] * 16
    plain = dlkit.detach(model)
    assert isinstance(plain.optimizer, keras.optimizers.Adam)


if BACKEND != "torch":

    def test_several_steps_in_one_execution():
        """Where a count of hooks would see 5 of the 20 steps."""
        schedule = Polynomial(0.8, begin_step=2, end_step=17)
        model = net(steps_per_execution=4, run_eagerly=False)
        counts, _ = run(model, MagnitudePruning(schedule, every_steps=3))
        every = expected_counts(schedule, 3, 2, 17, 20, 20)
        # Ten batches: executions of 4, 4 and 2 steps.
        assert counts == [every[i - 1] for i in (4, 8, 10, 14, 18, 20)]

    def test_nothing_is_traced_again():
        traces = []

        class Traced(layers.Layer):
            def call(self, x):
                traces.append(1)
                return x

        model = keras.Sequential([keras.Input((8,)), Traced(), layers.Dense(4)])
        model.compile("adam", "mse")
        x, y = data()
        seen = []

        class Count(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                seen.append(len(traces))

        schedule = Polynomial(0.8, begin_step=1, end_step=10)
        pruning = MagnitudePruning(schedule, every_steps=1)
        model.fit(x, y, batch_size=2, verbose=0, callbacks=[pruning, Count()])
        assert seen[0] == seen[-1]


def test_verbose_says_what_it_did(capsys):
    model = net()
    x, y = data()
    pruning = MagnitudePruning(Constant(0.5))
    model.fit(x, y, verbose=2, callbacks=[pruning])
    assert "put `Masked` around" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"schedule": 0.5}, TypeError, "schedule"),
        (
            {"schedule": Constant(0.5), "every_steps": 0},
            ValueError,
            "every_steps",
        ),
        ({"schedule": Constant(0.5), "scope": "net"}, ValueError, "scope"),
        ({"schedule": Constant(0.5), "n_m": (4, 4)}, ValueError, "n < m"),
        ({"schedule": Constant(0.5), "n_m": 2}, ValueError, "pair"),
        (
            {"schedule": Constant(0.5), "n_m": (2, 4), "block_size": (2, 2)},
            ValueError,
            "one pattern",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MagnitudePruning(**arguments)


@pytest.mark.parametrize(
    "pruning, message",
    [
        (
            lambda: MagnitudePruning(Constant(0.5, begin_step=21)),
            "prune nothing.*step 20",
        ),
        (lambda: MagnitudePruning(lambda t: 0.5 - t / 100), "never go down"),
        (lambda: MagnitudePruning(lambda t: t), r"schedule\(1\).*less than 1"),
        (
            lambda: MagnitudePruning(Constant(0.4), n_m=(2, 4)),
            "1 - n / m = 0.5",
        ),
        (lambda: MagnitudePruning(Constant(0.5), include="nowhere"), "nowhere"),
        (
            lambda: MagnitudePruning(Constant(0.5), exclude="nowhere"),
            "leave out.*nowhere.*kernel",
        ),
    ],
)
def test_errors_before_training(pruning, message):
    model = net()
    before = kernels(model)
    with pytest.raises(ValueError, match=message):
        run(model, pruning())
    for a, b in zip(before, kernels(model)):
        np.testing.assert_array_equal(a, b)


def test_a_model_that_is_not_compiled_or_not_built():
    pruning = MagnitudePruning(Constant(0.5))
    with pytest.raises(ValueError, match="not compiled"):
        pruning.set_model(keras.Sequential([layers.Dense(2)]))
    model = keras.Sequential([layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="not built"):
        pruning.set_model(model)


def test_weights_that_are_not_numbers():
    model = net()
    kernel = model.layers[0].kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(ValueError, match="diverged"):
        run(model, MagnitudePruning(Constant(0.5)))


def test_blocks_do_not_bring_back_what_is_pruned():
    model = net()
    mask = np.ones(tuple(model.layers[0].kernel.shape), "uint8")
    mask[::2] = 0  # a live weight in every block
    optimizer = dlkit.optimizers.Masked("sgd")
    optimizer.build(model.trainable_variables)
    path = model.layers[0].kernel.path
    optimizer.set_masks({path: mask})
    model.compile(optimizer, "mse")
    schedule = Polynomial(0.5, begin_step=1, end_step=2)
    pruning = MagnitudePruning(schedule, every_steps=1, block_size=(2, 1))
    model.fit(*data(), batch_size=4, callbacks=[pruning], verbose=0)
    assert not optimizer.masks[path][::2].any()


def test_2_to_4_of_each_layer_where_rows_do_not_divide():
    model = keras.Sequential(
        [
            keras.Input((7, 7, 1)),
            keras.layers.Conv2D(8, 3),  # 9 rows: the last group has one
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    model.compile("sgd", "mse")
    pruning = MagnitudePruning(
        dlkit.schedules.ConstantSparsity(0.5, begin_step=1),
        scope="layer",
        n_m=(2, 4),
    )
    x, y = np.ones((4, 7, 7, 1)), np.ones((4, 4))
    model.fit(x, y, epochs=2, callbacks=[pruning], verbose=0)
    for layer in (model.layers[0], model.layers[2]):
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        rows = kernel.reshape(-1, kernel.shape[-1])
        whole = rows[: len(rows) // 4 * 4].reshape(-1, 4, rows.shape[-1])
        assert ((whole != 0).sum(axis=1) == 2).all()


def test_patterns_are_of_kernels_that_are_matrices():
    model = keras.Sequential(
        [
            keras.Input((5, 6)),
            keras.layers.EinsumDense("abc,cde->abde", (5, 2, 3)),
        ]
    )
    model.compile("sgd", "mse")
    pruning = MagnitudePruning(
        dlkit.schedules.ConstantSparsity(0.5, begin_step=1), n_m=(2, 4)
    )
    with pytest.raises(ValueError, match="matrix.*Leave it out"):
        model.fit(
            np.ones((4, 5, 6)),
            np.ones((4, 5, 2, 3)),
            callbacks=[pruning],
            verbose=0,
        )


def test_a_fit_that_begins_late_may_have_no_step_left():
    schedule = Polynomial(0.5, begin_step=30, end_step=40)
    pruning = MagnitudePruning(schedule)
    with pytest.raises(ValueError, match="would prune nothing"):
        net().fit(
            *data(),
            batch_size=4,
            initial_epoch=8,
            epochs=10,
            callbacks=[pruning],
            verbose=0,
        )


@pytest.mark.parametrize(
    "schedule, stop, message",
    [
        (Polynomial(0.5, begin_step=30, end_step=40), [], "at update 10.*30"),
        (Polynomial(0.5, begin_step=1, end_step=15), [Stop(1)], "10.* to 15"),
        (Polynomial(0.5, begin_step=1, end_step=15), [], None),
    ],
)
def test_what_is_missing_after_steps_of_unknown_number(schedule, stop, message):
    x, y = (array.reshape(10, 2, -1) for array in data())
    batches = ((x[i], y[i]) for i in range(10))
    pruning = MagnitudePruning(schedule, every_steps=3)
    epochs = 1 + len(stop)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net().fit(
            batches,
            epochs=epochs,
            shuffle=False,
            callbacks=[pruning, *stop],
            verbose=0,
        )
    said = [w.message for w in said if "`fit`" in str(w.message)]
    assert len(said) == (message is not None)
    assert all(re.search(message, str(text)) for text in said)


@slow_to_compile
def test_a_fit_that_goes_on_has_no_more_steps_than_are_left():
    """Beyond its last step the schedule is not asked."""
    model, x_y = net(), data()
    arguments = {"batch_size": 4, "verbose": 0}

    def pruning():
        return MagnitudePruning(lambda step: 0.9 * step / 50, every_steps=1)

    with pytest.warns(UserWarning, match="stopped at update 25"):
        model.fit(*x_y, epochs=10, callbacks=[pruning(), Stop(5)], **arguments)
    late = {"epochs": 10, "initial_epoch": 5, **arguments}
    model.fit(*x_y, callbacks=[pruning()], **late)
    assert zeros(model) == round(0.9 * SIZE)
    fresh = net()
    fresh.fit(*x_y, callbacks=[pruning()], **{**late, "epochs": 11})
    assert zeros(fresh) == round(0.9 * 30 / 50 * SIZE)


@slow_to_compile
def test_weights_are_ranked_for_a_sparsity_that_is_new_alone(monkeypatch):
    ranked = []
    prune = _pruning.prune_to_sparsity

    def counted(scores, masks, sparsity, scope):
        ranked.append(sparsity)
        return prune(scores, masks, sparsity, scope)

    monkeypatch.setattr(_pruning, "prune_to_sparsity", counted)
    schedule = Polynomial(0.5, begin_step=1, end_step=4)
    model, pruning = net(), MagnitudePruning(schedule, every_steps=1)
    run(model, pruning)
    assert ranked == [schedule(step) for step in range(1, 5)]
    run(model, pruning)
    assert ranked[4:] == [0.5]


def test_an_exclude_that_finds_nothing_in_a_second_fit():
    model = net()
    schedule = Polynomial(0.5, begin_step=1, end_step=2)
    model.fit(
        *data(), callbacks=[MagnitudePruning(schedule)], batch_size=4, verbose=0
    )
    for wrong, match in (("outt", "must find something"), ("(", "expression")):
        with pytest.raises(ValueError, match=match):
            pruning = MagnitudePruning(schedule, exclude=wrong)
            model.fit(*data(), callbacks=[pruning], verbose=0)
