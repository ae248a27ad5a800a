"""Trains parts in processes that are killed, and in ones that are not.

Each case is trained four times, in forks of this process, which has computed
nothing yet: unbroken; killed before a batch; resumed and killed while a save
is half written; resumed to its end. Each end is written down for the test.
"""

import json
import os
import pathlib
import random
import signal
import sys

import keras
import numpy as np

import keras_dlkit as dlkit
from tests.conformance import networks
from tests.conformance import registry

EPOCHS, STEPS = 2, 6
CALLBACKS = {
    "lottery_ticket": lambda: [
        dlkit.callbacks.LotteryTicket(
            2,
            1,
            pruning_rate=0.4,
            rewind=2,
            control="random_masks",
            callbacks=[keras.callbacks.ReduceLROnPlateau("loss", patience=0)],
        )
    ],
    "magnitude_pruning": lambda: [
        dlkit.callbacks.MagnitudePruning(
            dlkit.schedules.PolynomialSparsity(0.8, begin_step=2, end_step=9),
            every_steps=2,
        )
    ],
    "keras_callbacks": lambda: [
        keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=9.0),
        keras.callbacks.EarlyStopping(
            "loss", mode="max", restore_best_weights=True
        ),
    ],
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(keras.callbacks.Callback):
    """Before a batch that this process trains on, counted from 0."""

    def __init__(self, at):
        super().__init__()
        self.at, self.seen = at, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.at == self.seen:
            die()
        self.seen += 1


def kill_in_save(at):
    """While the save of this number of the process is half written."""
    sync, seen = os.fsync, []

    def fsync(file):
        if os.fstat(file).st_size and not os.path.isdir(
            f"/proc/self/fd/{file}"
        ):
            if len(seen) == at:
                os.ftruncate(file, os.fstat(file).st_size // 2)
                die()
            seen.append(file)
        sync(file)

    os.fsync = fsync


def train(name, folder, kill=None):
    case = registry.BY_NAME.get(name) or networks.BY_NAME.get(name)
    callbacks = CALLBACKS.get(name, list)()
    if case is None:
        case = registry.BY_NAME["sam_and_mix_up"]
    model = registry.attached(case, inner=keras.optimizers.Adam(0.01))
    keras.utils.set_random_seed(5)
    resume = dlkit.callbacks.Resume(folder / name, save_every_steps=2)
    history = registry.fit(
        model,
        case,
        epochs=EPOCHS,
        batch_size=4,
        shuffle=True,
        validation_data=registry.data(case),
        callbacks=[*callbacks, resume, Kill(kill)],
    ).history
    return registry.state(model), history


def finish(name, folder, end):
    state, history = train(name, folder)
    np.savez(folder / f"{name}.{end}.npz", *state)
    (folder / f"{name}.{end}.json").write_text(json.dumps(history))


def in_a_fork(function, *arguments):
    """Whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0, arguments
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    return True


def run(name, folder, seed):
    draw = random.Random(f"{name} {seed}")
    batch, save = draw.randrange(EPOCHS * STEPS - 4), draw.randrange(2)
    print(f"{name}: killed before batch {batch}, and in save {save}")
    assert not in_a_fork(finish, name, folder / "unbroken", "unbroken")
    assert in_a_fork(train, name, folder, batch)

    def resumed_and_killed():
        kill_in_save(save)
        train(name, folder)

    assert in_a_fork(resumed_and_killed)
    assert list((folder / name).glob("*.tmp"))
    assert not in_a_fork(finish, name, folder, "resumed")


if __name__ == "__main__":
    folder, seed, *names = sys.argv[1:]
    folder = pathlib.Path(folder)
    (folder / "unbroken").mkdir()
    for name in names:
        run(name, folder, seed)
