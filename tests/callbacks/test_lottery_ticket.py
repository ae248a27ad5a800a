"""LotteryTicket against float64 NumPy, and what it says."""

import keras
import numpy as np
import pytest

import keras_dlkit as dlkit
from keras_dlkit.callbacks._criteria import CRITERIA
from keras_dlkit.callbacks._ticket_report import line
from keras_dlkit.callbacks._ticket_report import make_row
from tests import zoo
from tests.callbacks.tickets import DECAY
from tests.callbacks.tickets import EAGER
from tests.callbacks.tickets import EPOCHS
from tests.callbacks.tickets import MOMENTUM
from tests.callbacks.tickets import RATE
from tests.callbacks.tickets import ROUNDS
from tests.callbacks.tickets import ROWS
from tests.callbacks.tickets import STEPS
from tests.callbacks.tickets import data
from tests.callbacks.tickets import dropout_net
from tests.callbacks.tickets import fit
from tests.callbacks.tickets import initial
from tests.callbacks.tickets import net
from tests.callbacks.tickets import to_numpy
from tests.running import slow_to_compile

LotteryTicket = dlkit.callbacks.LotteryTicket

# The reference: the net, SGD with momentum, and rounds, in float64.


def gradient(w, x, y):
    h = np.tanh(x @ w[0] + w[1])
    error = 2 * (h @ w[2] + w[3] - y) / y.size
    back = (error @ w[2].T) * (1 - h**2)
    return [x.T @ back, back.sum(0), h.T @ error, error.sum(0)]


class Training:
    def __init__(self):
        self.w = [v.astype("float64") for v in initial()]
        self.v = [np.zeros_like(v) for v in self.w]
        self.t = 0

    def state(self):
        return [list(self.w), list(self.v), self.t]

    def run(self, masks, keep_at=None):
        """A round; returns the state after `keep_at` steps of it."""
        x, y = (d.astype("float64") for d in data())
        kept = None
        for step in range(EPOCHS * STEPS):
            if step == keep_at:
                kept = self.state()
            rows = slice(step % STEPS * ROWS, (step % STEPS + 1) * ROWS)
            g = gradient(self.w, x[rows], y[rows])
            rate = RATE * DECAY**self.t
            for i in range(4):
                m = masks[i // 2] if i % 2 == 0 else 1.0
                self.v[i] = MOMENTUM * self.v[i] - rate * g[i] * m
                self.w[i] = self.w[i] + self.v[i]
            self.t += 1
        return kept


def prune(scores, masks, rates, scope):
    """By sorted lists of (score, index), a group after the other."""
    entries = [
        (scores[k].ravel()[i], k, i)
        for k in range(2)
        for i in range(masks[k].size)
        if masks[k].ravel()[i]
    ]
    if scope == "global" and rates[0] == rates[1]:
        groups = [entries]
    else:
        groups = [[e for e in entries if e[1] == k] for k in range(2)]
    masks = [m.copy() for m in masks]
    for group in groups:
        count = round(rates[group[0][1]] * len(group))
        for _, k, i in sorted(group)[:count]:
            masks[k].ravel()[i] = 0
    return masks


def numpy_rounds(rewind="init", rates=(0.3, 0.3), scope="global"):
    training, begin = Training(), Training().state()
    masks = [np.ones((4, 6)), np.ones((6, 3))]
    densities, point = [], None
    for round_ in range(ROUNDS):
        densities.append(sum(m.sum() for m in masks) / 42)
        kept = training.run(masks, rewind if round_ == 0 else None)
        point = kept or point
        if round_ + 1 == ROUNDS:
            break
        final = [training.w[0], training.w[2]]
        masks = prune([np.abs(w) for w in final], masks, rates, scope)
        if rewind == "init":
            training.w, training.v, training.t = begin
        elif isinstance(rewind, int):
            training.w, training.v, training.t = point
        elif rewind == "learning_rate":
            _, training.v, training.t = begin
        training.w, training.v = list(training.w), list(training.v)
        for k in range(2):
            training.w[2 * k] = training.w[2 * k] * masks[k]
            training.v[2 * k] = training.v[2 * k] * masks[k]
    return training, masks, densities


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"rewind": 2},
        {"rewind": 0},
        {"rewind": "learning_rate"},
        {"rewind": None},
        {"scope": "layer", "output_pruning_rate": 0.1},
        {"output_pruning_rate": 0.1},
    ],
    ids=str,
)
def test_rounds_match_float64(arguments):
    rates = (0.3, arguments.get("output_pruning_rate", 0.3))
    expected, masks, densities = numpy_rounds(
        arguments.get("rewind", "init"), rates, arguments.get("scope", "global")
    )
    model = net()
    ticket = LotteryTicket(ROUNDS, EPOCHS, pruning_rate=0.3, **arguments)
    fit(model, ticket)
    for a, b in zip(ticket.masks.values(), masks):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(to_numpy(model.trainable_variables), expected.w):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert [row["density"] for row in ticket.history] == pytest.approx(
        densities
    )
    iterations = int(to_numpy([model.optimizer.iterations])[0])
    assert iterations == expected.t


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_rank_as_the_paper_says(name):
    """Each by its words: pairs of weights of which the first goes first."""
    w0, w1 = np.array([0.5, -1.0, 2.0]), np.array([-1.0, -3.0, 0.25])
    order = {
        "magnitude": [2, 0, 1],
        "small_final": [1, 0, 2],
        "large_initial": [0, 1, 2],
        "small_initial": [2, 1, 0],
        "large_initial_large_final": [2, 0, 1],  # .25, .5, 1
        "small_initial_small_final": [1, 2, 0],  # -3, -2, -1
        "magnitude_increase": [2, 0, 1],  # -1.75, .5, 2
        "movement": [0, 2, 1],  # 1.5, 1.75, 2
        "large_final_same_sign": [0, 2, 1],  # 0, .25, 3
        "large_final_different_sign": [1, 2, 0],  # 0, 0, 1
    }
    scores = CRITERIA[name](w0, w1)
    assert np.argsort(scores, kind="stable").tolist() == order[name]


