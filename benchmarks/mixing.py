"""What mixing costs: in the attached step, in `tf.data`, and on its own.

KERAS_BACKEND=jax python benchmarks/mixing.py
KERAS_BACKEND=jax python benchmarks/mixing.py --only CutMix --images 64 64 64 3
"""

import argparse
import functools

import keras
import numpy as np
from _cost import flops_ratio
from _cost import step_of
from _timing import print_head
from _timing import steps_in_block
from _timing import time_rows
from _training import CLASSES
from _training import compiled
from _training import conv_net
from _training import from_pipeline
from _training import in_memory
from _training import machine
from _training import random_batches
from _training import wait_for_torch

import keras_dlkit as dlkit
from keras_dlkit.layers import CutMix
from keras_dlkit.layers import CutOut
from keras_dlkit.layers import ManifoldMixUp
from keras_dlkit.layers import MixUp
from keras_dlkit.layers import RandomChoice

BACKEND = keras.config.backend()
ALPHA = 0.2
# A pipeline starts anew in each block, and its first batch has no step to
# hide behind.
STEPS_AT_LEAST = 10


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument(
        "--steps",
        type=int,
        help="steps in a block; by default 10, 20, ... to fill 0.3 s",
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--only", default="", help="regular expression of rows, as `a / b`"
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs=4,
        default=(256, 224, 224, 3),
        metavar=("ROWS", "HEIGHT", "WIDTH", "CHANNELS"),
        help="what the layer alone gets",
    )
    return parser.parse_args()


# The parts, each made anew.
OURS = {
    "MixUp": lambda: MixUp(ALPHA, num_classes=CLASSES),
    "CutMix": lambda: CutMix(num_classes=CLASSES),
    "CutOut": lambda: CutOut(0.5),
    "RandomChoice([MixUp, CutMix])": lambda: RandomChoice(
        [OURS["MixUp"](), OURS["CutMix"]()]
    ),
}
THEIRS = {
    "keras.layers.MixUp": lambda: keras.layers.MixUp(ALPHA),
    "keras.layers.CutMix": lambda: keras.layers.CutMix(1.0),
    # A factor of 1 alone would erase in half of the images.
    "keras.layers.RandomErasing": lambda: keras.layers.RandomErasing(
        (1.0, 1.0), scale=(0.25, 0.25), fill_value=0.0
    ),
}
RIVALS = dict(zip(("MixUp", "CutMix", "CutOut"), THEIRS))


def as_theirs(layer):
    """A layer of Keras as a function of a batch."""
    if isinstance(layer, keras.layers.RandomErasing):
        return lambda x, y: (layer(x), y)

    def change(x, y):
        # A new dict in each call: the layer writes into it.
        mixed = layer({"images": x, "labels": y})
        return mixed["images"], mixed["labels"]

    return change


# In training. Targets are one-hot already, on all sides alike.


def plain(width):
    return compiled(conv_net(width), one_hot=True)


def attached(name, width):
    return compiled(dlkit.attach(conv_net(width), OURS[name]()), one_hot=True)


def mixed_inside(width):
    """Blends the output of the second convolution."""
    net = conv_net(width)
    convolutions = [
        layer for layer in net.layers if hasattr(layer, "kernel_size")
    ]
    part = ManifoldMixUp(at=convolutions[1].name, num_classes=CLASSES)
    return compiled(dlkit.attach(net, part), one_hot=True)


def pipeline(change, batches):
    """An endless `tf.data` pipeline, which maps `change` over batches."""
    import tensorflow as tf

    x, y = map(np.concatenate, zip(*batches))
    rows = len(batches[0][0])
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
    dataset = dataset.batch(rows, drop_remainder=True)
    if change is not None:
        dataset = dataset.map(change, num_parallel_calls=tf.data.AUTOTUNE)
    return from_pipeline(dataset.prefetch(tf.data.AUTOTUNE))


def our_pipeline(name, batches):
    part = OURS[name]()
    return pipeline(lambda x, y: part((x, y)), batches)


def their_pipeline(name, batches):
    return pipeline(as_theirs(THEIRS[name]()), batches)


