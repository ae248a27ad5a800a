"""Step time and peak memory of every part, on the accelerator at hand.

KERAS_BACKEND=jax python benchmarks/gpu.py
KERAS_BACKEND=torch python benchmarks/gpu.py

A Wide ResNet on images of 32 x 32 pixels, in mixed bfloat16. TensorFlow need
not be installed. `--tiny` is for a machine without an accelerator: it shows
that all of it runs, and its numbers say nothing.
"""

import argparse
import dataclasses
import functools
import gc
from collections.abc import Callable

import keras
from _cost import jax_peak_bytes
from _cost import torch_allocated_bytes
from _cost import torch_peak_bytes
from _timing import print_head
from _timing import steps_in_block
from _timing import time_rows
from _training import CLASSES
from _training import IMAGE
from _training import compiled
from _training import in_memory
from _training import machine
from _training import random_batches
from _training import sgd
from _training import training_steps
from keras import layers

import keras_dlkit as dlkit

BACKEND = keras.config.backend()
EVERY_STEPS = 5
MEMBERS = 4
TINY = {"depth": 10, "width": 1, "batch": 8, "pairs": 2, "steps": 5}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=28, help="6n + 4")
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--policy", default="mixed_bfloat16")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="in a block")
    parser.add_argument(
        "--only", default="", help="regular expression of rows, as `a / b`"
    )
    parser.add_argument("--tiny", action="store_true")
    found = parser.parse_args(arguments)
    if found.tiny:
        vars(found).update(TINY)
    if BACKEND not in ("jax", "torch"):
        parser.error(f"KERAS_BACKEND must be jax or torch. Received: {BACKEND}")
    if found.depth % 6 != 4:
        parser.error(f"--depth must be 6n + 4. Received: {found.depth}")
    return found


# The networks.


def conv(x, filters, strides=1, size=3):
    return layers.Conv2D(
        filters, size, strides=strides, padding="same", use_bias=False
    )(x)


def activated(x):
    return layers.ReLU()(layers.BatchNormalization()(x))


def block(x, filters, strides, name):
    h = activated(x)
    if x.shape[-1] != filters or strides > 1:
        x = conv(h, filters, strides, size=1)
    h = activated(conv(h, filters, strides))
    return layers.Add(name=name)([x, conv(h, filters)])


