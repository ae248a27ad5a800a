"""Small networks with zeros in them."""

import keras
import numpy as np
from keras import layers
from keras import ops


def array(tensor):
    return ops.convert_to_numpy(tensor)


def branched():
    """Two dimensions, a shared layer, a sum, batch norm, an operation."""
    image, extra = keras.Input((6, 6, 1)), keras.Input((3,), name="extra")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = x + layers.Conv2D(4, 1)(x)
    x = layers.GlobalAveragePooling2D()(x)
    shared = layers.Dense(5, "tanh", name="shared")
    a, b = shared(x), shared(layers.Dense(4)(extra))
    outputs = layers.Dense(2, name="head")(layers.Concatenate()([a, b]))
    return keras.Model([image, extra], outputs)


def nested():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5, "relu")])
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4), inner, layers.Dense(2)]
    )


def randomize(model, seed=0):
    """Weights and statistics as after a training, biases too."""
    rng = np.random.default_rng(seed)
    for v in model.weights:
        positive = "variance" in v.name or "gamma" in v.name
        values = rng.normal(size=v.shape) * 0.5
        v.assign(np.abs(values) + 0.5 if positive else values)
    return model


def sparsify(model, share=0.8, seed=1):
    rng = np.random.default_rng(seed)
    for v in model.weights:
        if len(v.shape) > 1:
            v.assign(array(v.value) * (rng.random(v.shape) >= share))
    return model


def names(model):
    """Those of the layers; Keras names inputs anew in a copy."""
    inputs = keras.layers.InputLayer
    return [x.name for x in model.layers if not isinstance(x, inputs)]


def data(model, rows=5, seed=2):
    rng = np.random.default_rng(seed)
    x = [
        rng.normal(size=(rows, *t.shape[1:])).astype("float32")
        for t in model.inputs
    ]
    return x if len(x) > 1 else x[0]