# A step is a model and where its batches come from.
STEPS = {
    "plain": (plain, in_memory),
    "plain, tf.data": (plain, functools.partial(pipeline, None)),
}
STEPS["ManifoldMixUp, attached"] = mixed_inside, in_memory
for name in OURS:
    STEPS[f"{name}, attached"] = functools.partial(attached, name), in_memory
    source = functools.partial(our_pipeline, name)
    STEPS[f"{name}, tf.data"] = plain, source
for name in THEIRS:
    source = functools.partial(their_pipeline, name)
    STEPS[f"{name}, tf.data"] = plain, source

# The rows: a step, what it is relative to, and the ratio not to be exceeded.
ROWS = [
    ("MixUp, attached", "plain", 1.03),
    ("CutMix, attached", "plain", None),
    ("CutOut, attached", "plain", None),
    ("ManifoldMixUp, attached", "plain", None),
    ("RandomChoice([MixUp, CutMix]), attached", "plain", 1.05),
]
ROWS += [(f"{name}, tf.data", "plain, tf.data", None) for name in THEIRS]
if BACKEND == "tensorflow":  # elsewhere ours do not run in a pipeline
    ROWS += [(f"{name}, tf.data", "plain, tf.data", None) for name in OURS]


def time_training(arguments):
    batches = random_batches(arguments.batch, one_hot=True)

    @functools.cache
    def step(name):
        make_model, make_source = STEPS[name]
        return step_of(make_model(arguments.width), make_source(batches))

    plain_run = step("plain").run
    steps = arguments.steps or steps_in_block(plain_run, STEPS_AT_LEAST)
    print(
        f"{machine()}; batch {arguments.batch}, width {arguments.width}, "
        f"{steps} steps in a block\n"
    )
    print_head(
        "step",
        "relative to",
        "time, ratio",
        "95% interval",
        "pairs",
        "at most",
        "FLOPs, ratio",
    )
    time_rows(
        ROWS,
        step,
        arguments.pairs,
        steps,
        arguments.only,
        more=flops_ratio,
    )


# The layer alone: functions that change one batch so many times.


