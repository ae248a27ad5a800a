"""What tensorflow-model-optimization does with the same network, in Keras 2."""

import keras
import numpy as np
from _training import CLASSES
from _training import in_memory
from _training import training_steps


def libraries():
    """`tf_keras` and tfmot's pruning, or an `ImportError` that says so."""
    if keras.config.backend() != "tensorflow":
        raise ImportError("on TensorFlow alone")
    try:
        import tensorflow_model_optimization as tfmot
        import tf_keras
    except ImportError as error:
        raise ImportError(f"not installed: {error.name}") from error
    return tf_keras, tfmot.sparsity.keras


def network(pixels, width, schedule=None):
    """The compiled network, pruned by a schedule where there is one."""
    tf_keras, sparsity = libraries()
    layers = tf_keras.layers
    net = tf_keras.Sequential(
        [
            tf_keras.Input((pixels,)),
            layers.Dense(width, "relu"),
            layers.Dense(width, "relu"),
            layers.Dense(CLASSES),
        ]
    )
    if schedule is not None:
        net = sparsity.prune_low_magnitude(net, schedule(sparsity))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(tf_keras.optimizers.Adam(1e-4), loss)
    return net


def once(sparsity, rate):
    """Masks that are made in the first step, and stay."""
    return sparsity.ConstantSparsity(rate, 0, 1, frequency=1)


def for_ever(sparsity, rate, every_steps):
    return sparsity.PolynomialDecay(0.0, rate, 0, 10**7, frequency=every_steps)


def fit(net, x, y, steps, pruned):
    """A `fit` of so many steps on one batch."""
    callbacks = [libraries()[1].UpdatePruningStep()] if pruned else []

    def batches():
        while True:
            yield x, y

    net.fit(batches(), steps_per_epoch=steps, callbacks=callbacks, verbose=0)


def fixed_steps(net, batches):
    """The bare step of a network whose masks are made already."""
    fit(net, *batches[0], steps=3, pruned=True)
    return training_steps(net, in_memory(batches))


def updates(net, x, y):
    """Updates of all masks, as the step of tfmot runs them: in a graph."""
    import tensorflow as tf

    fit(net, x, y, steps=1, pruned=True)

    @tf.function
    def update():
        for layer in net.layers:
            layer.pruning_obj.conditional_mask_update()

    def run(steps):
        for _ in range(steps):
            update()
        net.weights[0].numpy()

    return run


def mask_bytes(net):
    return sum(
        np.prod(mask.shape) * mask.dtype.size
        for layer in net.layers
        for _, mask, _ in layer.pruning_vars
    )
