"""A network, batches in memory, and the bare training step of `fit`.

`fit` itself costs more than a short run of steps: what is timed is the
function that `fit` calls once a step, with batches that lie in memory.
"""

import importlib
import itertools
import os

import keras
import numpy as np

CLASSES = 10
IMAGE = (32, 32, 3)
# Small, such that a thousand steps on random labels stay finite.
LEARNING_RATE = 1e-3


def conv_net(width, model_class=None, library=keras):
    """Six convolutions with batch normalisation, at the cost of a ResNet-8."""
    layers = library.layers
    x = inputs = library.Input(IMAGE)
    for stage in range(3):
        for strides in (1 if stage == 0 else 2, 1):
            x = layers.Conv2D(
                width * 2**stage,
                3,
                strides=strides,
                padding="same",
                use_bias=False,
            )(x)
            x = layers.BatchNormalization()(x)
            x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(CLASSES)(x)
    return (model_class or library.Model)(inputs, outputs)


def sgd(library=keras):
    return library.optimizers.SGD(LEARNING_RATE, momentum=0.9)


def compiled(model, optimizer=None, library=keras, one_hot=False):
    kind = "Categorical" if one_hot else "SparseCategorical"
    loss = getattr(library.losses, f"{kind}Crossentropy")
    model.compile(
        optimizer=optimizer or sgd(library),
        loss=loss(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def random_batches(rows, count=8, one_hot=False, shape=IMAGE):
    """`count` batches of noise of a shape, with random labels."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        x = rng.normal(size=(rows, *shape)).astype("float32")
        y = rng.integers(CLASSES, size=rows)
        if one_hot:
            y = np.eye(CLASSES, dtype="float32")[y]
        batches.append((x, y))
    return batches


# Sources: functions of a number of steps, to an iterator over the batches.


def in_memory(batches):
    """A source that goes round and round batches on the device."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        stacked = keras.tree.map_structure(lambda *t: np.stack(t), *batches)
        endless = iter(tf.data.Dataset.from_tensor_slices(stacked).repeat())
    else:
        endless = itertools.cycle(map(_on_device, batches))
    return lambda steps: endless


def from_pipeline(dataset):
    """A source that runs an endless `tf.data.Dataset`."""

    # Cut to the steps of a block: else what it prefetches at the end of one
    # would be paid for in the time of the other side.
    def batches(steps):
        block = dataset.take(steps)
        if keras.config.backend() == "tensorflow":
            return iter(block)
        return map(_on_device, block.as_numpy_iterator())

    return batches


def _on_device(batch):
    return keras.tree.map_structure(keras.ops.convert_to_tensor, batch)


# The step that `fit` calls, as a function of a number of steps.


def training_steps(model, source):
    """A function that trains for so many steps, and returns when they end."""
    return {
        "tensorflow": _tensorflow_steps,
        "jax": _jax_steps,
        "torch": _torch_steps,
    }[keras.config.backend()](model, source)


def _tensorflow_steps(model, source):
    import tensorflow as tf

    model.make_train_function()

    def run(steps):
        batches = source(steps)
        for _ in range(steps):
            model.train_function(batches)
        tf.convert_to_tensor(model.trainable_variables[-1]).numpy()

    return run


def _jax_steps(model, source):
    import jax

    state = jax_state(model, next(source(1)))

    def run(steps):
        nonlocal state
        batches = source(steps)
        for _ in range(steps):
            _, state = model.train_function(state, batches)
        jax.block_until_ready(state)

    return run


def jax_state(model, batch):
    """What the train step starts from, after a `fit` of one step."""
    import jax.numpy as jnp

    # Builds metrics and optimizer, and makes the train function.
    model.fit(*batch, batch_size=len(batch[0]), verbose=0)
    # Copies: the train step takes over the memory of what it is given.
    return tuple(
        [jnp.copy(v.value) for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )


def _torch_steps(model, source):
    model.make_train_function()
    model.train()

    def run(steps):
        batches = source(steps)
        for _ in range(steps):
            model.train_function([next(batches)])
        wait_for_torch()

    return run


def wait_for_torch():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine():
    """Backend, versions and device, in a line."""
    name = keras.config.backend()
    version = importlib.import_module(name).__version__
    if name == "tensorflow":
        import tensorflow as tf

        gpu = bool(tf.config.list_physical_devices("GPU"))
    elif name == "jax":
        import jax

        gpu = jax.default_backend() != "cpu"
    else:
        import torch

        gpu = torch.cuda.is_available()
    device = "accelerator" if gpu else f"{os.cpu_count()} CPU cores"
    return f"Keras {keras.__version__}, {name} {version}, {device}"
