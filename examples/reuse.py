"""
Title: Train with parts, serve without
Author: the keras_dlkit developers
Date created: 2026/11/25
Last modified: 2026/11/25
Description: One trained network in a `.keras` file, a SavedModel, ONNX, LiteRT.
Accelerator: None

The parts of keras_dlkit are for training. What they leave behind is the network
that you made, and it goes wherever a network of Keras goes. This script trains
one on handwritten digits with SAM, MixUp and pruning, takes the parts off,
writes it in every form that the backend of Keras has, and loads each of them as
a stranger would: in a process that has no keras_dlkit. All give the same
predictions.

```bash
pip install "keras_dlkit[examples,export,tensorflow,torch]"
python examples/reuse.py
KERAS_BACKEND=torch python examples/reuse.py
```

A form whose package is not installed is left out, and said to be.
"""

import argparse
import importlib.util
import pathlib
import subprocess
import sys

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_dlkit as dlkit

CLASSES = 10

"""
## Train

`dlkit.detach` gives back the network: no wrapper, no masks, no penalties. Three
quarters of the weights of each layer are zero.
"""


def load():
    digits = load_digits()
    images = digits.images[..., None].astype("float32") / 16
    return images, digits.target


def train(epochs):
    net = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(CLASSES, "softmax"),
        ]
    )
    model = dlkit.attach(net, dlkit.layers.MixUp(0.2, num_classes=CLASSES))
    model.compile(
        dlkit.optimizers.SAM(keras.optimizers.Adam(3e-3)),
        "categorical_crossentropy",
        metrics=["accuracy"],
    )
    images, labels = load()
    sparsity = dlkit.schedules.ConstantSparsity(0.75, begin_step=20)
    model.fit(
        images[:1500],
        labels[:1500],
        batch_size=64,
        epochs=epochs,
        validation_data=(images[1500:], labels[1500:]),
        callbacks=[dlkit.callbacks.MagnitudePruning(sparsity)],
        verbose=2,
    )
    return dlkit.detach(model)


"""
## Write

Keras writes the files. PyTorch has no SavedModel and JAX no ONNX of its own:
save as `.keras`, and export where the backend has the form.
"""

FORMS = {
    "tensorflow": ("tf_saved_model", "onnx", "litert"),
    "jax": ("tf_saved_model",),
    "torch": ("onnx",),
}
FILES = {
    "tf_saved_model": "saved_model",
    "onnx": "net.onnx",
    "litert": "net.tflite",
}
NEEDS = {
    "tf_saved_model": ["tensorflow"],
    "onnx": ["onnx", "onnxruntime"],
    "litert": ["tensorflow", "ai_edge_litert"],
}
CONVERTERS = {"tensorflow": "tf2onnx", "torch": "onnxscript"}


def missing(form):
    names = list(NEEDS[form])
    if form == "onnx":
        names.append(CONVERTERS[keras.config.backend()])
    return [name for name in names if not importlib.util.find_spec(name)]


def write(net, folder):
    """The paths of what was written."""
    paths = [folder / "net.keras"]
    net.save(paths[0])
    for form in FORMS[keras.config.backend()]:
        if missing(form):
            print(f"{form}: pip install {' '.join(missing(form))}")
            continue
        paths.append(folder / FILES[form])
        net.export(paths[-1], format=form, verbose=False)
    return paths


"""
## Read

The script of someone who has the files, and has never heard of keras_dlkit.
"""

READER = """
import importlib.util, sys
import numpy as np

sys.modules["keras_dlkit"] = None  # to import it is an error from here on


def by_keras(path):
    import keras

    net = keras.saving.load_model(path)
    return lambda x: net.predict(x, verbose=0)


def by_tensorflow(path):
    import tensorflow as tf

    net = tf.saved_model.load(path)  # has to live as long as it serves
    return lambda x: net.serve(x)


def by_tensorflow_hub(path):
    import tensorflow_hub as hub

    net = hub.load(path)
    return lambda x: net.serve(x)


def as_a_layer(path):
    import keras

    return keras.layers.TFSMLayer(path, call_endpoint="serve")


def by_onnxruntime(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def by_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    def serve(x):
        net = Interpreter(path)
        given, found = net.get_input_details()[0], net.get_output_details()[0]
        net.resize_tensor_input(given["index"], x.shape)
        net.allocate_tensors()
        net.set_tensor(given["index"], x)
        net.invoke()
        return net.get_tensor(found["index"])

    return serve


WAYS = {
    "net.keras": [by_keras],
    "saved_model": [by_tensorflow, as_a_layer],
    "net.onnx": [by_onnxruntime],
    "net.tflite": [by_litert],
}
# tensorflow_hub 0.16 needs pkg_resources, which setuptools 82 has not.
needed = {"tensorflow_hub": "tensorflow_hub", "pkg_resources": "setuptools<82"}
missing = [p for m, p in needed.items() if not importlib.util.find_spec(m)]
if not missing:
    WAYS["saved_model"].append(by_tensorflow_hub)
elif "saved_model" in sys.argv:
    print("by_tensorflow_hub: pip install", *map(repr, missing), flush=True)

x = np.load("x.npy")
for path in sys.argv[1:]:
    for way in WAYS[path]:
        y = np.asarray(way(path)(x))
        np.save(f"{path}-{way.__name__}.npy", y)
"""


def read(paths, images):
    """The predictions of each file, as a process apart makes them."""
    folder = paths[0].parent
    for old in folder.glob("*-*.npy"):
        old.unlink()
    (folder / "reader.py").write_text(READER, encoding="utf-8")
    np.save(folder / "x.npy", images)
    names = [path.name for path in paths]
    command = [sys.executable, "reader.py", *names]
    subprocess.run(command, cwd=folder, check=True)
    return {path.stem: np.load(path) for path in sorted(folder.glob("*-*.npy"))}


"""
## All together
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Train with parts, serve.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, default="runs/reuse")
    arguments = parser.parse_args(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    net = train(arguments.epochs)
    images, _ = load()
    images = images[1500:]
    expected = net.predict(images, verbose=0)
    for name, found in read(write(net, arguments.out), images).items():
        print(f"{name}: differs by {np.abs(found - expected).max():.1e}")


if __name__ == "__main__":
    main()
