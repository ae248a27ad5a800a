"""MNIST from the gzipped IDX files that it comes in."""

import gzip

import numpy as np


def read_mnist(folder):
    """As `keras.datasets.mnist.load_data()`."""
    return tuple(_read_part(folder, part) for part in ("train", "t10k"))


def _read_part(folder, part):
    images, labels = (
        np.frombuffer(gzip.open(folder / name).read()[skip:], "uint8")
        for name, skip in (
            (f"{part}-images-idx3-ubyte.gz", 16),
            (f"{part}-labels-idx1-ubyte.gz", 8),
        )
    )
    return images.reshape(-1, 28, 28), labels
