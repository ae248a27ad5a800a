"""Networks of others as hosts: every part trains every one of them.

A network of `keras.applications`, and a backbone of KerasHub, with random
weights and a head on top. The layer that some parts ask for by its name is in
the head; all else is where the parts find it, at any depth.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from tests.conformance import registry

SHAPE, ROWS = (32, 32, 3), 8
CASES = [*registry.CASES, *registry.FURTHER, *registry.NETWORKS]
# A step with two gradients, a part of the batch, a callback with masks; on the
# host that compiles in a moment.
QUICK = ("sam", "cut_mix", "magnitude_pruning")


def mobile_net():
    net = keras.applications.MobileNet(
        SHAPE, alpha=0.25, include_top=False, weights=None
    )
    if keras.config.backend() == "torch":
        return net
    # The ten blocks after these are like them, and compile for long.
    return keras.Model(net.inputs, net.get_layer("conv_pw_3_relu").output)


def backbone():
    # KerasHub brings TensorFlow with it: it is not there in an environment of
    # another backend alone.
    pytest.importorskip("keras_hub")
    from keras_hub.models import ResNetBackbone

    return ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],  # no other is allowed
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=SHAPE,
    )


HOSTS = {"applications": mobile_net, "keras_hub": backbone}


def network(case, host):
    keras.utils.set_random_seed(3)
    stack = [
        host(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(6, "tanh", name="hidden"),
    ]
    if not case.tasks:
        head = layers.Dense(3, "softmax", dtype="float32")
        return keras.Sequential([keras.Input(SHAPE), *stack, head])
    inputs = keras.Input(SHAPE)
    hidden = keras.Sequential(stack)(inputs)
    outputs = {
        name: layers.Dense(3, "softmax", dtype="float32", name=name)(hidden)
        for name in "ab"
    }
    return keras.Model(inputs, outputs)


def rows(case):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(ROWS, *SHAPE)).astype("float32")
    y = np.eye(3, dtype="float32")[rng.integers(0, 3, ROWS)]
    return x, {"a": y, "b": y[:, ::-1]} if case.tasks else y


def values(variables):
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


@pytest.mark.parametrize(
    ("case", "host"),
    [
        pytest.param(
            case,
            host,
            marks=[]
            if case.name in QUICK and host == "keras_hub"
            else [pytest.mark.slow],
            id=f"{case.name}-{host}",
        )
        for host in HOSTS
        for case in CASES
    ],
)
def test_every_part_trains_every_host(case, host):
    model = registry.attached(case, net=network(case, HOSTS[host]))
    before = values(model.trainable_variables)
    history = registry.fit(
        model, case, rows=rows(case), epochs=case.epochs, batch_size=ROWS // 2
    ).history
    assert np.isfinite(history["loss"]).all()
    after = values(model.trainable_variables)
    moved = [not np.array_equal(a, b) for a, b in zip(before, after)]
    # Also in the host, and not in its head alone.
    assert sum(moved) > len(moved) / 2
    assert all(np.isfinite(value).all() for value in after)
