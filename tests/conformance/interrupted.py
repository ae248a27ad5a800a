"""One of two processes that train together, of which one may be killed.

The whole model is saved at the end of each epoch; whoever starts goes on from
there. What the processes hold is the same: the file of process 0 serves both.
But both have to save, for Keras lets the processes meet while it does.

KERAS_BACKEND=jax python tests/conformance/interrupted.py FOLDER
    --address 127.0.0.1:1234 --process 0 --killed 1
"""

import argparse
import os
import pathlib
import signal

import keras
import numpy as np

from tests.conformance import devices
from tests.conformance import modes
from tests.conformance import registry

CASE = registry.BY_NAME["sam_and_mix_up"]
MODE = modes.MODES["two_processes"]
EPOCHS = 3


class SaveEpochs(keras.callbacks.Callback):
    """Under another name first: a kill while it writes leaves the old file."""

    def __init__(self, folder, process):
        super().__init__()
        self.folder, self.process = folder, process

    def on_epoch_end(self, epoch, logs=None):
        fresh = self.folder / f"process_{self.process}.keras"
        self.model.save(fresh)
        if self.process == 0:
            os.replace(fresh, self.folder / f"epoch_{epoch + 1}.keras")


class KillMe(keras.callbacks.Callback):
    """In the middle of the second epoch, as nothing can be caught."""

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, process, killed):
    callbacks = [SaveEpochs(folder, process)]
    if process == killed:
        callbacks.append(KillMe())
    x, y = devices.rows(CASE, devices.of_process(MODE, process))
    saved = sorted(folder.glob("epoch_*.keras"))
    start = int(saved[-1].stem.split("_")[1]) if saved else 0
    # The processes have to make the same weights, those to load into as well.
    keras.utils.set_random_seed(0)
    with MODE.scope():
        if start:
            model = keras.saving.load_model(saved[-1])
        else:
            model = registry.attached(CASE)
        registry.fit(
            model,
            rows=(x, y),
            batch_size=len(x) // devices.BATCHES,
            epochs=EPOCHS,
            initial_epoch=start,
            callbacks=callbacks,
        )
        np.savez(folder / f"process_{process}.npz", *registry.state(model))
    print(f"from epoch {start}: done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--address")
    parser.add_argument("--process", type=int)
    parser.add_argument("--killed", type=int)
    arguments = parser.parse_args()
    devices.set_up(MODE, arguments.address, arguments.process)
    main(arguments.folder, arguments.process, arguments.killed)
