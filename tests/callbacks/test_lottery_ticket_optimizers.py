"""LotteryTicket around optimizers of all kinds, and what a series leaves."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlkit as dlkit
from keras_dlkit.callbacks._reinitialize import redraw
from tests.callbacks.tickets import EAGER
from tests.callbacks.tickets import EPOCHS
from tests.callbacks.tickets import ROUNDS
from tests.callbacks.tickets import STEPS
from tests.callbacks.tickets import data
from tests.callbacks.tickets import fit
from tests.callbacks.tickets import initial
from tests.callbacks.tickets import net
from tests.callbacks.tickets import to_numpy

LotteryTicket = dlkit.callbacks.LotteryTicket


def compiled(optimizer, **arguments):
    model = net()
    model.compile(optimizer, "mse", **{"run_eagerly": EAGER, **arguments})
    return model


def kernels(model):
    return to_numpy([layer.kernel for layer in model.layers])


OPTIMIZERS = {
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01), initial_scale=8.0
    ),
    "accumulation": lambda: keras.optimizers.SGD(
        0.1, gradient_accumulation_steps=STEPS
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_around_and_inside(name):
    ticket = LotteryTicket(ROUNDS, EPOCHS, pruning_rate=0.5)
    model = compiled(OPTIMIZERS[name]())
    fit(model, ticket)
    densities = [row["density"] for row in ticket.history]
    np.testing.assert_allclose(densities, 0.5 ** np.arange(ROUNDS), atol=0.02)
    for mask, kernel in zip(ticket.masks.values(), kernels(model)):
        assert (kernel[mask == 0] == 0).all() and kernel.any()


NO_EXECUTIONS = pytest.mark.skipif(
    keras.config.backend() == "torch", reason="Keras runs one step at a time"
)


@NO_EXECUTIONS
def test_several_steps_in_one_execution():
    runs = []
    for together in (1, STEPS):
        model = compiled(
            keras.optimizers.SGD(0.1),
            steps_per_execution=together,
            run_eagerly=False,
        )
        ticket = LotteryTicket(3, EPOCHS, pruning_rate=0.4, rewind=STEPS)
        fit(model, ticket, epochs=3 * EPOCHS)
        runs.append(kernels(model))
    for one, other in zip(*runs):
        np.testing.assert_allclose(one, other, atol=1e-6)


@NO_EXECUTIONS
def test_a_rewind_inside_of_an_execution_is_refused_at_the_begin():
    model = compiled("sgd", steps_per_execution=STEPS, run_eagerly=False)
    before = kernels(model)
    with pytest.raises(ValueError, match="execution begins, of 3 steps"):
        fit(model, LotteryTicket(ROUNDS, EPOCHS, rewind=1))
    for one, other in zip(before, kernels(model)):
        np.testing.assert_array_equal(one, other)


def test_a_rewind_that_round_0_did_not_come_to():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    ticket = LotteryTicket(ROUNDS, EPOCHS, rewind=STEPS + 1, callbacks=[Stop()])
    with pytest.raises(ValueError, match="ended early"):
        fit(net(), ticket)


SCHEDULE_FREE = pytest.mark.skipif(
    not hasattr(keras.optimizers, "ScheduleFreeAdamW"), reason="newer Keras"
)


@SCHEDULE_FREE
@pytest.mark.parametrize("control", [None, "reinitialize"])
def test_a_slot_that_was_a_copy_of_the_weight(control):
    """The first step after a rewind goes on from the weights as they are."""
    rewind = "learning_rate" if control is None else "init"
    ticket = LotteryTicket(2, 1, rewind=rewind, control=control, seed=0)
    seen = {}

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.setdefault(len(ticket.history), []).append(kernels(self.model))

    model = compiled(keras.optimizers.ScheduleFreeAdamW(1e-4))
    fit(model, ticket, Watch(), epochs=2)
    first, second = seen[1][:2]
    for before, after in zip(first, second):
        assert np.abs(after - before).max() < 0.01
    for now, start in zip(first, initial()[::2]):
        live = now != 0
        assert (now[live] != start[live]).any()


@SCHEDULE_FREE
def test_a_slot_that_was_a_copy_of_zeros():
    """As of every bias that begins at zero, like moments that are none."""
    ticket = LotteryTicket(2, EPOCHS, rewind="learning_rate")
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(to_numpy([v.bias for v in self.model.layers]))

    model = compiled(keras.optimizers.ScheduleFreeAdamW(0.05))
    for layer in model.layers:
        layer.bias.assign(np.zeros(layer.bias.shape))
    fit(model, ticket, Watch(), epochs=2 * EPOCHS)
    # The first step of Adam is of the size of the learning rate.
    for before, after in zip(*seen[EPOCHS * STEPS :][:2]):
        assert np.abs(before).max() > 0.12
        assert np.abs(after - before).max() < 0.051


@SCHEDULE_FREE
def test_slots_at_a_step_are_those_of_the_step():
    """What comes after it is what came after it before."""
    ticket = LotteryTicket(2, EPOCHS, pruning_rate=0.0, rewind=STEPS)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(kernels(self.model))

    model = compiled(keras.optimizers.ScheduleFreeAdamW(0.05))
    fit(model, ticket, Watch(), epochs=2 * EPOCHS)
    before, again = seen[STEPS : 2 * STEPS], seen[2 * STEPS : 3 * STEPS]
    for step in range(STEPS):
        for a, b in zip(before[step], again[step]):
            np.testing.assert_array_equal(a, b)


def test_numbers_of_numpy(tmp_path):
    ticket = LotteryTicket(
        np.int64(2),
        np.int64(1),
        pruning_rate=np.float32(0.5),
        early_bird=np.float32(0.1),
        seed=np.int64(3),
        checkpoint_dir=tmp_path / "ticket",
    )
    fit(net(), ticket, epochs=2)
    assert len(ticket.history) == 2
    with pytest.raises(ValueError, match="seed"):
        LotteryTicket(2, 1, seed=-1)


def test_the_rate_of_the_output_is_that_of_the_last_kernel():
    ticket = LotteryTicket(
        2,
        1,
        pruning_rate=0.5,
        output_pruning_rate=0.0,
        scope="layer",
        include=lambda v: True,
    )
    fit(net(), ticket, epochs=2)
    gone = {path: (mask == 0).mean() for path, mask in ticket.masks.items()}
    assert gone["net/out/kernel"] == 0
    assert gone["net/hidden/kernel"] == gone["net/hidden/bias"] == 0.5


def test_reinitialize_draws_what_is_not_pruned_too():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(kernels(self.model)[1])

    ticket = LotteryTicket(2, 1, control="reinitialize", exclude="out", seed=0)
    fit(net(), ticket, Watch(), epochs=2)
    assert not np.array_equal(*seen)


def test_scores_see_the_draw_that_the_round_began_with():
    begins, seen = [], []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            begins.append(kernels(self.model)[0])

    def score(begin, final):
        seen.append(begin)
        return np.abs(final - begin)

    ticket = LotteryTicket(
        3, 1, control="reinitialize", score=score, include="hidden", seed=0
    )
    fit(net(), ticket, Watch(), epochs=3)
    masks = [begins[0] != 0, begins[1] != 0]
    assert not np.array_equal(begins[0], begins[1])
    # The first call is for the shape, before training.
    for begin, score_of, mask in zip(begins, seen[1:], masks):
        np.testing.assert_array_equal(begin, score_of * mask)


def test_an_einsum_kernel_is_drawn_by_the_axes_it_sums_over():
    """From the variance of a first draw, heads being outputs."""
    model = keras.Sequential(
        [
            keras.Input((2, 40)),
            layers.EinsumDense("abc,cde->abde", (2, 30, 40)),
        ]
    )
    kernel = model.layers[0].kernel
    first = float(np.std(to_numpy([kernel])[0]))
    (value,) = redraw(
        model, [kernel], to_numpy([kernel]), np.random.default_rng(0)
    )
    assert float(np.std(value)) == pytest.approx(first, rel=0.03)


def test_a_series_that_was_resumed_leaves_fit_as_it_was(tmp_path):
    """The epoch that it went on with is not that of later fits."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    def ticket():
        return LotteryTicket(ROUNDS, EPOCHS, checkpoint_dir=tmp_path / "ticket")

    with pytest.raises(KeyboardInterrupt):
        fit(net(), ticket(), Kill())
    model, resumed = net(), ticket()
    fit(model, resumed)
    assert len(resumed.history) == ROUNDS
    assert len(fit(model, epochs=3).epoch) == 3


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="needs Keras 3.15"
)
def test_callbacks_set_the_rates_of_a_multi_optimizer():
    inner = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.SGD(0.1), {"hidden": keras.optimizers.SGD(0.2)}
        )
    )
    model = compiled(dlkit.optimizers.Masked(inner))
    schedule = keras.callbacks.LearningRateScheduler(lambda e, rate: rate / 2)
    fit(model, schedule, epochs=1)
    rates = sorted(float(o.learning_rate) for o in inner.optimizers)
    np.testing.assert_allclose(rates, [0.05, 0.1], rtol=1e-6)
    assert not hasattr(dlkit.optimizers.Masked("sgd"), "optimizers")


def test_layers_are_drawn_as_they_are_built():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.DepthwiseConv2D(
                3,
                name="net",
                depthwise_initializer=keras.initializers.RandomUniform(5, 6),
            ),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse", run_eagerly=EAGER)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(to_numpy([self.model.layers[0].kernel])[0])

    ticket = LotteryTicket(
        2, 1, control="reinitialize", include="net", pruning_rate=0.0, seed=0
    )
    x, y = np.zeros((4, 6, 6, 2)), data()[1][:4]
    model.fit(x, y, epochs=2, callbacks=[ticket, Watch()], verbose=0)
    first, second = seen
    assert ((second >= 5) & (second <= 6)).all()
    assert not set(first.ravel()) & set(second.ravel())