def test_a_score_of_ones_own():
    model, seen = net(), []

    def score(begin, final):
        seen.append((begin, final))
        return -np.arange(begin.size).reshape(begin.shape)

    ticket = LotteryTicket(2, 1, pruning_rate=0.5, score=score, scope="layer")
    fit(model, ticket, epochs=2)
    for mask in ticket.masks.values():
        half = mask.size // 2
        assert mask.ravel().tolist() == [1] * half + [0] * half
    np.testing.assert_array_equal(seen[0][0], initial()[0])


class Rounds(keras.callbacks.Callback):
    """Masks and kernels at the begin of each epoch, after the ticket."""

    def __init__(self, ticket):
        super().__init__()
        self.ticket, self.masks, self.weights = ticket, [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.masks.append(list(self.ticket.masks.values()))
        self.weights.append(to_numpy(self.model.trainable_variables)[::2])


@slow_to_compile
@pytest.mark.parametrize(
    "control", ["reinitialize", "random_masks", "shuffle_masks"]
)
def test_controls(control):
    def train(control, seed=3):
        model = net(0.1)
        ticket = LotteryTicket(
            3, 1, pruning_rate=0.4, control=control, seed=seed
        )
        watch = Rounds(ticket)
        fit(model, ticket, watch, epochs=3)
        return watch

    plain, other = train(None), train(control)
    for round_ in (1, 2):
        masks, weights = other.masks[round_], other.weights[round_]
        live = sum(m.sum() for m in masks)
        assert live == sum(m.sum() for m in plain.masks[round_])
        for mask, before, w in zip(masks, other.masks[round_ - 1], weights):
            assert (mask <= before).all() and (w[mask == 0] == 0).all()
        same = [
            (w == w0 * m).all()
            for w, w0, m in zip(weights, initial()[::2], masks)
        ]
        assert all(same) == (control != "reinitialize")
    if control == "reinitialize":
        values = other.weights[1][0]
        limit = np.sqrt(6 / (4 + 6))  # of Glorot's uniform draw
        assert np.abs(values).max() <= limit
        assert len(np.unique(values)) > 5
    else:
        assert any(
            (a != b).any() for a, b in zip(plain.masks[1], other.masks[1])
        )
    if control == "shuffle_masks":
        assert [m.sum() for m in other.masks[1]] == [
            m.sum() for m in plain.masks[1]
        ]
    again = train(control)
    for a, b in zip(other.weights[-1], again.weights[-1]):
        np.testing.assert_array_equal(a, b)


def test_what_goes_back_goes_back_whole():
    """Batch statistics and Adam's moments are those of the begin."""
    model, arguments, compile_arguments = zoo.make("sequential")
    adam = keras.optimizers.Adam(0.01)
    model.compile(adam, run_eagerly=EAGER, **compile_arguments)
    begin = to_numpy(model.weights)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            masked = self.model.optimizer
            seen.append(
                (
                    to_numpy(model.weights),
                    to_numpy(masked.inner_optimizer.variables),
                )
            )

    ticket = LotteryTicket(2, 2, pruning_rate=0.5)
    model.fit(**arguments, epochs=4, verbose=0, callbacks=[ticket, Watch()])
    masks = list(ticket.masks.values())
    for v, value, first in zip(model.weights, seen[2][0], begin):
        expected = first * ticket.masks.get(v.path, 1)
        np.testing.assert_array_equal(value, expected, v.path)
    for a, b in zip(seen[0][1], seen[2][1]):
        np.testing.assert_array_equal(a, b)
    assert len(masks) == 2


# Callbacks of a round.


def test_early_stopping_ends_the_round_and_each_starts_anew():
    stopping = keras.callbacks.EarlyStopping(
        monitor="loss", patience=1, min_delta=100.0
    )
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", patience=0, min_delta=100.0, factor=0.5
    )
    losses, rates = [], []

    class Losses(keras.callbacks.Callback):
        def __init__(self, losses):
            super().__init__()
            self.losses = losses

        def on_epoch_end(self, epoch, logs=None):
            self.losses.append(np.array(logs["loss"]))

    model = net(0.125)
    inner = [stopping, plateau, Losses(losses)]
    ticket = LotteryTicket(3, 4, callbacks=inner)

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rates.append(
                float(to_numpy([self.model.optimizer.learning_rate])[0])
            )

    history = fit(model, ticket, Watch(), epochs=12)
    assert history.history["round"] == [0, 0, 1, 1, 2, 2]
    assert [row["epochs"] for row in ticket.history] == [2, 2, 2]
    assert rates == [0.125, 0.0625] * 3
    np.testing.assert_allclose(losses, history.history["loss"])


