"""Loads each saved case, without a word of what is in it, and goes on."""

import pathlib
import sys

import keras
import numpy as np

import keras_dlkit  # noqa: F401  # registers the parts
from tests.conformance import registry

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    for path in sorted(folder.glob("*.keras")):
        model = keras.saving.load_model(path)
        case = registry.BY_NAME[path.stem]
        registry.fit(model, case, epochs=4, initial_epoch=2)
        np.savez(path.with_suffix(".npz"), *registry.state(model))