def features(arguments):
    """Input and features of WRN-`depth`-`width` (Zagoruyko and Komodakis)."""
    inputs = keras.Input(IMAGE)
    x = conv(inputs, 16)
    for group in range(3):
        for index in range((arguments.depth - 4) // 6):
            strides = 2 if group and not index else 1
            filters = 16 * 2**group * arguments.width
            x = block(x, filters, strides, f"group_{group}_{index}")
    return inputs, layers.GlobalAveragePooling2D()(activated(x))


def logits(name=None):
    return layers.Dense(CLASSES, dtype="float32", name=name)


def wide_resnet(arguments):
    inputs, x = features(arguments)
    return keras.Model(inputs, logits()(x))


def two_tasks(arguments):
    inputs, x = features(arguments)
    outputs = {name: logits(name)(x) for name in "ab"}
    return keras.Model(inputs, outputs)


def ode_pieces(arguments):
    """A stem, a drift and a head; the state is 16 x 16 pixels."""
    channels = 16 * arguments.width

    def normalized_conv(strides=1):
        return [
            layers.GroupNormalization(groups=4),
            layers.ReLU(),
            layers.Conv2D(channels, 3, strides=strides, padding="same"),
        ]

    stem = layers.Conv2D(channels, 3, padding="same")
    return (
        keras.Sequential([keras.Input(IMAGE), stem, *normalized_conv(2)]),
        keras.Sequential([*normalized_conv(), *normalized_conv()]),
        keras.Sequential([layers.GlobalAveragePooling2D(), logits()]),
    )


def residual_net(arguments):
    """As many passes of the drift as `sde_net` has steps, and no noise."""
    stem, drift, head = ode_pieces(arguments)
    inputs = keras.Input(IMAGE)
    x = stem(inputs)
    for _ in range(dlkit.layers.SDEBlock(drift, drift).num_steps):
        x = layers.Add()([x, drift(x)])
    return compiled(keras.Model(inputs, head(x)))


def sde_net(arguments):
    stem, drift, head = ode_pieces(arguments)
    probability = layers.Dense(1, "sigmoid", dtype="float32")
    diffusion = keras.Sequential([layers.GlobalAveragePooling2D(), probability])
    return compiled(
        dlkit.models.SDENet(stem, dlkit.layers.SDEBlock(drift, diffusion), head)
    )


# The parts.


def with_parts(arguments, make_parts=list, wrap=None, change=None):
    net = wide_resnet(arguments)
    changed = change(net) if change else None
    net = changed if isinstance(changed, keras.Model) else net
    optimizer = wrap(sgd()) if wrap else sgd()
    model = dlkit.attach(net, *make_parts())
    return compiled(model, optimizer, one_hot=True)


def plain(arguments):
    return compiled(wide_resnet(arguments), one_hot=True)


def optimizer(kind, change=None, **settings):
    return functools.partial(
        with_parts, wrap=lambda inner: kind(inner, **settings), change=change
    )


def part(make):
    return functools.partial(with_parts, make_parts=lambda: [make()])


def regularized(net):
    energy = dlkit.regularizers.HypersphericalEnergy(0.01)
    return dlkit.regularizers.regularize(net, energy)


def tagged(net):
    """Every weight takes half a step."""
    for weight in net.trainable_variables:
        weight.learning_rate_multiplier = 0.5


def regression(arguments, head=None, loss="mean_squared_error"):
    """Learns as many numbers as there are classes."""
    inputs, x = features(arguments)
    outputs = (head or logits)()(x)
    model = keras.Model(inputs, outputs)
    model.compile(sgd(), loss)
    return model


def mean_and_scale(arguments):
    def head():
        return dlkit.layers.MeanAndScale(CLASSES, dtype="float32")

    loss = dlkit.losses.GaussianNegativeLogLikelihood()
    return regression(arguments, head, loss)


def weighted(arguments, make=None):
    net = two_tasks(arguments)
    model = dlkit.attach(net, make()) if make else net
    # Without metrics: `compiled` has one for a single output.
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(sgd(), {"a": loss, "b": loss})
    return model


def weighting(make):
    return functools.partial(weighted, make=make)


def detecting(arguments):
    """Plain, with a metric that takes each score of a class by itself."""
    model = wide_resnet(arguments)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    metrics = ["accuracy", dlkit.metrics.AUROC(from_logits=True)]
    model.compile(sgd(), loss, metrics=metrics)
    return model


def ensemble(arguments, member_batches):
    net = dlkit.models.BatchEnsemble(
        wide_resnet(arguments), MEMBERS, member_batches=member_batches
    )
    return compiled(net, one_hot=True)


def mix_up():
    return dlkit.layers.MixUp(0.2)


def manifold_mix_up():
    return dlkit.layers.ManifoldMixUp(at="group_1_0")


def uncertainty_weighting():
    return dlkit.losses.UncertaintyWeighting(
        {"a": "classification", "b": "classification"}
    )


PARTS = {
    "attach, no part": with_parts,
    "SAM": optimizer(dlkit.optimizers.SAM),
    "SAM, adaptive": optimizer(dlkit.optimizers.SAM, adaptive="weights"),
    "SAM, micro_batches=4": optimizer(dlkit.optimizers.SAM, micro_batches=4),
    f"SAM, every_steps={EVERY_STEPS}": optimizer(
        dlkit.optimizers.SAM, every_steps=EVERY_STEPS
    ),
    "GSAM": optimizer(dlkit.optimizers.GSAM),
    "FriendlySAM": optimizer(dlkit.optimizers.FriendlySAM),
    f"LookSAM, every_steps={EVERY_STEPS}": optimizer(
        dlkit.optimizers.LookSAM, every_steps=EVERY_STEPS
    ),
    "MomentumSAM": optimizer(dlkit.optimizers.MomentumSAM, rho=0.1),
    "MixUp": part(mix_up),
    "CutMix": part(dlkit.layers.CutMix),
    "CutOut": part(dlkit.layers.CutOut),
    "RandomChoice": part(
        lambda: dlkit.layers.RandomChoice([mix_up(), dlkit.layers.CutMix()])
    ),
    "ManifoldMixUp": part(manifold_mix_up),
    "SAM and MixUp": functools.partial(
        with_parts,
        make_parts=lambda: [mix_up()],
        wrap=dlkit.optimizers.SAM,
    ),
    "HypersphericalEnergy": functools.partial(with_parts, change=regularized),
    "CompressiveEnergy": part(lambda: dlkit.regularizers.CompressiveEnergy()),
    "LearningRateMultiplier": optimizer(
        dlkit.optimizers.LearningRateMultiplier, change=tagged
    ),
    # What pruning and tickets cost in a step.
    "Masked": optimizer(dlkit.optimizers.Masked),
    "Supermask": functools.partial(
        with_parts, change=lambda net: dlkit.sparsity.supermask(net, 0.5)
    ),
    f"BatchEnsemble of {MEMBERS}, tile": functools.partial(
        ensemble, member_batches="tile"
    ),
    f"BatchEnsemble of {MEMBERS}, split": functools.partial(
        ensemble, member_batches="split"
    ),
    "AUROC": detecting,
}
TASKS = {
    "UncertaintyWeighting": weighting(uncertainty_weighting),
    "DynamicWeightAverage": weighting(dlkit.losses.DynamicWeightAverage),
    "GeometricLossStrategy": weighting(dlkit.losses.GeometricLossStrategy),
    "RandomLossWeighting": weighting(dlkit.losses.RandomLossWeighting),
    "SoftOptimalUncertaintyWeighting": weighting(
        dlkit.losses.SoftOptimalUncertaintyWeighting
    ),
    "FAMO": weighting(dlkit.losses.FAMO),
    "PCGrad": weighting(dlkit.losses.PCGrad),
}
BASELINES = {
    "plain": plain,
    "plain, two tasks": weighted,
    "residual net": residual_net,
    "plain, regression": regression,
}
OTHERS = {"SDENet": sde_net, "MeanAndScale": mean_and_scale}
MODELS = BASELINES | PARTS | TASKS | OTHERS
UPDATE = "one update of the masks"
# No row is promised a ratio.
ROWS = [
    *((name, "plain", None) for name in PARTS),
    *((name, "plain, two tasks", None) for name in TASKS),
    (UPDATE, "plain", None),
    ("SDENet", "residual net", None),
    ("MeanAndScale", "plain, regression", None),
]


# The measurement.


@dataclasses.dataclass
class Side:
    """Something to time: `run` trains for a number of steps."""

    run: Callable
    peak: int | None


def batches(name, rows):
    if name in ("SDENet", "residual net"):  # integers for labels
        return random_batches(rows)
    found = random_batches(rows, one_hot=True)
    if name in TASKS or name == "plain, two tasks":
        return [(x, {"a": y, "b": y[:, ::-1].copy()}) for x, y in found]
    return found


def make_side(name, arguments):
    """The model, compiled, and the memory of its step above what was there."""
    gc.collect()
    before = torch_allocated_bytes() if BACKEND == "torch" else 0
    source = in_memory(batches(name, arguments.batch))
    model = MODELS[name](arguments)
    run = training_steps(model, source)
    measure = jax_peak_bytes if BACKEND == "jax" else torch_peak_bytes
    return Side(run, measure(model, source) - before)


def mask_updates(arguments):
    """Updates of all masks, in place of steps; no step, and so no peak."""
    model = MODELS["Masked"](arguments)
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)

    def run(updates):
        for _ in range(updates):
            masks = list(optimizer.masks.values())
            # So few that nearly all weights live and are ranked.
            masks = dlkit.ops.magnitude_masks(
                optimizer.masked_variables, masks, 1e-5
            )
            optimizer.set_masks(dict(zip(optimizer.masks, masks)))

    return Side(run, None)


