"""Parts that are the network, or live in it: rows as in the registry."""

import keras
from keras import layers

import keras_dlkit as dlkit
from tests.conformance.registry import Case


def block(**arguments):
    return dlkit.layers.SDEBlock(
        layers.Dense(6, "tanh"),
        layers.Dense(1, "sigmoid"),
        num_steps=2,
        t_end=1.0,
        sigma=0.5,
        seed=3,
        **arguments,
    )


def with_sde_block(net):
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6),
            # Trained by the loss as well, which nothing else does here.
            block(isolate_diffusion=False),
            layers.Dropout(0.3, seed=5),
            layers.Dense(3, "softmax"),
        ]
    )


def sde_net(net):
    stem = keras.Sequential([keras.Input((4,)), layers.Dense(6)])
    head = layers.Dense(3, "softmax")
    return dlkit.models.SDENet(stem, block(), head, seed=4)


NETWORKS = [
    Case(
        "supermask",
        change=lambda net: dlkit.sparsity.supermask(net, 0.5, seed=0),
    ),
    Case(
        "batch_ensemble",
        change=lambda net: dlkit.models.BatchEnsemble(net, 2, seed=0),
    ),
    Case("sde_block", change=with_sde_block),
    Case("sde_net", change=sde_net),
]
BY_NAME = {case.name: case for case in NETWORKS}
