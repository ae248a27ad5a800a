"""Saves in a folder that a kill at any moment leaves whole."""

import json
import os
import pathlib
import re
import warnings

import numpy as np

from keras_dlkit.callbacks import _sealed
from keras_dlkit.callbacks._sealed import DamagedSave

NAME = re.compile(r"save_(\d{9})\.npz")
KEPT = 2


class SaveFolder:
    """Numbered saves, of which the last two are kept.

    A save is an `.npz` file of arrays and one JSON text, with its SHA-256 at
    the end. It is written under another name, and renamed once it is on disk.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.last = 0

    def write(self, meta, arrays):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.last += 1
        path = self.folder / f"save_{self.last:09d}.npz"
        unfinished = path.with_suffix(".tmp")
        text = np.frombuffer(json.dumps(meta).encode(), "uint8")
        with open(unfinished, "wb") as file:
            np.savez(file, meta=text, **arrays)
        _sealed.seal(unfinished)
        os.replace(unfinished, path)
        _sync_folder(self.folder)
        for old in self._paths()[:-KEPT]:
            old.unlink()

    def read(self):
        """The last save that is whole, as its text and arrays, or `None`."""
        paths = self._paths()
        for path in reversed(paths):
            try:
                found = _read(path)
            except DamagedSave as error:
                warnings.warn(
                    f"The save {str(path)!r} is damaged, and passed over: "
                    f"{error}",
                    stacklevel=2,
                )
                continue
            self.last = int(NAME.fullmatch(path.name)[1])
            return found
        if paths:
            raise DamagedSave(
                "`Resume` needs a save that is whole. Received: a folder of "
                f"damaged ones, {[str(path) for path in paths]}. Delete them "
                "to begin anew."
            )
        return None

    def clear(self):
        """Deletes the saves, and the folder if there is nothing else."""
        for path in [*self._paths(), *self.folder.glob("save_*.tmp")]:
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _paths(self):
        return sorted(
            path
            for path in self.folder.glob("save_*.npz")
            if NAME.fullmatch(path.name)
        )


def _read(path):
    _sealed.check(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(arrays.pop("meta").tobytes()), arrays


def _sync_folder(folder):
    """So that the new name is on disk as well."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows does not open folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