def alone(layer, change, batch):
    """On a batch in memory, compiled where the backend compiles the layer."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        # Keras' own do not compile by XLA here.
        ours = isinstance(layer, dlkit.layers.BatchPart)
        change = tf.function(change, jit_compile=ours)
    elif BACKEND == "jax":
        change = jitted(layer, change)
    return repeated(change, batch)


def our_layer(name, batch):
    part = OURS[name]()
    return alone(part, lambda x, y: part((x, y)), batch)


def their_layer(name, batch):
    layer = THEIRS[name]()
    return alone(layer, as_theirs(layer), batch)


def jitted(layer, change):
    import jax

    variables = layer.non_trainable_variables

    @jax.jit
    def stateless(values, x, y):
        with keras.StatelessScope(zip(variables, values)) as scope:
            changed = change(x, y)
        return changed, [scope.get_current_value(v) for v in variables]

    values = [v.value for v in variables]

    def run(x, y):
        nonlocal values
        changed, values = stateless(values, x, y)
        return changed

    return run


def one_pass(batch):
    """The floor: reads the images once and writes as many anew."""

    def change(x, y):
        return x + 1.0, y

    if BACKEND == "tensorflow":
        import tensorflow as tf

        change = tf.function(change, jit_compile=True)
    elif BACKEND == "jax":
        import jax

        change = jax.jit(change)
    return repeated(change, batch)


def repeated(change, batch):
    def run(times):
        for _ in range(times):
            changed = change(*batch)
        wait_for(changed)

    return run


def in_tf_data(change, batch):
    """The same in a pipeline, over a batch that lies in memory."""
    import tensorflow as tf

    batch = tuple(keras.ops.convert_to_numpy(part) for part in batch)
    dataset = (
        tf.data.Dataset.from_tensors(batch)
        .repeat()
        .map(change, tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )

    def run(times):
        for changed in dataset.take(times):
            changed[0][0, 0, 0].numpy()

    return run


def our_layer_in_tf_data(name, batch):
    part = OURS[name]()
    return in_tf_data(lambda x, y: part((x, y)), batch)


def their_layer_in_tf_data(name, batch):
    return in_tf_data(as_theirs(THEIRS[name]()), batch)


# What others do in PyTorch, by hand: one share, or box, a batch, and the
# partner is the row before; `a sample` is the way of timm's mode "elem".


def torch_mix_up(x, y):
    lam = float(np.random.beta(ALPHA, ALPHA))
    return tuple(t.roll(1, 0).mul_(1 - lam).add_(t.mul(lam)) for t in (x, y))


def torch_box(sizes, lam):
    box = []
    for size in sizes:
        half = int(0.5 * np.sqrt(1 - lam) * size)
        center = np.random.randint(size)
        box.append(slice(max(center - half, 0), min(center + half, size)))
    return tuple(box)


def torch_cut_mix(x, y):
    box = torch_box(x.shape[1:3], np.random.beta(1.0, 1.0))
    mixed = x.clone()
    window = (slice(None), *box)
    mixed[window] = x.roll(1, 0)[window]
    height, width = (side.stop - side.start for side in box)
    lam = 1 - height * width / (x.shape[1] * x.shape[2])
    return mixed, y.roll(1, 0).mul_(1 - lam).add_(y.mul(lam))


def torch_cut_mix_a_sample(x, y):
    mixed, shares = x.clone(), y.new_empty(len(y), 1)
    for row in range(len(x)):
        box = torch_box(x.shape[1:3], np.random.beta(1.0, 1.0))
        mixed[row][box] = x[-1 - row][box]
        height, width = (side.stop - side.start for side in box)
        shares[row] = 1 - height * width / (x.shape[1] * x.shape[2])
    return mixed, y * shares + y.flip(0) * (1 - shares)


BY_HAND = {
    "MixUp, torchvision's formula": torch_mix_up,
    "CutMix, torchvision's formula": torch_cut_mix,
    "CutMix, timm's formula a sample": torch_cut_mix_a_sample,
}

FLOOR = "x + 1"
# The rows: half the time of Keras' own is what is promised.
LAYER_ROWS = [
    (ours, theirs + place, 0.5)
    for place in ("", ", tf.data")
    for ours, theirs in RIVALS.items()
]
LAYER_ROWS += [(name, FLOOR, None) for name in OURS]
if BACKEND == "tensorflow":
    LAYER_ROWS += [
        (f"{ours}, tf.data", f"{theirs}, tf.data", 0.5)
        for ours, theirs in RIVALS.items()
    ]
if BACKEND == "torch":
    LAYER_ROWS += [(name.split(",")[0], name, None) for name in BY_HAND]


def layer_run(name, batch):
    layer = name.removesuffix(", tf.data")
    if name == FLOOR:
        return one_pass(batch)
    if name in BY_HAND:
        return repeated(BY_HAND[name], batch)
    if layer in THEIRS:
        make = their_layer if name == layer else their_layer_in_tf_data
    else:
        make = our_layer if name == layer else our_layer_in_tf_data
    return make(layer, batch)


def wait_for(tensors):
    if BACKEND == "jax":
        import jax

        jax.block_until_ready(tensors)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        tf.nest.flatten(tensors)[-1].numpy()
    else:
        wait_for_torch()


def time_layers(arguments):
    rows = arguments.images[0]
    rng = np.random.default_rng(0)
    batch = [
        keras.ops.convert_to_tensor(part, dtype="float32")
        for part in (
            rng.uniform(size=arguments.images).astype("float32"),
            np.eye(CLASSES)[rng.integers(CLASSES, size=rows)],
        )
    ]
    side = functools.cache(lambda name: layer_run(name, batch))
    times = steps_in_block(side("MixUp"))
    print(
        f"\nThe layer alone, images {tuple(arguments.images)}, "
        f"{times} calls in a block\n"
    )
    print_head(
        "layer",
        "relative to",
        "time, ratio",
        "95% interval",
        "pairs",
        "at most",
        "images a second",
        "of the other",
    )

    def images_a_second(sides, seconds):
        return [f"{rows / s:,.0f}" for s in np.median(seconds, axis=0)]

    time_rows(
        LAYER_ROWS,
        side,
        arguments.pairs,
        times,
        arguments.only,
        more=images_a_second,
    )


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    time_training(ARGUMENTS)
    time_layers(ARGUMENTS)
