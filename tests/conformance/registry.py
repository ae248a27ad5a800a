"""Every part with its settings. A new part is one row in `CASES`.

A case says how a part is attached, and which setting of it must equal the run
without it, bit for bit.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import keras_dlkit as dlkit

SAM, MixUp = dlkit.optimizers.SAM, dlkit.layers.MixUp
GSAM, FriendlySAM = dlkit.optimizers.GSAM, dlkit.optimizers.FriendlySAM
LookSAM, MomentumSAM = dlkit.optimizers.LookSAM, dlkit.optimizers.MomentumSAM
CutMix, CutOut = dlkit.layers.CutMix, dlkit.layers.CutOut
RandomChoice = dlkit.layers.RandomChoice
ManifoldMixUp = dlkit.layers.ManifoldMixUp
HypersphericalEnergy = dlkit.regularizers.HypersphericalEnergy
regularize = dlkit.regularizers.regularize
EqualWeighting = dlkit.losses.EqualWeighting
UncertaintyWeighting = dlkit.losses.UncertaintyWeighting
Multiplier = dlkit.optimizers.LearningRateMultiplier


@keras.saving.register_keras_serializable("tests")
class Checkered(dlkit.optimizers.Masked):
    """Every second weight is pruned."""

    def build(self, variables):
        super().build(variables)
        masks = self.masks
        self.set_masks({path: checkered(m.shape) for path, m in masks.items()})


def checkered(shape):
    return np.indices(shape).sum(0) % 2


def prune(net):
    for v in net.trainable_variables:
        if len(v.shape) == 2:
            v.assign(v * checkered(v.shape))


def sde_block(**arguments):
    sigmoid = keras.layers.Dense(1, "sigmoid", dtype="float32", name="g")
    return dlkit.layers.SDEBlock(
        keras.layers.Dense(6, "tanh", name="f"),
        sigmoid,
        num_steps=3,
        t_end=1.0,
        sigma=0.5,
        unroll=False,
        seed=2,
        **arguments,
    )


def with_sde_block(net):
    *stem, head = net.layers
    # With an isolated diffusion Keras would warn of weights without gradients.
    block = sde_block(isolate_diffusion=False)
    inputs = keras.Input(net.input_shape[1:])
    return keras.Sequential([inputs, *stem, block, head])


def as_sde_net(net):
    *stem, head = net.layers
    stem = keras.Sequential([keras.Input(net.input_shape[1:]), *stem])
    return dlkit.models.SDENet(
        stem, sde_block(), head, outputs="probabilities", seed=3
    )


def slow_down(net):
    for v in net.trainable_variables[::2]:
        v.learning_rate_multiplier = 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    # The parts of `attach`, made anew.
    parts: Callable[[], list] = list
    # Changes the network before that, or gives another one.
    change: Callable = lambda net: None
    # Wraps the inner optimizer.
    optimizer: Callable = lambda inner: inner
    # The same, set so that it must change nothing.
    null_parts: Callable[[], list] = list
    null_change: Callable = lambda net: None
    null_optimizer: Callable = lambda inner: inner
    # Of the inputs: with space in them, for parts that need it.
    input_shape: tuple = (4,)
    # Two outputs, with a loss each, instead of one.
    tasks: bool = False
    # Random draws differ between replicas: no comparison with one device.
    draws: bool = False
    # Into how many parts the optimizer cuts a batch.
    micro_batches: int = 1
    # Of `fit`, made anew, and for how long they need it.
    callbacks: Callable[[], list] = list
    epochs: int = 2
    # Close to another case: run by itself in `make test-all`, and in `make
    # test` only where all cases share a process.
    slow: bool = False


CASES = [
    Case(
        "sam",
        optimizer=lambda inner: SAM(inner, rho=0.1),
        null_optimizer=lambda inner: SAM(inner, rho=0.0),
    ),
    Case(
        "sam_adaptive_gamma",
        slow=True,
        optimizer=lambda inner: SAM(
            inner, rho=0.5, adaptive="weights", variables="gamma|kernel"
        ),
        null_optimizer=lambda inner: SAM(
            inner, rho=0.0, adaptive="weights", variables="gamma|kernel"
        ),
    ),
    Case(
        "sam_every_2",
        optimizer=lambda inner: SAM(inner, rho=0.1, every_steps=2),
        null_optimizer=lambda inner: SAM(inner, rho=0.1, start_step=10**6),
    ),
    Case(
        "sam_micro_batches",
        micro_batches=2,
        optimizer=lambda inner: SAM(inner, rho=0.1, micro_batches=2),
        null_optimizer=lambda inner: SAM(inner, rho=0.0, micro_batches=2),
    ),
    Case(
        "gsam",
        optimizer=lambda inner: GSAM(inner, rho=0.1),
        null_optimizer=lambda inner: GSAM(inner, rho=0.0),
    ),
    Case(
        "friendly_sam_micro_batches",
        micro_batches=2,
        optimizer=lambda inner: FriendlySAM(inner, rho=0.1, micro_batches=2),
        null_optimizer=lambda inner: FriendlySAM(inner, rho=0.0),
    ),
    Case(
        "look_sam",
        optimizer=lambda inner: LookSAM(inner, rho=0.1, every_steps=2),
        null_optimizer=lambda inner: LookSAM(inner, start_step=10**6),
    ),
    Case(
        "momentum_sam",
        optimizer=lambda inner: MomentumSAM(inner, rho=0.1),
        null_optimizer=lambda inner: MomentumSAM(inner, rho=0.0),
    ),
    Case(
        "mix_up",
        parts=lambda: [MixUp(0.4, num_classes=3, seed=2)],
        null_parts=lambda: [MixUp(0.0, num_classes=3)],
        draws=True,
    ),
    Case(
        "sam_and_mix_up",
        slow=True,
        parts=lambda: [MixUp(0.4, num_classes=3, active_epochs=(0, 2), seed=2)],
        optimizer=lambda inner: SAM(inner, rho=0.1),
        null_parts=lambda: [MixUp(0.0, num_classes=3)],
        null_optimizer=lambda inner: SAM(inner, rho=0.0),
        draws=True,
    ),
    Case(
        "cut_mix",
        parts=lambda: [CutMix(num_classes=3, dominant_metrics=True, seed=2)],
        null_parts=lambda: [CutMix(0.0, num_classes=3, dominant_metrics=True)],
        input_shape=(2, 2),
        draws=True,
    ),
    Case(
        "cut_out",
        slow=True,
        parts=lambda: [CutOut(1, seed=2)],
        null_parts=lambda: [CutOut(probability=0.0)],
        input_shape=(2, 2),
        draws=True,
    ),
    Case(
        "random_choice",
        parts=lambda: [
            RandomChoice(
                [MixUp(1.0, num_classes=3, seed=2), CutMix(seed=3)], seed=4
            )
        ],
        null_parts=lambda: [
            RandomChoice([MixUp(0.0, num_classes=3), CutMix(0.0)])
        ],
        input_shape=(2, 2),
        draws=True,
    ),
    Case(
        "sam_and_manifold_mix_up",
        parts=lambda: [ManifoldMixUp(at="hidden", num_classes=3, seed=2)],
        optimizer=lambda inner: SAM(inner, rho=0.1),
        null_parts=lambda: [ManifoldMixUp(0.0, at="hidden", num_classes=3)],
        null_optimizer=lambda inner: SAM(inner, rho=0.0),
        draws=True,
    ),
    Case(
        "masked",
        change=prune,
        optimizer=lambda inner: Checkered(inner),
        null_optimizer=lambda inner: dlkit.optimizers.Masked(inner),
    ),
    Case(
        "sam_and_hyperspherical_energy",
        change=lambda net: regularize(net, HypersphericalEnergy(0.01)),
        optimizer=lambda inner: SAM(inner, rho=0.1),
        null_change=lambda net: regularize(net, HypersphericalEnergy(0.0)),
        null_optimizer=lambda inner: SAM(inner, rho=0.0),
    ),
    Case(
        "compressive_energy",
        slow=True,
        parts=lambda: [
            dlkit.regularizers.CompressiveEnergy(
                0.01, dimension=2, projections=2, power=0, seed=2
            )
        ],
        null_parts=lambda: [dlkit.regularizers.CompressiveEnergy(0.0)],
        draws=True,
    ),
    Case(
        "sam_and_uncertainty_weighting",
        tasks=True,
        parts=lambda: [
            UncertaintyWeighting({"a": "regression", "b": "classification"})
        ],
        optimizer=lambda inner: SAM(inner, rho=0.1),
        null_parts=lambda: [EqualWeighting()],
        null_optimizer=lambda inner: SAM(inner, rho=0.0),
    ),
    Case(
        "famo",
        tasks=True,
        slow=True,
        parts=lambda: [dlkit.losses.FAMO()],
        null_parts=lambda: [EqualWeighting()],
    ),
    Case(
        "pc_grad",
        tasks=True,
        slow=True,
        parts=lambda: [dlkit.losses.PCGrad()],
        null_parts=lambda: [EqualWeighting()],
    ),
]
# Parts that the contracts of a null setting and of any number of epochs do not
# fit: their own tests hold these. Devices, host networks (`test_hosts.py`) and
# kills (`test_resume_killed.py`) take them too.
FURTHER = [
    Case(
        "magnitude_pruning",
        callbacks=lambda: [
            dlkit.callbacks.MagnitudePruning(
                dlkit.schedules.ConstantSparsity(0.5, begin_step=3)
            )
        ],
    ),
    Case(
        "lottery_ticket",
        epochs=4,
        slow=True,
        callbacks=lambda: [
            dlkit.callbacks.LotteryTicket(2, 2, pruning_rate=0.5)
        ],
    ),
    Case(
        "learning_rate_multiplier",
        slow=True,
        change=slow_down,
        optimizer=lambda inner: Multiplier(inner),
        null_optimizer=lambda inner: Multiplier(inner),
    ),
    Case(
        "batch_ensemble",
        slow=True,
        change=lambda net: dlkit.models.BatchEnsemble(
            net, 2, fast_initializer="normal", seed=0
        ),
    ),
    Case(
        "supermask",
        slow=True,
        change=lambda net: dlkit.sparsity.supermask(net, 0.5, seed=0),
    ),
    Case(
        "dynamic_weight_average",
        tasks=True,
        slow=True,
        epochs=4,  # it has something to go by from the third on
        parts=lambda: [dlkit.losses.DynamicWeightAverage()],
    ),
    Case(
        "geometric_loss_strategy",
        tasks=True,
        slow=True,
        parts=lambda: [dlkit.losses.GeometricLossStrategy()],
    ),
    Case(
        "random_loss_weighting",
        tasks=True,
        slow=True,
        parts=lambda: [dlkit.losses.RandomLossWeighting(seed=2)],
        draws=True,
    ),
    Case(
        "soft_optimal_uncertainty_weighting",
        tasks=True,
        slow=True,
        parts=lambda: [dlkit.losses.SoftOptimalUncertaintyWeighting()],
    ),
    Case(
        "sigma_schedule",
        slow=True,
        change=with_sde_block,
        callbacks=lambda: [dlkit.callbacks.SigmaSchedule({0: 0.1, 1: 0.8})],
        draws=True,
    ),
]
# Other networks, which no setting makes the plain one.
NETWORKS = [
    Case("sde_block", change=with_sde_block, draws=True),
    Case(
        "sam_mix_up_and_sde_net",
        change=as_sde_net,
        parts=lambda: [MixUp(0.4, num_classes=3, seed=2)],
        optimizer=lambda inner: SAM(inner, rho=0.1),
        draws=True,
    ),
]
BY_NAME = {case.name: case for case in [*CASES, *NETWORKS]}
FURTHER_BY_NAME = {case.name: case for case in FURTHER}


@keras.saving.register_keras_serializable("tests")
class Spare(keras.layers.Layer):
    """A weight that the loss does not reach: its gradient is `None`."""

    def build(self, shape):
        self.spare = self.add_weight(shape=(3,), name="spare")

    def call(self, x):
        return x


def network(case=None, plain=False, frozen=False):
    """A small net with what makes a step hard; `plain` leaves that out.

    With `frozen`, its first layer is, and it has a `Spare` weight.
    """
    layers = keras.layers
    case = case or Case("none")
    keras.utils.set_random_seed(3)
    inputs = keras.Input(case.input_shape)
    stack = [
        *([layers.Flatten()] if len(case.input_shape) > 1 else []),
        layers.Dense(6, "tanh", kernel_regularizer="l2", name="hidden"),
    ]
    if not plain:
        stack += [layers.BatchNormalization(), layers.Dropout(0.3, seed=5)]
    if frozen:
        hidden = next(layer for layer in stack if layer.name == "hidden")
        hidden.trainable = False
        stack.append(Spare())
    if not case.tasks:
        last = layers.Dense(3, "softmax", dtype="float32")
        return keras.Sequential([inputs, *stack, last])
    hidden = keras.Sequential(stack)(inputs)
    outputs = {
        name: layers.Dense(3, "softmax", dtype="float32", name=name)(hidden)
        for name in "ab"
    }
    return keras.Model(inputs, outputs)


def loss(case):
    one = "categorical_crossentropy"
    return {"a": one, "b": one} if case.tasks else one


def attached(
    case, null=False, inner=None, plain=False, net=None, **compile_arguments
):
    """The case, compiled, on a fresh `network` or on the one given."""
    parts, wrap, change = case.parts, case.optimizer, case.change
    if null:
        parts, wrap = case.null_parts, case.null_optimizer
        change = case.null_change
    net = network(case, plain) if net is None else net
    changed = change(net)
    if isinstance(changed, keras.Model):
        net = changed
    model = dlkit.attach(net, *parts())
    inner = inner or keras.optimizers.SGD(0.125, momentum=0.5)
    metrics = {"a": ["accuracy"]} if case.tasks else ["accuracy"]
    model.compile(
        wrap(inner), loss=loss(case), metrics=metrics, **compile_arguments
    )
    return model


def data(case=None, one_hot=True):
    """22 rows: batches of 8, 8 and 6."""
    case = case or Case("none")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(22, 4)).astype("float32")
    labels = rng.integers(0, 3, 22)
    x = x.reshape(-1, *case.input_shape)
    y = np.eye(3, dtype="float32")[labels] if one_hot else labels
    return x, {"a": y, "b": y[:, ::-1]} if case.tasks else y


def fit(model, case=None, epochs=2, rows=None, **arguments):
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0, **arguments}
    arguments.setdefault("callbacks", case.callbacks() if case else [])
    x, y = rows or data(case)
    return model.fit(x, y, epochs=epochs, **arguments)


def state(model):
    """All that training changes: weights, seeds and the optimizer."""
    variables = model.variables + model.optimizer.variables
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in variables]
