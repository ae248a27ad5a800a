"""A run on several devices, broken off and resumed, and one that was not.

KERAS_BACKEND=jax python tests/callbacks/resumed_on_devices.py data_parallel
    FOLDER

All in one process; but of two processes each does one run a call, and one of
them may be killed before it writes a save that the other writes:

KERAS_BACKEND=jax python tests/callbacks/resumed_on_devices.py two_processes
    FOLDER --address 127.0.0.1:1234 --process 0 --killed 1
"""

import argparse
import os
import pathlib
import signal

import keras
import numpy as np

import keras_dlkit as dlkit
from keras_dlkit.callbacks._save_files import SaveFolder
from tests.conformance import devices
from tests.conformance import modes
from tests.conformance import registry
from tests.conformance.test_contracts import assert_same

CASE = registry.BY_NAME["sam_and_mix_up"]
EPOCHS = 2


class Break(keras.callbacks.Callback):
    """Before a batch of the run, counted from 0; counts those trained on."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.seen = at, np.zeros(1, object)  # no plain data

    def on_train_batch_begin(self, batch, logs=None):
        if self.seen[0] == self.at:
            raise KeyboardInterrupt
        self.seen[0] += 1


def train(mode, folder, process=0, at=None):
    """The state and history of a run, and how many batches it trained on."""
    keras.utils.set_random_seed(5)
    order = devices.of_process(mode, process)
    x, y = devices.rows(CASE, order)
    watch = Break(at)
    with mode.scope() as creation:
        with creation():
            model = registry.attached(CASE)
        resume = dlkit.callbacks.Resume(folder, save_every_steps=1)
        try:
            history = registry.fit(
                model,
                rows=(x, y),
                batch_size=len(x) // devices.BATCHES,
                epochs=EPOCHS,
                callbacks=[watch, resume],
            )
        except KeyboardInterrupt:
            return None
        devices.CHECKS[mode.backend](model)
        return registry.state(model), history.history, watch.seen[0]


def break_and_resume(mode, folder):
    state, history, batches = train(mode, folder / "whole")
    assert batches == EPOCHS * devices.BATCHES
    for at in (2, 4, 6):  # in an epoch, between two, in the second
        assert train(mode, folder / str(at), at=at) is None
        again, history_again, rest = train(mode, folder / str(at))
        assert rest == batches - at
        assert_same(state, again)
        assert history == history_again
    print("the same")


def kill_before_save(number):
    """Before the save of this number is written, counted from 1."""
    write = SaveFolder.write

    def kill_or_write(saves, meta, arrays):
        if saves.last + 1 == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write(saves, meta, arrays)

    SaveFolder.write = kill_or_write


def main(mode, folder, process, killed):
    if mode.processes == 1:
        break_and_resume(mode, folder)
        return
    if process == killed:
        kill_before_save(6)
    state, _, batches = train(mode, folder / f"saves_{process}", process)
    np.savez(folder / f"process_{process}.npz", *state)
    print(f"trained on {batches}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=modes.MODES)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--address")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--killed", type=int)
    arguments = parser.parse_args()
    mode = modes.MODES[arguments.mode]
    devices.set_up(mode, arguments.address, arguments.process)
    main(mode, arguments.folder, arguments.process, arguments.killed)