def test_early_stopping_brings_the_best_weights_to_the_pruning():
    best = keras.callbacks.EarlyStopping(
        monitor="loss", patience=99, restore_best_weights=True, mode="max"
    )
    model = net()
    ticket = LotteryTicket(2, 3, rewind=None, callbacks=[best])
    watch = Rounds(ticket)
    fit(model, ticket, watch, epochs=6)
    # The loss falls: the "best" weights are those after the first epoch.
    for w, after_first, mask in zip(
        watch.weights[3], watch.weights[1], watch.masks[3]
    ):
        np.testing.assert_array_equal(w, after_first * mask)
    for w, mask in zip(
        to_numpy(model.trainable_variables)[::2], watch.masks[3]
    ):
        assert (w[mask == 0] == 0).all()


def test_early_stopping_in_the_list_of_fit_warns():
    stop = keras.callbacks.EarlyStopping(
        monitor="loss", patience=0, min_delta=100.0
    )
    ticket = LotteryTicket(3, 2)
    with pytest.warns(UserWarning, match="after 1 of 3 rounds.*EarlyStopping"):
        fit(net(), ticket, stop, epochs=6)


def test_averages_go_back_before_the_round_does(tmp_path):
    """`SwapEMAWeights`, listed first, has put the weights back by then."""
    model = net()
    sgd = keras.optimizers.SGD(0.125, use_ema=True, ema_momentum=0.5)
    model.compile(sgd, "mse", run_eagerly=EAGER)
    ticket = LotteryTicket(2, 2, pruning_rate=0.5)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    with pytest.raises(ValueError, match="comes after.*List it before"):
        fit(model, ticket, swap, epochs=4)
    saving = LotteryTicket(2, 2, checkpoint_dir=tmp_path / "ticket")
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    for callbacks in ([swap, saving], [swap, backup, ticket]):
        with pytest.raises(ValueError, match="save them as weights.*Resume"):
            fit(model, *callbacks, epochs=4)
    watch = Rounds(ticket)
    fit(model, swap, ticket, watch, epochs=4)
    for w, begin, mask in zip(watch.weights[2], initial()[::2], watch.masks[2]):
        np.testing.assert_array_equal(w, begin * mask)
    for w, mask in zip(
        to_numpy(model.trainable_variables)[::2], watch.masks[3]
    ):
        assert ((w != 0) == mask).all()


def test_early_bird_ends_rounds_of_which_the_masks_stand():
    model = net(1e-6)
    ticket = LotteryTicket(2, 8, early_bird=0.1)
    fit(model, ticket, epochs=16)
    assert [row["epochs"] for row in ticket.history] == [5, 8]


def test_early_bird_of_a_control_is_that_of_the_ticket():
    """Random masks of a seed are alike in all epochs: no reason to end."""
    ends = []
    for control in (None, "random_masks", "shuffle_masks"):
        ticket = LotteryTicket(
            2, 7, pruning_rate=0.5, control=control, early_bird=0.001, seed=0
        )
        fit(net(0.5), ticket, epochs=14)
        ends.append(ticket.history[0]["epochs"])
    assert ends == [7, 7, 7]


def test_masks_that_are_there_are_taken_over():
    model = net()
    model.compile(dlkit.optimizers.Masked("sgd"), "mse", run_eagerly=EAGER)
    masked = model.optimizer
    masked.build(model.trainable_variables)
    first = {p: np.eye(4, 6) for p in masked.masks if "hidden" in p}
    masked.set_masks(first)
    ticket = LotteryTicket(2, 1, pruning_rate=0.5, include="hidden")
    fit(model, ticket, epochs=2)
    assert model.optimizer is masked
    assert [row["density"] for row in ticket.history] == [4 / 24, 2 / 24]
    (before,), (after,) = first.values(), ticket.masks.values()
    assert (after <= before).all()
    assert all(m.all() for p, m in masked.masks.items() if "out" in p)


