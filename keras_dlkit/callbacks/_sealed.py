"""Files that end with the SHA-256 of what is before it."""

import hashlib
import os

DIGEST = hashlib.sha256().digest_size
CHUNK = 2**20


class DamagedSave(ValueError):
    """A file that is not what was written."""


def seal(path):
    """Adds the SHA-256 of a file to its end, and flushes it to the disk.

    Readers of zip and HDF5 files pass over what follows the end of theirs.
    """
    with open(path, "r+b") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def check(path):
    """Raises `DamagedSave`, unless the file is as it was sealed."""
    size = os.path.getsize(path)
    hasher, left = hashlib.sha256(), size - DIGEST
    with open(path, "rb") as file:
        while left > 0:
            hasher.update(file.read(min(left, CHUNK)))
            left -= CHUNK
        if file.read() != hasher.digest():
            raise DamagedSave(
                f"its {size} bytes are not those that were written (SHA-256)"
            )
