"""LotteryTicket, killed at any moment and started again."""

import json
import os

import keras
import numpy as np
import pytest

import keras_dlkit as dlkit
from tests.callbacks.tickets import EAGER
from tests.callbacks.tickets import EPOCHS
from tests.callbacks.tickets import ROUNDS
from tests.callbacks.tickets import data
from tests.callbacks.tickets import dropout_net
from tests.callbacks.tickets import fit
from tests.callbacks.tickets import net
from tests.callbacks.tickets import to_numpy
from tests.running import mostly_slow_to_compile
from tests.running import slow_to_compile

LotteryTicket = dlkit.callbacks.LotteryTicket


class Killed(KeyboardInterrupt):
    pass


class Kill(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Killed


def stopping():
    return keras.callbacks.EarlyStopping(
        monitor="val_loss", patience=1, min_delta=0.1, restore_best_weights=True
    )


def resumable(path, order, kill=None, attach=False):
    # One in the graph, where a round must trace nothing and forget nothing.
    model = dropout_net(EAGER and order != "own")
    if attach:
        with pytest.warns(UserWarning, match="took over"):
            model = dlkit.attach(model)
    arguments = {"pruning_rate": 0.3, "rewind": 2, "callbacks": [stopping()]}
    if order == "own":
        arguments["checkpoint_dir"] = path
    ticket = LotteryTicket(3, 3, **arguments)
    callbacks = [ticket]
    if order in ("before", "after"):
        backup = keras.callbacks.BackupAndRestore(path)
        callbacks.insert(0 if order == "before" else 1, backup)
    if kill is not None:
        callbacks.append(Kill(kill))
    try:
        fit(model, *callbacks, epochs=9, validation_data=data())
    except Killed:
        pass
    return model, ticket


@pytest.mark.parametrize(
    "order", mostly_slow_to_compile(["before", "after", "own"], ["after"])
)
def test_killed_at_any_epoch_it_ends_the_same(order, tmp_path):
    whole, ticket = resumable(tmp_path / "no", order)
    expected = to_numpy(whole.variables + whole.optimizer.variables)
    assert {row["epochs"] for row in ticket.history} == {2, 3}
    # In round 0 after the step to go back to, and where rounds begin.
    for kill in (1, 2, 3) if order == "before" else (3,):
        path = tmp_path / str(kill)
        resumable(path, order, kill)
        model, again = resumable(path, order)
        got = to_numpy(model.variables + model.optimizer.variables)
        for a, b in zip(got, expected):
            np.testing.assert_array_equal(a, b)
        assert again.history == ticket.history


def test_callbacks_of_a_round_remember_what_is_plain_data():
    """Lists, dictionaries and arrays, not numbers alone."""
    from keras_dlkit.callbacks._round_callbacks import RoundCallbacks

    ours, others = (keras.callbacks.Callback() for _ in range(2))
    seen = {"losses": [2.0, 1.5], "at": {"3": (1, None)}, "sum": np.eye(2)}
    for name, value in seen.items():
        setattr(ours, name, value)
    states, arrays = RoundCallbacks([ours]).get_state()
    states = json.loads(json.dumps(states))
    RoundCallbacks([others]).set_state(states, arrays)
    np.testing.assert_equal(
        {name: getattr(others, name) for name in seen}, seen
    )


@slow_to_compile
@pytest.mark.parametrize("kill", mostly_slow_to_compile([1, 2, 3], [2]))
def test_epochs_without_validation_and_a_backup_before(kill, tmp_path):
    """The backup is made before the callback has seen the epoch end."""

    def run(folder, kill=None):
        model = dropout_net()
        ticket = LotteryTicket(2, 3, pruning_rate=0.5)
        backup = keras.callbacks.BackupAndRestore(tmp_path / folder)
        callbacks = [backup, ticket] + ([Kill(kill)] if kill else [])
        arguments = {"validation_data": data(), "validation_freq": 2}
        try:
            fit(model, *callbacks, epochs=6, **arguments)
        except Killed:
            pass
        return to_numpy(model.variables + model.optimizer.variables), ticket

    expected, whole = run("whole")
    run("broken", kill)
    got, ticket = run("broken")
    for a, b in zip(got, expected):
        np.testing.assert_array_equal(a, b)
    assert ticket.history == whole.history


@slow_to_compile
def test_killed_while_it_writes(monkeypatch, tmp_path):
    """The file of before stays whole."""
    expected, whole = resumable(tmp_path / "no", "own")
    replace, written = os.replace, []

    def killed(*paths):
        written.append(paths)
        if len(written) == 3:
            raise Killed
        replace(*paths)

    monkeypatch.setattr(os, "replace", killed)
    resumable(tmp_path / "yes", "own")
    assert len(written) == 3
    model, again = resumable(tmp_path / "yes", "own")
    for a, b in zip(to_numpy(model.weights), to_numpy(expected.weights)):
        np.testing.assert_array_equal(a, b)
    assert again.history == whole.history
    assert not list((tmp_path / "yes").glob("latest*"))


@slow_to_compile
@pytest.mark.parametrize(
    "order", mostly_slow_to_compile(["before", "after"], ["before"])
)
@pytest.mark.parametrize("epoch", mostly_slow_to_compile([0, 2, 8], [2]))
def test_killed_between_the_files_of_the_backup(
    order, epoch, monkeypatch, tmp_path
):
    """Its weights are of one epoch then, and its number of another."""

    def run(folder):
        model, ticket = dropout_net(), LotteryTicket(3, 3, rewind=2)
        callbacks = [ticket]
        backup = keras.callbacks.BackupAndRestore(tmp_path / folder)
        callbacks.insert(0 if order == "before" else 1, backup)
        history = fit(model, *callbacks, epochs=9)
        assert len(fit(model, epochs=1).epoch) == 1  # begins at 0 again
        return to_numpy(model.variables), ticket.history, history.epoch

    expected, rows, _ = run("whole")
    save, saved = keras.Model.save_weights, []

    def killed(model, *arguments, **keywords):
        save(model, *arguments, **keywords)
        saved.append(1)
        if len(saved) == epoch + 1:
            raise Killed

    monkeypatch.setattr(keras.Model, "save_weights", killed)
    with pytest.raises(Killed):
        run("broken")
    got, again, epochs = run("broken")
    assert epochs == list(range(epoch + 1, 9))
    assert again == rows
    for a, b in zip(got, expected):
        np.testing.assert_array_equal(a, b)


def test_saved_in_the_middle_of_an_epoch(tmp_path):
    """By Keras, which knows no batch to go on with: it says so."""

    def run(kill=None):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "b", save_freq=4)
        ticket = LotteryTicket(2, 2)
        fit(net(), ticket, backup, *([Kill(kill)] if kill else []), epochs=4)

    with pytest.raises(Killed):
        run(kill=2)
    with pytest.warns(UserWarning, match="in the middle of epoch 1"):
        run()


