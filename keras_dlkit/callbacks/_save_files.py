"""Saves in a folder that a kill at any moment leaves whole."""

import itertools
import json
import os
import pathlib
import re
import warnings

import numpy as np

from keras_dlkit._train_step import processes
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
        """The last save that is whole, as its text and arrays, or `None`.

        Of several processes each calls this, for a folder of its own: then it
        is the last that all have.
        """
        paths = self._paths()
        tried = KEPT if processes.count() > 1 else 1
        found = list(itertools.islice(_whole(reversed(paths)), tried))
        places = [_place(meta) for _, meta, _ in found]
        place = newest_of_all(places)
        if place is not None:
            path, meta, arrays = found[places.index(place)]
            self.last = int(NAME.fullmatch(path.name)[1])
            return meta, arrays
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


def newest_of_all(places):
    """The last of the places that each process gives, or `None` for none.

    Between two saves one process may be killed that has not written the
    second; none is further than that, for they take each step together.
    """
    nowhere = (-1, -1)
    filled = places + [nowhere] * (KEPT - len(places))
    given = [
        {tuple(map(int, place)) for place in of_one} - {nowhere}
        for of_one in processes.gather(filled)
    ]
    common = set.intersection(*given)
    if any(given) and not common:
        raise ValueError(
            "The processes of a run go on from a save that is in the folder "
            "of each. Received: saves of the processes at (epoch, batch) = "
            f"{[sorted(of_one) for of_one in given]}. Give each the folder "
            "that it had, or delete the folders of all to begin anew."
        )
    return max(common, default=None)


def _place(meta):
    return meta["epoch"], meta["batch"]


def _whole(paths):
    """Those that can be read, with what is in them."""
    for path in paths:
        try:
            yield path, *_read(path)
        except DamagedSave as error:
            warnings.warn(
                f"The save {str(path)!r} is damaged, and passed over: {error}",
                stacklevel=3,
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
