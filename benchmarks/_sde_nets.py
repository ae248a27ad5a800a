"""The networks of SDE-Net's paper: MNIST's, and that of the year of a song."""

import keras
import numpy as np
from _training import CLASSES

import keras_dlkit as dlkit

IMAGE = (28, 28)
FEATURES = 90
NUM_STEPS = 6
SIGMA, SIGMA_INFERENCE = 20.0, 500.0
OOD_SCALE = 2.0
WEIGHT_DECAY = 5e-4
MOMENTUM = 0.9
# A hundredth of the paper's, such that a thousand steps on random labels stay
# finite: first of stem, drift and head, then of the diffusion.
LEARNING_RATES = 1e-3, 1e-4

layers = keras.layers


def channel_axis():
    first = keras.config.image_data_format() == "channels_first"
    return 1 if first else -1


def image_shape():
    return (1, *IMAGE) if channel_axis() == 1 else (*IMAGE, 1)


def norm_and_relu(width):
    norm = layers.GroupNormalization(min(32, width), channel_axis())
    return [norm, layers.ReLU()]


def pooled(width, units, activation=None):
    return [
        *norm_and_relu(width),
        layers.GlobalAveragePooling2D(),
        layers.Dense(units, activation),
    ]


def image_parts(width):
    """Stem, drift, diffusion and head for images, not built but for the stem.

    The diffusion has no channel of zeros for the time, as it has in the paper.
    """

    def down():
        return [
            *norm_and_relu(width),
            layers.ZeroPadding2D(1),
            layers.Conv2D(width, 4, 2),
        ]

    def same():
        return [*norm_and_relu(width), layers.Conv2D(width, 3, padding="same")]

    first = [keras.Input(image_shape()), layers.Conv2D(width, 3)]
    stem = keras.Sequential([*first, *down(), *down()])
    return (
        stem,
        image_drift(width, stem.output_shape[1:]),
        keras.Sequential(
            [*same(), *same(), *pooled(width, 1, "sigmoid")], name="diffusion"
        ),
        keras.Sequential(pooled(width, CLASSES)),
    )


def image_drift(width, shape):
    state, time = keras.Input(shape), keras.Input((1,))
    x = state
    for _ in range(2):
        for layer in norm_and_relu(width):
            x = layer(x)
        x = dlkit.layers.ConcatenateTime()([x, time])
        x = layers.Conv2D(width, 3, padding="same")(x)
    x = layers.GroupNormalization(min(32, width), channel_axis())(x)
    return keras.Model([state, time], x)


def dense_parts(width):
    return (
        keras.Sequential([keras.Input((FEATURES,)), layers.Dense(width)]),
        layers.Dense(width, "relu"),
        keras.Sequential(
            [
                layers.Dense(2 * width, "relu"),
                layers.Dense(1, "sigmoid"),
            ],
            name="diffusion",
        ),
        keras.Sequential([layers.ReLU(), layers.Dense(CLASSES)]),
    )


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def optimizers():
    return [
        keras.optimizers.SGD(rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for rate in LEARNING_RATES
    ]


def sde_net(
    parts,
    num_steps=NUM_STEPS,
    sigma=SIGMA,
    sigma_inference=SIGMA_INFERENCE,
    unroll=None,
    **settings,
):
    stem, drift, diffusion, head = parts
    net = dlkit.models.SDENet(
        stem,
        dlkit.layers.SDEBlock(
            drift,
            diffusion,
            num_steps=num_steps,
            t_end=float(num_steps),
            sigma=sigma,
            sigma_inference=sigma_inference,
            unroll=unroll,
        ),
        head,
        ood_scale=OOD_SCALE,
        **settings,
    )
    first, second = optimizers()
    net.compile(
        keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(first, {".*diffusion.*": second})
        ),
        loss(),
    )
    return net


def random_batches(shape, rows, count=8):
    """`count` batches of noise with random labels."""
    random = np.random.default_rng(0)
    return [
        (
            random.normal(size=(rows, *shape)).astype("float32"),
            random.integers(CLASSES, size=rows).astype("int32"),
        )
        for _ in range(count)
    ]
