"""Plain Keras, in a way to run a step, on the devices of a mode.

KERAS_BACKEND=tensorflow python tests/conformance/stock.py mirrored xla

It prints a loss, or fails: without a part of ours, on the smallest net.
"""

import argparse

import keras
import numpy as np

from tests.conformance import devices
from tests.conformance import modes


def fit(mode, way):
    with mode.scope() as creation:
        with creation():
            net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
            optimizer = keras.optimizers.SGD(0.1, **way.optimizer)
            net.compile(optimizer, "mse", **way.compile)
        x, y = np.ones((16, 4)), np.ones((16, 3))
        return net.fit(x, y, batch_size=4, epochs=2, verbose=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=modes.MODES)
    parser.add_argument("way", nargs="?", choices=modes.WAYS)
    arguments = parser.parse_args()
    mode = modes.MODES[arguments.mode]
    devices.set_up(mode)
    way = modes.WAYS.get(arguments.way, modes.Way("plain", "by default"))
    print("loss", fit(mode, way).history["loss"][-1])
