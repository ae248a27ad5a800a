"""The networks of `uncertainty.py`, with the parts that they have in common.

Stem, blocks and head are those of SDE-Net and of its ResNet (Kong et al.,
2020), for images and for rows of numbers. The ResNet has as many blocks as
SDE-Net has steps, with weights of their own.
"""

import keras
from keras import layers

import keras_dlkit as dlkit

STEPS = {"images": 6, "numbers": 4}
# In training and in inference: the paper's for SVHN and for YearMSD.
SIGMAS = {"images": (1.0, 50.0), "numbers": (0.5, 0.5)}
DROPOUT = 0.1
# A gradient of 5e-4 a weight.
DECAY = 2.5e-4
# Of the scale of a number, as in the paper.
MIN_SCALE = 1e-3


def resnet(kind, width, inputs, dropout=False):
    """The plain network; with dropout after each block for MC dropout."""
    x = start = keras.Input(inputs)
    x = stem(kind, width, inputs)(x)
    for _ in range(STEPS[kind]):
        x = layers.Add()([x, step(kind, width, x)])
        if dropout:
            x = layers.Dropout(DROPOUT)(x)
    return keras.Model(start, head(kind, width)(x))


def sde_net(kind, width, inputs, seed):
    state = keras.Input(state_shape(kind, width))
    time = keras.Input((1,))
    drift = keras.Model([state, time], step(kind, width, state, time))
    sigma, sigma_inference = SIGMAS[kind]
    block = dlkit.layers.SDEBlock(
        drift,
        diffusion(kind, width),
        num_steps=STEPS[kind],
        t_end=float(STEPS[kind]),
        sigma=sigma,
        sigma_inference=sigma_inference,
        seed=seed,
    )
    return dlkit.models.SDENet(
        stem(kind, width, inputs),
        block,
        head(kind, width),
        outputs="logits" if kind == "images" else "mean_and_scale",
        seed=seed,
    )


def state_shape(kind, width):
    return (6, 6, width) if kind == "images" else (width,)


def stem(kind, width, inputs):
    if kind == "numbers":
        return keras.Sequential([keras.Input(inputs), dense(width)])
    net = [keras.Input(inputs), conv(width, padding="valid")]
    for _ in range(2):
        net += [norm(width), layers.ReLU(), layers.ZeroPadding2D(1)]
        net += [conv(width, 4, strides=2, padding="valid")]
    return keras.Sequential(net)


def step(kind, width, x, time=None):
    """What a step adds to the state: the drift, or a residual block."""

    def timed(x):
        if time is None:
            return x
        return dlkit.layers.ConcatenateTime()([x, time])

    if kind == "numbers":
        return dense(width, activation="relu")(timed(x))
    for _ in range(2):
        x = layers.ReLU()(norm(width)(x))
        x = conv(width)(timed(x))
    return norm(width)(x)


def diffusion(kind, width):
    net, last = [keras.Input(state_shape(kind, width))], "uniform"
    if kind == "numbers":
        net += [dense(2 * width, activation="relu")]
    else:
        last = "glorot_uniform"
        for _ in range(2):
            net += [norm(width), layers.ReLU(), conv(width)]
        net += [norm(width), layers.ReLU(), layers.GlobalAveragePooling2D()]
    return keras.Sequential([*net, dense(1, last, activation="sigmoid")])


def head(kind, width):
    x = start = keras.Input(state_shape(kind, width))
    if kind == "numbers":
        x = layers.ReLU()(x)
        # A mean, and a scale.
        scale = dense(1, activation="softplus")(x)
        scale = layers.Rescaling(1.0, MIN_SCALE)(scale)
        return keras.Model(start, layers.Concatenate()([dense(1)(x), scale]))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(norm(width)(x)))
    return keras.Model(start, dense(10, "small")(x))


def norm(width):
    return layers.GroupNormalization(width // 2)


def conv(width, size=3, padding="same", **options):
    return layers.Conv2D(
        width,
        size,
        padding=padding,
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal"
        ),
        kernel_regularizer=keras.regularizers.L2(DECAY),
        **options,
    )


def dense(units, initializer="uniform", **options):
    """Kernels up to the root of 1 / fan-in, as PyTorch draws them.

    With Glorot's, of 1.7 times their size, one drift in all steps multiplies
    the state: the first losses are of the order of 1e5, after which Adam
    stands still.
    """
    if initializer == "small":
        initializer = keras.initializers.RandomNormal(stddev=1e-3)
    if initializer == "uniform":
        initializer = keras.initializers.VarianceScaling(
            1 / 3, "fan_in", "uniform"
        )
    return layers.Dense(
        units,
        kernel_initializer=initializer,
        kernel_regularizer=keras.regularizers.L2(DECAY),
        **options,
    )


class Passes(keras.Model):
    """A network whose predictions have dropout."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def call(self, inputs):
        return self.net(inputs, training=True)
