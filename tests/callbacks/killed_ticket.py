"""Trains LotteryTicket in processes that are killed, and in one that is not.

In forks of this process, which has computed nothing yet: unbroken; killed, in
another hook each time; resumed to its end. Each end is written down for the
test.
"""

import json
import pathlib
import sys

import keras
import numpy as np

import keras_dlkit as dlkit
from tests.callbacks import tickets
from tests.callbacks.killed_fit import Kill
from tests.callbacks.killed_fit import die
from tests.callbacks.killed_fit import in_a_fork
from tests.callbacks.killed_fit import kill_in_save

ROUNDS, EPOCHS = 3, 2
# The hook and how often it comes first, in the epochs that are left: the kills
# of one run, one after the other.
HOOKS = [("train_batch_begin", 7), ("test_end", 1), ("epoch_end", 1)]


def train(folder, order, *kill):
    model = tickets.dropout_net()
    ticket = dlkit.callbacks.LotteryTicket(
        ROUNDS,
        EPOCHS,
        pruning_rate=0.3,
        rewind=2,
        control="reinitialize",
        score="movement",
        callbacks=[keras.callbacks.ReduceLROnPlateau("loss", patience=0)],
        checkpoint_dir=folder / order if order == "own" else None,
        seed=4,
    )
    callbacks = [ticket, Kill(*kill)]
    if order != "own":
        backup = keras.callbacks.BackupAndRestore(folder / order)
        callbacks.insert(0 if order == "before" else 1, backup)
    tickets.fit(
        model,
        *callbacks,
        epochs=ROUNDS * EPOCHS,
        validation_data=tickets.data(),
    )
    return tickets.to_numpy(model.variables), ticket.history


def finish(folder, order, end):
    state, history = train(folder, order)
    np.savez(folder / f"{order}.{end}.npz", *state)
    (folder / f"{order}.{end}.json").write_text(json.dumps(history))


def killed_between_files(folder, order):
    """When Keras has written weights, and not of which epoch they are."""
    save = keras.Model.save_weights

    def save_and_die(model, *arguments, **keywords):
        save(model, *arguments, **keywords)
        die()

    keras.Model.save_weights = save_and_die
    train(folder, order)


def killed_in_save(folder, order):
    kill_in_save(0)
    train(folder, order)


def run(folder, order):
    (folder / "unbroken").mkdir(exist_ok=True)
    assert not in_a_fork(finish, folder / "unbroken", order, "unbroken")
    for hook in HOOKS:
        print(f"{order}: killed at {hook}", flush=True)
        assert in_a_fork(train, folder, order, *hook)
    last = killed_in_save if order == "own" else killed_between_files
    print(f"{order}: {last.__name__}", flush=True)
    assert in_a_fork(last, folder, order)
    assert not in_a_fork(finish, folder, order, "resumed")


if __name__ == "__main__":
    for order in sys.argv[2:]:
        run(pathlib.Path(sys.argv[1]), order)