def test_a_whole_epoch_is_not_trained_again(tmp_path):
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(Killed):
        fit(net(), save, LotteryTicket(2, 2), Kill(1), epochs=4)
    loaded = keras.saving.load_model(tmp_path / "1.keras")
    with pytest.raises(ValueError, match="with `initial_epoch=1`. Received"):
        fit(loaded, LotteryTicket(2, 2), epochs=4)


class KillAtTheEnd(keras.callbacks.Callback):
    """After the last epoch was saved, before training ends."""

    def __init__(self, ticket):
        super().__init__()
        self.ticket = ticket

    def on_epoch_end(self, epoch, logs=None):
        if len(self.ticket.history) == self.ticket.rounds:
            raise Killed


@slow_to_compile
@pytest.mark.parametrize(
    "early", mostly_slow_to_compile([False, True], [False])
)
def test_killed_when_all_is_done(early, tmp_path):
    def run(kill):
        at_once = keras.callbacks.EarlyStopping(
            monitor="loss", patience=1, min_delta=100.0
        )
        callbacks = [at_once] if early else []
        ticket = LotteryTicket(
            2, 3, callbacks=callbacks, checkpoint_dir=tmp_path / str(kill)
        )

        def averaged():
            model = dropout_net()
            adam = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5)
            model.compile(adam, "mse", run_eagerly=EAGER)
            return model

        model = averaged()
        last = [KillAtTheEnd(ticket)] if kill else []
        arguments = {"epochs": 6, "validation_data": data()}
        if kill:
            with pytest.raises(Killed):
                fit(model, ticket, *last, **arguments)
            model = averaged()
        fit(model, ticket, **arguments)
        return to_numpy(model.weights), ticket.history, at_once.wait

    (a, rows, waited), (b, others, waits) = run(False), run(True)
    assert waits == waited
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)
    assert rows == others
    assert [row["epochs"] for row in rows] == ([2, 2] if early else [3, 3])


@pytest.mark.slow
def test_an_attached_model_with_sam_goes_on_too(tmp_path):
    whole, ticket = resumable(tmp_path / "no", "none", attach=True)
    resumable(tmp_path / "yes", "before", kill=3, attach=True)
    model, again = resumable(tmp_path / "yes", "before", attach=True)
    for a, b in zip(to_numpy(model.weights), to_numpy(whole.weights)):
        np.testing.assert_array_equal(a, b)
    assert again.history == ticket.history


@slow_to_compile
def test_a_model_saved_on_the_way_goes_on(tmp_path):
    whole, model = net(), net()
    ticket = LotteryTicket(ROUNDS, EPOCHS)
    fit(whole, ticket)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(Killed):
        fit(model, save, LotteryTicket(ROUNDS, EPOCHS), Kill(5))
    loaded = keras.saving.load_model(tmp_path / "5.keras")
    with pytest.raises(ValueError, match="settings"):
        fit(loaded, LotteryTicket(ROUNDS, EPOCHS, rewind=None), initial_epoch=5)
    # What was refused is not lost, nor is it in a file.
    again = LotteryTicket(ROUNDS, EPOCHS)
    with pytest.raises(ValueError, match="initial_epoch=5"):
        fit(loaded, again)
    loaded.save(tmp_path / "refused.keras")
    fit(loaded, again, initial_epoch=5)
    refused = keras.saving.load_model(tmp_path / "refused.keras")
    assert "meta" in refused.optimizer._luggage["lottery_ticket"]
    for a, b in zip(to_numpy(loaded.weights), to_numpy(whole.weights)):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(again.history, ticket.history):
        # Keras gives other paths to weights that were loaded.
        assert {**a, "densities": 0} == {**b, "densities": 0}
    # What is saved at the end holds masks, and no more.
    loaded.save(tmp_path / "end.keras")
    end = keras.saving.load_model(tmp_path / "end.keras")
    assert len(end.optimizer.masks) == 2 and not end.optimizer._luggage
