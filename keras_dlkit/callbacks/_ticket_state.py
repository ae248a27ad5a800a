"""The state of a series of rounds, which travels with the masks."""

import json

import numpy as np
from keras import ops

from keras_dlkit import _checks
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
        self._arrays = {}  # as loaded
        self._meta = None
        # Of this process.
        self._has_begun = False
        self._epoch = self._batch = 0
        self._logs = {}
        self._validation = self._final = None

    def get_state(self):
        """The state as arrays, at any moment of `fit`."""
        if self._round is None:
            return {}
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
            self._arrays = arrays
            self._meta = json.loads(bytes(np.asarray(arrays["meta"])).decode())

    def _resume(self, epoch):
        meta, arrays = self._meta, self._arrays
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
        self._meta, self._arrays = None, {}
        if is_open:
            self._close(epoch - 1, meta["open"])
        if len(self.history) == self.rounds:
            # All is done; Keras takes one more step all the same.
            self._final = Snapshot.take(self._net, self._masked)
            self._net.stop_training = True

    def _check_epoch(self, meta, epoch):
        """Whether the epoch before was over, but not closed, when saved."""
        begins = meta["closed"] + 1
        if epoch == begins:
            return False
        wanted = f"`initial_epoch={begins}`"
        if meta["open"] is not None:
            if epoch == begins + 1:
                return True
            wanted = (
                f"`initial_epoch={begins + 1}`, or {begins} if they were saved"
                " in the middle of an epoch"
            )
        raise ValueError(
            f"The rounds that were loaded go on with {wanted}. Received: a "
            f"`fit` that begins at epoch {epoch}"
        )


def floats(logs):
    """Numbers that can be written down."""
    arrays = {name: ops.convert_to_numpy(v) for name, v in logs.items()}
    return {name: float(a) for name, a in arrays.items() if np.ndim(a) == 0}


def checked_rewind(rewind):
    if rewind in (None, "init", "learning_rate"):
        return rewind
    if isinstance(rewind, str):
        _checks.check_one_of(
            "rewind", rewind, ("init", "learning_rate", None, "a step")
        )
    return _checks.check_count("rewind", rewind, at_least=0)
