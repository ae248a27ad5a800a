"""What the tests of LotteryTicket share: data, networks, a `fit`."""

import keras
import numpy as np
from keras import layers
from keras import ops

# Most of these take longer to trace than to run.
EAGER = keras.config.backend() == "tensorflow"
ROUNDS, EPOCHS, STEPS, ROWS = 4, 2, 3, 4
RATE, MOMENTUM, DECAY = 0.25, 0.5, 0.9


def to_numpy(values):
    return [np.array(ops.convert_to_numpy(v)) for v in values]  # copies


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * ROWS, 4)).astype("float32")
    return x, rng.normal(size=(STEPS * ROWS, 3)).astype("float32")


def initial():
    rng = np.random.default_rng(1)
    shapes = [(4, 6), (6,), (6, 3), (3,)]
    return [rng.normal(size=s).astype("float32") * 0.5 for s in shapes]


def net(learning_rate=None):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, "tanh", name="hidden"),
            layers.Dense(3, name="out"),
        ],
        name="net",
    )
    model.set_weights(initial())
    if learning_rate is None:
        learning_rate = keras.optimizers.schedules.ExponentialDecay(
            RATE, decay_steps=1, decay_rate=DECAY
        )
    optimizer = keras.optimizers.SGD(learning_rate, momentum=MOMENTUM)
    model.compile(optimizer, "mse", run_eagerly=EAGER)
    return model


def fit(model, *callbacks, epochs=ROUNDS * EPOCHS, **arguments):
    arguments = {
        "verbose": 0,
        "shuffle": False,
        "batch_size": ROWS,
        **arguments,
    }
    return model.fit(
        *data(), epochs=epochs, callbacks=list(callbacks), **arguments
    )


def dropout_net(eager=EAGER):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, "tanh", name="hidden"),
            layers.BatchNormalization(),
            layers.Dropout(0.3, seed=5),
            layers.Dense(3, name="out"),
        ],
        name="net",
    )
    adam = keras.optimizers.Adam(0.05)
    model.compile(adam, "mse", metrics=["mae"], run_eagerly=eager)
    return model
