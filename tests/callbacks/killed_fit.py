"""Trains parts in processes that are killed, and in ones that are not.

Each case is trained four times, in forks of this process, which has computed
nothing yet: unbroken; killed in a hook, or by the clock; resumed and killed
while a save is half written; resumed to its end. Each end is written down for
the test.
"""

import json
import os
import pathlib
import random
import signal
import sys
import threading
import time

import keras
import numpy as np

import keras_dlkit as dlkit
from tests.conformance import networks
from tests.conformance import registry

EPOCHS, STEPS = 2, 6
# And how often each comes until there are two saves left for the second kill.
MOMENTS = {
    "train_batch_begin": EPOCHS * STEPS - 4,
    "train_batch_end": EPOCHS * STEPS - 4,
    "test_batch_begin": STEPS,
    "test_end": 1,
    "epoch_end": 1,
}
CLOCK = "clock"
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
    """In a hook, the time that `at` says, counted from 0; or by the clock.

    The clock begins with the first batch to end, and strikes wherever training
    is by then: in a step, in a hook, in a save.
    """

    def __init__(self, moment=None, at=None):
        super().__init__()
        self.moment, self.at, self.seen = moment, at, 0

    def _come_to(self, moment):
        if moment == self.moment:
            if self.at == self.seen:
                die()
            self.seen += 1

    def on_train_batch_begin(self, batch, logs=None):
        self._come_to("train_batch_begin")

    def on_train_batch_end(self, batch, logs=None):
        self._come_to("train_batch_end")
        if self.moment == CLOCK and not self.seen:
            self.seen = 1
            threading.Timer(self.at, die).start()

    def on_test_batch_begin(self, batch, logs=None):
        self._come_to("test_batch_begin")

    def on_test_end(self, logs=None):
        self._come_to("test_end")

    def on_epoch_end(self, epoch, logs=None):
        self._come_to("epoch_end")


class Watch(keras.callbacks.Callback):
    """How many seconds there are after the first batch."""

    began = seconds = 0.0

    def on_train_batch_end(self, batch, logs=None):
        self.began = self.began or time.perf_counter()
        self.seconds = time.perf_counter() - self.began


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


CASES = {
    **registry.FURTHER_BY_NAME,
    **networks.BY_NAME,
    **registry.BY_NAME,
    **{name: registry.BY_NAME["sam_and_mix_up"] for name in CALLBACKS},
}


def train(name, folder, *kill):
    case = CASES[name]
    callbacks = CALLBACKS.get(name, case.callbacks)()
    watch = Watch()
    model = registry.attached(case, inner=keras.optimizers.Adam(0.01))
    keras.utils.set_random_seed(5)
    resume = dlkit.callbacks.Resume(folder / name, save_every_steps=2)
    history = registry.fit(
        model,
        case,
        epochs=max(EPOCHS, case.epochs),
        batch_size=4,
        shuffle=True,
        validation_data=registry.data(case),
        callbacks=[*callbacks, resume, Kill(*kill), watch],
    ).history
    return registry.state(model), history, watch.seconds


def finish(name, folder, end):
    state, history, seconds = train(name, folder)
    np.savez(folder / f"{name}.{end}.npz", *state)
    (folder / f"{name}.{end}.json").write_text(json.dumps(history))
    (folder / f"{name}.{end}.seconds").write_text(str(seconds))


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


def run(name, folder, seed, moments):
    draw = random.Random(f"{name} {seed}")
    moment, save = draw.choice(moments), draw.randrange(2)
    assert not in_a_fork(finish, name, folder / "unbroken", "unbroken")
    if moment == CLOCK:
        seconds = (folder / "unbroken" / f"{name}.unbroken.seconds").read_text()
        at = draw.uniform(0, float(seconds))
    else:
        at = draw.randrange(MOMENTS[moment])
    print(f"{name}: killed at {moment} {at}, and in save {save}", flush=True)
    killed = in_a_fork(train, name, folder, moment, at)

    def resumed_and_killed():
        kill_in_save(save)
        train(name, folder)

    killed = in_a_fork(resumed_and_killed) and killed
    # The clock may strike when all is done.
    assert killed or moment == CLOCK
    assert not killed or list((folder / name).glob("*.tmp"))
    assert not in_a_fork(finish, name, folder, "resumed")


if __name__ == "__main__":
    folder, seed, moments, *names = sys.argv[1:]
    folder = pathlib.Path(folder)
    (folder / "unbroken").mkdir()
    for name in names:
        run(name, folder, seed, moments.split(","))
