"""A `fit` that was killed goes on as if it had not been."""

import contextlib
import os

import keras

from keras_dlkit import _checks
from keras_dlkit import _keras
from keras_dlkit._train_step import processes
from keras_dlkit.callbacks import _host_random
from keras_dlkit.callbacks import _model_memory
from keras_dlkit.callbacks import _plain_data
from keras_dlkit.callbacks import _replay
from keras_dlkit.callbacks._callback_memory import CallbackMemory
from keras_dlkit.callbacks._save_files import SaveFolder


class Resume(keras.callbacks.Callback):
    """Goes on with a `fit` that was killed, from the batch it had come to.

    Run the same script again: where `folder` holds a save, the training goes
    on from there, and ends with the weights, the optimizer and the history of
    a run that was never broken, bit for bit on the same machine. Batches that
    were trained on are drawn again and passed over; nothing is computed for
    them and no other callback hears of them. Models of any kind, attached or
    not. `keras.callbacks.BackupAndRestore` begins the epoch anew, with weights
    that have seen a part of it: 18 updates where this makes 16.

    What is saved: weights with batch statistics, the optimizer, seed states
    (which Keras forgets), the running values of the metrics, the random
    states of Python, NumPy and PyTorch, and of every other callback in the
    list what changed in it since training began, as far as it is numbers,
    strings, arrays, and lists or dictionaries of them. A callback with more
    has `get_state()`, which returns a dictionary of arrays, and
    `set_state(arrays)`. A save is written aside, flushed to disk and renamed;
    the last two are kept. One that is damaged is passed over with a warning.
    There is no pickle in it.

    Args:
        folder: Path of a local folder for the saves of this run alone. Of
            several processes each has the callback, with a folder of its own:
            they go on from the last save that all have.
        save_every_steps: Integer, at least 1, or `None`. Saves after so many
            batches of an epoch, and as often again, beside the save at the
            end of each epoch. Defaults to `None`.
        replay: Which batches are drawn again: `"epoch"` those of the epoch
            that was broken off, `"all"` those of all epochs, without training
            on them, for data of which an epoch hangs on those before it.
            `"auto"` is `"epoch"` for arrays, a `PyDataset` without hooks of
            epochs, and PyTorch's `DataLoader` without a `generator` or
            sampler of your own, or workers that live on; and `"all"` for the
            rest: generators, `tf.data` and all that `steps_per_epoch` cuts.
            Defaults to `"auto"`.
        delete_checkpoint: Boolean. Whether the saves are deleted once `fit`
            has ended, as with `keras.callbacks.BackupAndRestore`. If not, the
            same `fit` again trains no step, and a longer one goes on.
            Defaults to `True`.

    Bit for bit means a model that trains alike twice, and data whose order can
    be had again. That of shuffled arrays can on JAX and PyTorch, and on
    TensorFlow if the script begins with `keras.utils.set_random_seed`.
    Without, as with a `tf.data.Dataset` that is shuffled without a seed, a
    resumed epoch may hold some rows twice.

    State: files in `folder`.
    Runs: at the begin and the end of `fit` and of epochs; after a batch, to
        count, and every `save_every_steps` batches to save.
    Cost: a save reads all variables and writes them: about the size of the
        weights and the optimizer, twice on disk. On JAX and PyTorch a hook
        after each batch waits for its logs.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range; at
            the begin of `fit`, for a model that is not built, another model,
            optimizer or number of steps than that of the save, and a
            `BackupAndRestore` beside it; for saves that are all damaged, or
            of which several processes have none in common; for weights that
            are cut between processes; for data that end before the batch that
            was come to.

    Example:

    ```python
    import tempfile
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    net.compile("adam", "mse")
    folder = tempfile.mkdtemp()
    resume = dlkit.callbacks.Resume(folder, save_every_steps=100)
    x, y = np.ones((8, 4)), np.ones((8, 3))
    net.fit(x, y, epochs=2, callbacks=[resume], verbose=0)
    ```
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        save_every_steps: int | None = None,
        replay: str = "auto",
        delete_checkpoint: bool = True,
    ):
        super().__init__()
        self._saves = SaveFolder(folder)
        self.save_every_steps = save_every_steps
        if save_every_steps is not None:
            self.save_every_steps = _checks.check_count(
                "save_every_steps", save_every_steps, at_least=1
            )
        self.replay = _checks.check_one_of(
            "replay", replay, ("auto", "epoch", "all")
        )
        self.delete_checkpoint = delete_checkpoint
        self._replay = None

    # Before the first batch. The other callbacks are kept out of the list
    # until training is where it was, and called from here.

    def on_train_begin(self, logs=None):
        net = self.model
        if self._replay is not None:  # of a `fit` that was broken off
            self._replay.end()
        self._list, arguments = _keras.running_fit(self)
        self._check_fit(net)
        self._others = [c for c in self._list.callbacks if c is not self]
        _check_others(self._others)
        _keras.call_between_steps(self._list)
        self._epoch = self._batch = 0
        self._first_epoch = arguments["initial_epoch"]
        self._settings = {
            "Keras backend": keras.config.backend(),
            "steps per epoch": (self.params or {}).get("steps"),
            **_model_memory.describe(net),
        }
        self._memory = CallbackMemory(self._others)
        self._pending, self._arrays = self._saves.read() or (None, None)
        self._list.callbacks = [self]
        if self._pending is not None:
            self._prepare(net, arguments)

    def _check_fit(self, net):
        if self._list is None:
            raise ValueError(
                "`Resume` passes over batches in `fit` of Keras. Received: "
                "a training that is no `fit` of `keras.Model`"
            )
        if not net.built:
            raise ValueError(
                "`Resume` needs the weights of the model: call the model on a "
                "batch of data before `fit`, or `model.build(shape)`. "
                f"Received: the model {net.name!r}, which is not built"
            )
        if not net.optimizer.built:
            strategy = getattr(net, "distribute_strategy", None)
            with _scope_of(strategy):
                net.optimizer.build(net.trainable_variables)
        for variable in [*net.variables, *net.optimizer.variables]:
            if not processes.holds(variable):
                raise ValueError(
                    "`Resume` saves weights that each process has whole, as "
                    "with `DataParallel`. Received: "
                    f"{variable.path!r}, which is cut between processes. Save "
                    "the model itself at the ends of epochs."
                )

    def _prepare(self, net, arguments):
        saved = self._pending
        _check_same(saved["settings"], self._settings)
        self._memory.check(saved["callbacks"])
        replays_all = self.replay == "all" or (
            self.replay == "auto" and _replay.needs_all(arguments)
        )
        logs = {
            name: _plain_data.decode(node, self._arrays)
            for name, node in saved["logs"].items()
        }
        self._replay = _replay.Replay(net, logs, self._see)
        if saved["stop_training"] and not saved["batch"]:
            _keras.begin_at_epoch(net, self.params["epochs"])
        elif saved["epoch"] >= self.params["epochs"] or not replays_all:
            _keras.begin_at_epoch(net, saved["epoch"])
        elif saved["first_epoch"] != self._first_epoch:
            raise ValueError(
                "A run whose batches are all drawn again begins at the epoch "
                f"it began with, {saved['first_epoch']}. Received: "
                f"initial_epoch={self._first_epoch}"
            )
        if self.params.get("verbose"):
            print(
                f"Resume goes on from epoch {saved['epoch'] + 1}, batch "
                f"{saved['batch']}."
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._batch = epoch, 0
        if self._pending is not None:
            self._begin_pending(epoch, logs)
        elif self._list.callbacks == [self]:
            self._call_others("on_epoch_begin", epoch, logs)
            self._join_others()
        if self._pending is None:
            self._random_of_epoch = _host_random.take()

    def _begin_pending(self, epoch, logs):
        saved = self._pending
        if epoch < saved["epoch"]:
            self._replay.begin(test=True)
            return
        if epoch > saved["epoch"]:
            raise ValueError(
                f"The run that was saved goes on at epoch {saved['epoch']}. "
                f"Received: a `fit` that begins at epoch {epoch}"
            )
        _keras.begin_at_epoch(self.model, None)
        self._replay.end_of_tests()
        in_mid_epoch = saved["batch"] > 0
        self._restore(in_mid_epoch)
        self._set_random("random_of_epoch" if in_mid_epoch else "random")
        self._call_others("on_epoch_begin", epoch, logs)
        if not in_mid_epoch:
            self._end_replay()
            return
        # What they did at this begin is in the save, and more.
        self._restore(in_mid_epoch)
        self._memory.set_attributes(saved["callbacks"], self._arrays)
        self._random_of_epoch = self._set_random("random_of_epoch")
        self._replay.begin(test=False)

    def _restore(self, with_metrics):
        net = self.model
        groups = ["weights", "optimizer"]
        if with_metrics and self._has_all_metrics(net):
            groups.append("metrics")
        _model_memory.restore(net, self._arrays, groups)
        self._memory.set(self._pending["callbacks"], self._arrays)

    def _has_all_metrics(self, net):
        saved = _model_memory.count_metrics(self._arrays)
        return len(net.metrics_variables) == saved

    def _set_random(self, name):
        states = _plain_data.decode(self._pending[name], self._arrays)
        _host_random.restore(states)
        return states

    def _call_others(self, hook, *arguments):
        for callback in self._others:
            getattr(callback, hook)(*arguments)

    def _join_others(self):
        """From now on they are called by Keras, and this one after them."""
        self._list.callbacks = [*self._others, self]

    def _end_replay(self):
        self._replay.end()
        self._pending = self._arrays = self._replay = None
        self._join_others()

    def _see(self, batch):
        """On TensorFlow, metrics are built by the first batch they see."""
        if self._has_all_metrics(self._replay.model):
            return
        net, tests = self._replay.model, self._replay.test is not None
        self._replay.end_of_tests()
        # On JAX all are built before, and the weights are elsewhere now.
        if not all(getattr(m, "built", True) for m in net.metrics):
            net.test_on_batch(*keras.utils.unpack_x_y_sample_weight(batch))
        if not self._has_all_metrics(net):
            raise ValueError(
                "A run goes on with the metrics it began with, of "
                f"{_model_memory.count_metrics(self._arrays)} variables. "
                f"Received: metrics of {len(net.metrics_variables)}"
            )
        net.reset_metrics()
        if tests:
            self._replay.begin(test=True)
        else:
            _model_memory.restore(net, self._arrays)

    # Between batches and epochs.

    def on_train_batch_end(self, batch, logs=None):
        before, self._batch = self._batch, batch + 1
        if self._pending is not None:
            self._pass(batch)
        elif self._is_due(before):
            self._save(self._epoch, self._batch, logs)

    def _pass(self, batch):
        saved = self._pending
        if self._epoch == saved["epoch"] and batch + 1 >= saved["batch"]:
            self._replay.model.stop_training = saved["stop_training"]
            self._set_random("random")
            self._end_replay()

    def _is_due(self, before):
        every, steps = self.save_every_steps, self.params.get("steps")
        if every is None or (steps and self._batch >= steps):
            return False  # the end of the epoch is saved in any case
        return self._batch // every > before // every

    def on_epoch_end(self, epoch, logs=None):
        if self._pending is None:
            self._memory.own_arrays()
            self._save(epoch + 1, 0, logs)
        elif epoch >= self._pending["epoch"]:
            self._replay.end()
            raise ValueError(
                f"The data must hold the {self._pending['batch']} batches of "
                f"epoch {epoch} that were trained on before. Received: "
                f"{self._batch}"
            )

    def _save(self, epoch, batch, logs):
        net = self.model
        arrays = _model_memory.take(net)
        callbacks, own = self._memory.get()
        arrays.update(own)
        random, of_epoch = (
            _plain_data.encode(states, arrays, "random")
            for states in (_host_random.take(), self._random_of_epoch)
        )
        meta = {
            "settings": self._settings,
            "first_epoch": self._first_epoch,
            "epoch": epoch,
            "batch": batch,
            "stop_training": bool(net.stop_training),
            "logs": _plain_data.encode_items(logs or {}, arrays, "logs"),
            "callbacks": callbacks,
            "random": random,
            "random_of_epoch": of_epoch,
        }
        self._saves.write(meta, arrays)

    def on_train_end(self, logs=None):
        if self._list.callbacks == [self]:  # there was no epoch to begin
            self._end_at_once(logs)
        if self.delete_checkpoint:
            self._saves.clear()

    def _end_at_once(self, logs):
        net = self.model
        if self._pending is not None:
            _keras.begin_at_epoch(net, None)
            self._restore(with_metrics=False)
            self._memory.set_attributes(
                self._pending["callbacks"], self._arrays
            )
            net.optimizer.finalize_variable_values(net.trainable_weights)
            self._end_replay()
        self._join_others()
        self._call_others("on_train_end", logs)


def _scope_of(strategy):
    """Where variables are made, on TensorFlow under a strategy."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _check_others(callbacks):
    for callback in callbacks:
        if isinstance(callback, (Resume, keras.callbacks.BackupAndRestore)):
            raise ValueError(
                "One callback alone brings a run back. Received: `Resume`, and "
                f"a `{type(callback).__name__}` beside it"
            )


def _check_same(saved, now):
    for name, value in now.items():
        if saved[name] == value:
            continue
        expected, received = saved[name], value
        if isinstance(value, list) and len(value) == len(expected):
            expected, received = next(
                (a, b) for a, b in zip(expected, value) if a != b
            )
        raise ValueError(
            f"A run goes on with what it began with. Expected as {name}: "
            f"{expected}. Received: {received}. Give another run a folder of "
            "its own, or delete the saves to begin anew."
        )
