"""The state of a series of rounds, which travels with the masks."""

import json
import warnings

import keras
import numpy as np
from keras import ops

from keras_dlkit import _keras
from keras_dlkit.callbacks._snapshot import Snapshot
from keras_dlkit.callbacks._snapshot import pack
from keras_dlkit.callbacks._snapshot import pick
from keras_dlkit.callbacks._snapshot import seed_states
from keras_dlkit.callbacks._snapshot import to_arrays


class TicketState:
    """Mixed into `LotteryTicket`: what it remembers, saved and loaded.

    `BackupAndRestore` may load after `on_train_begin`: what is loaded waits
    for the first epoch to begin. It may also save before an epoch was seen to
    end: then the logs are saved, and the epoch that begins after loading
    tells whether the one before was over.
    """

    def _reset(self):
        self.history = []
        # `None` until the first epoch of a series begins.
        self._round = None
        self._round_start = 0  # the epoch
        self._start_updates = 0
        self._epochs = []  # logs of those of the round
        self._is_over = False
        self._closed = -1  # the last epoch that was
        self._begin = self._point = None  # snapshots
        self._bird.clear()
        self.waiting = {}  # arrays as loaded, until an epoch begins with them
        self._meta = None
        # Of this process.
        self._has_begun = False
        self._epoch = self._batch = 0
        self._last_batch = None
        self._logs = {}
        self._validation = self._final = None

    def get_state(self):
        """The state as arrays, at any moment of `fit`."""
        if self._round is None:
            return self.waiting
        numbers, arrays = self._inner.get_state()
        meta = {
            "settings": self._settings,
            "round": self._round,
            "round_start": self._round_start,
            "start_updates": self._start_updates,
            "epochs": self._epochs,
            "is_over": bool(self._is_over),
            "closed": self._closed,
            "open": self._open_logs(),
            "whole": bool(self._is_whole()),
            "seed": self.seed,
            "history": self.history,
            "callbacks": numbers,
        }
        text = json.dumps(meta).encode()
        arrays["meta"] = np.frombuffer(text, "uint8")
        arrays.update(self._begin.get_state("begin"))
        if self._point is not None and self._point is not self._begin:
            arrays.update(self._point.get_state("point"))
        arrays.update(pack("seeds", to_arrays(seed_states(self._net))))
        arrays.update(pack("birds", self._bird.packed))
        return arrays

    def _open_logs(self):
        """The logs of an epoch that was not closed yet, as they are now."""
        if not self._has_begun or self._closed == self._epoch:
            return None
        return self._validation or floats(self._net.get_metrics_result())

    def set_state(self, arrays):
        """Takes over what `get_state` gave, unless training has begun."""
        if arrays and not self._has_begun:
            self.waiting = arrays
            self._meta = json.loads(bytes(np.asarray(arrays["meta"])).decode())

    def _resume(self, epoch):
        meta, arrays = self._meta, self.waiting
        if meta["settings"] != self._settings:
            raise ValueError(
                "A series of rounds goes on with the settings it began with, "
                f"{meta['settings']}. Received: {self._settings}"
            )
        is_open = self._check_epoch(meta, epoch)
        self._inner.call("on_train_begin")
        self._inner.set_state(meta["callbacks"], arrays)
        for name in ("round", "round_start", "start_updates", "epochs"):
            setattr(self, f"_{name}", meta[name])
        self._is_over, self._closed = meta["is_over"], meta["closed"]
        self.seed, self.history = meta["seed"], meta["history"]
        self._begin = Snapshot.from_state("begin", arrays)
        self._point = Snapshot.from_state("point", arrays)
        if self.rewind == 0:
            self._point = self._begin
        self._bird.packed = pick(arrays, "birds")
        for state, value in zip(seed_states(self._net), pick(arrays, "seeds")):
            state.assign(value)
        self._meta, self.waiting = None, {}
        if is_open:
            self._close(epoch - 1, meta["open"])
        if len(self.history) == self.rounds:
            # All is done; Keras takes one more step all the same.
            self._final = Snapshot.take(self._net, self._masked)
            self._net.stop_training = True

    # The epoch to go on with.

    def _know_steps(self):
        """Where the last batch of an epoch begins, if that can be known."""
        steps = self.params.get("steps")
        if steps:
            together = self._net.steps_per_execution or 1
            self._last_batch = (steps - 1) // together * together

    def _is_whole(self):
        """Whether the epoch has no batch left to train on."""
        return self._validation is not None or (
            self._last_batch is not None and self._batch >= self._last_batch
        )

    def _first_epoch(self, meta):
        """The epoch to go on with, or `None` where none is told."""
        if meta["open"] is None:
            return meta["closed"] + 1
        return meta["closed"] + 2 if meta["whole"] else None

    def _begin_after(self, logs=None):
        """Has `fit` begin after what was loaded."""
        epoch = self._meta and self._first_epoch(self._meta)
        if epoch is not None:
            _keras.begin_at_epoch(self._net, epoch)

    def _follow_backup(self):
        """Has `fit` begin after what `BackupAndRestore` loads.

        Killed between its two files, it has the weights of one epoch and the
        number of another.
        """
        running, _ = _keras.running_fit(self)
        kind = keras.callbacks.BackupAndRestore
        if running and any(isinstance(c, kind) for c in running.callbacks):
            # At the end of the list: whatever the order, all is loaded then.
            last = keras.callbacks.LambdaCallback(
                on_train_begin=self._begin_after
            )
            running.callbacks.append(last)

    def _check_epoch(self, meta, epoch):
        """Whether the epoch before was over, but not closed, when saved."""
        begins, first = meta["closed"] + 1, self._first_epoch(meta)
        if epoch == begins + 1 and meta["open"] is not None:
            return True
        if epoch == begins:
            running, _ = _keras.running_fit(self)
            # `Resume`, which passes over batches, calls from outside of it.
            if first == begins or running is None:
                return False
            if first is None:
                warnings.warn(
                    "The rounds that were loaded were saved in the middle of "
                    f"epoch {begins}, which is trained on from its begin once "
                    "more. `BackupAndRestore(save_freq='epoch')` and "
                    "`keras_dlkit.callbacks.Resume` go on as the unbroken run.",
                    stacklevel=2,
                )
                return False
        wanted = f"`initial_epoch={begins if first is None else first}`"
        if first is None:
            wanted += f", or {begins + 1} if that epoch was over"
        raise ValueError(
            f"The rounds that were loaded go on with {wanted}. Received: a "
            f"`fit` that begins at epoch {epoch}"
        )


def floats(logs):
    """Numbers that can be written down."""
    arrays = {name: ops.convert_to_numpy(v) for name, v in logs.items()}
    return {name: float(a) for name, a in arrays.items() if np.ndim(a) == 0}