# What it says, and refuses.


def test_table_plot_and_logs(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model = dropout_net()
    ticket = LotteryTicket(2, 2)
    history = fit(model, ticket, epochs=4, verbose=2, validation_data=data())
    out = capsys.readouterr().out
    assert "put `Masked` around" in out and "val_mae" in out
    assert "100.00%" in out and "80.95%" in out
    assert history.history["density"] == [1.0, 1.0, 34 / 42, 34 / 42]
    row = ticket.history[1]
    losses = history.history["val_loss"][2:]
    assert row["best"] == min(losses) and row["monitor"] == "val_loss"
    assert row["best_step"] == STEPS * (1 + losses.index(min(losses)))
    assert row["last"]["val_loss"] == losses[-1]
    assert (
        sum(
            d * m.size
            for d, m in zip(row["densities"].values(), ticket.masks.values())
        )
        == 34
    )
    ticket.plot(tmp_path / "tickets.png")
    assert (tmp_path / "tickets.png").stat().st_size > 5000


def test_an_epoch_without_a_loss_is_not_the_best():
    epochs = [{"loss": np.nan, "step": 3}, {"loss": 0.5, "step": 6}]
    row = make_row(0, {"kernel": np.ones(2)}, epochs)
    assert (row["best"], row["best_step"]) == (0.5, 6)
    row = make_row(0, {"kernel": np.ones(2)}, epochs[:1])
    assert row["best"] is None and line(row)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "subclassed", "masked"])
def test_models_of_all_kinds(name):
    model, arguments, compile_arguments = zoo.make(name)
    if not model.built:
        model(arguments["x"][:2])
    model.compile("adam", **compile_arguments)
    ticket = LotteryTicket(2, 1, pruning_rate=0.5, scope="layer")
    model.fit(**arguments, epochs=2, verbose=0, callbacks=[ticket])
    assert [row["density"] for row in ticket.history] == [
        1.0,
        pytest.approx(0.5, abs=0.1),
    ]


def test_a_rate_of_zero_is_the_identity():
    model, plain = net(), net()
    fit(model, LotteryTicket(2, 2, pruning_rate=0.0, rewind=None), epochs=4)
    fit(plain, epochs=4)
    for a, b in zip(to_numpy(model.weights), to_numpy(plain.weights)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rounds": 0}, "rounds"),
        ({"epochs_per_round": 0}, "epochs_per_round"),
        ({"pruning_rate": 1.0}, "less than 1"),
        ({"output_pruning_rate": -0.5}, "output_pruning_rate"),
        ({"scope": "net"}, "scope"),
        ({"score": "size"}, "score"),
        ({"rewind": "start"}, "rewind"),
        ({"rewind": -1}, "rewind"),
        ({"control": "none"}, "control"),
        ({"early_bird": 2}, "early_bird"),
        (
            {"callbacks": [keras.callbacks.TerminateOnNaN()]},
            "batch_end",
        ),
        (
            {
                "callbacks": [
                    keras.callbacks.LambdaCallback(
                        on_train_batch_end=lambda batch, logs: None
                    )
                ]
            },
            "LambdaCallback, which has 'on_train_batch_end'",
        ),
        ({"callbacks": [keras.callbacks.SwapEMAWeights()]}, "list of `fit`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LotteryTicket(**{"rounds": 2, "epochs_per_round": 2, **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rounds": 5}, r"5 x 2 = 10.*epochs=8"),
        ({"rewind": 6}, "has 6 updates.*rewind=6"),
        ({"exclude": "."}, "at least one kernel"),
        ({"exclude": "heads"}, "leave out.*exclude='heads'"),
        ({"exclude": "out", "output_pruning_rate": 0.1}, "last kernel.*out"),
        ({"score": lambda a, b: np.mean(b)}, r"\(4, 6\). Received.*\(\)"),
    ],
)
def test_errors_before_training(arguments, message):
    model = net()
    arguments = {"rounds": ROUNDS, **arguments}
    with pytest.raises(ValueError, match=message):
        fit(model, LotteryTicket(epochs_per_round=EPOCHS, **arguments))
    for a, b in zip(to_numpy(model.weights), initial()):
        np.testing.assert_array_equal(a, b)


def test_before_training_there_is_nothing_to_see(tmp_path):
    ticket = LotteryTicket(2, 2)
    with pytest.raises(ValueError, match="begun"):
        ticket.masks  # noqa: B018
    with pytest.raises(ValueError, match="rounds that are done"):
        ticket.plot(tmp_path / "none.png")
