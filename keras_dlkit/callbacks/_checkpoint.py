"""A file of the weights and the optimizer that is whole at any moment."""

import os
import pathlib


class Checkpoint:
    """`latest.weights.h5` in a folder, replaced in one go.

    Of `BackupAndRestore` a process may be killed between its two files, or
    in the middle of one.
    """

    def __init__(self, folder):
        self.path = pathlib.Path(folder) / "latest.weights.h5"

    def save(self, model):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name("next.weights.h5")
        model.save_weights(new)
        os.replace(new, self.path)

    def load(self, model):
        """Whether there was something to load."""
        if not self.path.exists():
            return False
        model.load_weights(self.path)
        return True

    def delete(self):
        self.path.unlink(missing_ok=True)
