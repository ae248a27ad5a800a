"""A file of the weights and the optimizer that is whole at any moment."""

import os
import pathlib

from keras_dlkit.callbacks import _sealed


class Checkpoint:
    """`latest.weights.h5` in a folder, replaced in one go.

    Of `BackupAndRestore` a process may be killed between its two files, or
    in the middle of one.
    """

    def __init__(self, folder):
        self.path = pathlib.Path(folder) / "latest.weights.h5"
        self._next = self.path.with_name("next.weights.h5")

    def save(self, model):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        model.save_weights(self._next)
        _sealed.seal(self._next)
        os.replace(self._next, self.path)

    def load(self, model):
        """Whether there was something to load."""
        if not self.path.exists():
            return False
        try:
            _sealed.check(self.path)
        except _sealed.DamagedSave as error:
            raise _sealed.DamagedSave(
                "`checkpoint_dir` must hold a checkpoint that is whole. "
                f"Received: {str(self.path)!r}, which is damaged: {error}. "
                "Delete it to begin anew."
            ) from error
        model.load_weights(self.path)
        return True

    def delete(self):
        for path in (self.path, self._next):
            path.unlink(missing_ok=True)