def cost_cells(sides, seconds):
    milliseconds = 1000 * seconds[:, 0]
    one, other = sides
    middle = f"{sorted(milliseconds)[len(milliseconds) // 2]:.1f}"
    if one.peak is None:
        return middle, "", ""
    return (
        middle,
        f"{one.peak / 2**20:.0f}",
        f"{one.peak / other.peak:.2f}",
    )


def main(arguments=None):
    arguments = parse_arguments(arguments)
    keras.config.set_dtype_policy(arguments.policy)
    baseline = functools.cache(lambda name: make_side(name, arguments))

    def side(name):
        if name in BASELINES:
            return baseline(name)
        # Of the others one is in memory at a time.
        if name == UPDATE:
            return mask_updates(arguments)
        return make_side(name, arguments)

    steps = arguments.steps or steps_in_block(
        baseline("plain").run, EVERY_STEPS
    )
    print(
        f"{machine()}; WRN-{arguments.depth}-{arguments.width}, batch "
        f"{arguments.batch}, {arguments.policy}, {steps} steps in a block\n"
    )
    print_head(
        "step",
        "relative to",
        "time, ratio",
        "95% interval",
        "pairs",
        "at most",
        "ms",
        "peak, MiB",
        "peak, ratio",
    )
    time_rows(
        ROWS,
        side,
        arguments.pairs,
        steps,
        arguments.only,
        warm_up=EVERY_STEPS,
        more=cost_cells,
    )


if __name__ == "__main__":
    main()
