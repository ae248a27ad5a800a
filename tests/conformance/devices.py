"""One case on several devices equals one device on the same global batch.

On the TensorFlow backend two logical CPUs under `MirroredStrategy` (without
XLA and accumulation, where stock Keras itself fails); on JAX
`keras.distribution.DataParallel` over four host devices. The net has no
batch normalisation and no dropout: these are a replica's own.
"""

import contextlib

import keras
import numpy as np

from tests.conformance import registry

BACKEND = keras.config.backend()
# m-sharpness cuts the batch of each replica, not the global one.
MICRO = ("sam_micro_batches", "friendly_sam_micro_batches")
PER_REPLICA = {"tensorflow": MICRO, "jax": ()}[BACKEND]


def mirrored_scope():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [logical, logical])
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope


@contextlib.contextmanager
def data_parallel():
    devices = keras.distribution.list_devices()
    assert len(devices) == 4, devices
    parallel = keras.distribution.DataParallel(devices=devices)
    keras.distribution.set_distribution(parallel)
    yield
    keras.distribution.set_distribution(None)


def train(case, scope):
    with scope():
        model = registry.attached(case, plain=True)
    # Outside of the scope, as `fit` is called. Batches that the devices can share evenly.
    x, y = keras.tree.map_structure(
        lambda t: np.concatenate([t, t])[:32], registry.data(case)
    )
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return registry.state(model), history.history["loss"]


def compare(case, scope):
    several, several_loss = train(case, scope)
    assert np.isfinite(several_loss).all()
    if not case.draws and case.name not in PER_REPLICA:
        one, one_loss = train(case, contextlib.nullcontext)
        for a, b in zip(several, one):
            np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(several_loss, one_loss, rtol=1e-5)
    print(f"{case.name}: ok")


if __name__ == "__main__":
    scope = mirrored_scope() if BACKEND == "tensorflow" else data_parallel
    for case in registry.CASES:
        compare(case, scope)
