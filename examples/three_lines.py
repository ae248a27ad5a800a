"""
Title: SAM and MixUp in three lines
Author: the keras_dlkit developers
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Three everyday Keras scripts, each with three lines added.
Accelerator: None

An image classifier from scratch, a fine-tuned network of `keras.applications`
and a KerasHub backbone with a new head. Without the lines marked `# +` each is
an ordinary Keras script, and runs as one.

```bash
python examples/three_lines.py
python examples/three_lines.py --weights imagenet
```

Handwritten digits of 8 x 8 pixels, made larger and coloured for the networks
that want more than that. Blending labels takes one-hot labels; for integer
ones say `MixUp(0.2, num_classes=10)`.
"""

import argparse
import importlib.util

import keras
import numpy as np
from sklearn.datasets import load_digits


def load(size=8, channels=1, count=1797):
    """Images of values from 0 to 255, and one-hot labels."""
    digits = load_digits()
    factor = size // 8
    images = np.kron(digits.images[:count], np.ones((1, factor, factor)))
    images = np.repeat(images[..., None] * 255 / 16, channels, axis=-1)
    labels = keras.utils.to_categorical(digits.target[:count], 10)
    return images.astype("float32"), labels


"""
## An image classifier from scratch
"""


def from_scratch(epochs=5):
    import keras_dlkit as dlkit  # +

    x, y = load()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.Adam(2e-3)
    model = dlkit.attach(model, dlkit.layers.MixUp(0.2))  # +
    optimizer = dlkit.optimizers.SAM(optimizer)  # +
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    return model.fit(x, y, validation_split=0.2, epochs=epochs, verbose=0)


"""
## Fine-tuning

A new head on a network of `keras.applications`, of which the last layers are
tuned and the others kept. With random weights there is nothing worth keeping,
and nothing is learned in a few seconds: `--weights imagenet` downloads better
ones.
"""


def fine_tuned(epochs=3, weights=None):
    import keras_dlkit as dlkit  # +

    # The published weights are for 128 pixels and more.
    size = 32 if weights is None else 128
    x, y = load(size, channels=3, count=320)
    base = keras.applications.MobileNet(
        input_shape=(size, size, 3),
        alpha=0.25,
        include_top=False,
        weights=weights,
        pooling="avg",
    )
    for layer in base.layers[:-13]:
        layer.trainable = False
    model = keras.Sequential(
        [
            keras.Input((size, size, 3)),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
            base,
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.AdamW(1e-3)
    model = dlkit.attach(model, dlkit.layers.MixUp(0.2))  # +
    optimizer = dlkit.optimizers.SAM(optimizer)  # +
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    return model.fit(x, y, validation_split=0.2, epochs=epochs, verbose=0)


"""
## A KerasHub backbone
"""


def keras_hub_backbone(epochs=3):
    import keras_hub

    import keras_dlkit as dlkit  # +

    x, y = load()
    # Or ResNetBackbone.from_preset("resnet_18_imagenet"), for its weights.
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(8, 8, 1),
    )
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            backbone,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.AdamW(2e-3)
    model = dlkit.attach(model, dlkit.layers.MixUp(0.2))  # +
    optimizer = dlkit.optimizers.SAM(optimizer)  # +
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    return model.fit(x, y, validation_split=0.2, epochs=epochs, verbose=0)


"""
## Run them
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Three Keras scripts with SAM and MixUp."
    )
    parser.add_argument(
        "--weights",
        choices=["imagenet"],
        help="of the network to fine-tune; random if not given",
    )
    weights = parser.parse_args(arguments).weights
    scripts = {
        "from scratch": from_scratch,
        f"fine-tuned, {weights or 'random'} weights": lambda: fine_tuned(
            weights=weights
        ),
        "KerasHub backbone": keras_hub_backbone,
    }
    if importlib.util.find_spec("keras_hub") is None:
        del scripts["KerasHub backbone"]
        print("KerasHub backbone: left out, it needs `pip install keras-hub`")
    for name, script in scripts.items():
        keras.utils.set_random_seed(0)
        accuracy = script().history["val_accuracy"][-1]
        print(f"{name}: validation accuracy {accuracy:.1%}", flush=True)


if __name__ == "__main__":
    main()
