"""The page of what was tested where, from the tables that the tests go by.

python -m tests.conformance.support_matrix
"""

import inspect
import pathlib

import keras_dlkit as dlkit
from keras_dlkit import _keras
from tests.conformance import devices
from tests.conformance import modes
from tests.conformance import registry

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "support_matrix.md"
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
# Where parts live.
MODULES = (
    "optimizers",
    "layers",
    "losses",
    "regularizers",
    "callbacks",
    "models",
)

TEXT = """\
# Support matrix

<!-- Written by `python -m tests.conformance.support_matrix`. -->

Each row is a setting of parts that the tests train with, in each of the columns
that has a word. The tables that make this page are those of the tests.

- **tested**: on one device, by the [contracts](index.md#what-holds-for-every-part)
  of all parts; callbacks, and what lives in the network, by tests of their own.
- **equal**: on several devices, the weights, optimizer and losses are those of
  the run on one device with the same global batches, to float32 rounding.
- **equal by replica**: the same, where one device gets the rows of a batch in
  the order in which the replicas cut them.
- **runs**: each replica draws random numbers of its own. The run is finite, and
  the replicas hold the same weights at its end.

{table}

PyTorch has one column, for `fit` of Keras has one device there. What is equal,
and what is not, is explained in [Several devices](scaling.md).

## Ways to run a step

The rows above are of a step as `compile` makes it by default. In the other ways:

{ways}

- **Keras fails**: plain Keras 3.15 does, on two logical CPUs and without a part
  of this package; a test holds that, and fails once Keras is mended.
- **Keras has none**: it refuses the argument there.
- **not tested**: nothing is known to speak against it.

## Parts without a row

They have tests of their own, on one device of each backend.

{others}
"""
# What no case of the tables holds, and why that is enough.
OTHERS = {
    ("callbacks.Resume",): (
        "it ends as the unbroken run, bit for bit, under `MirroredStrategy`, "
        "`DataParallel` and `ModelParallel`, and in two processes of which one "
        "was killed between two writes"
    ),
    ("losses.EqualWeighting",): (
        "the sum that the other weightings are compared with, in their rows"
    ),
    (
        "layers.Conv1DBatchEnsemble",
        "layers.Conv2DBatchEnsemble",
        "layers.Conv3DBatchEnsemble",
        "layers.DepthwiseConv1DBatchEnsemble",
        "layers.DepthwiseConv2DBatchEnsemble",
        "layers.EinsumDenseBatchEnsemble",
        "layers.EmbeddingBatchEnsemble",
        "layers.GroupNormalizationBatchEnsemble",
        "layers.LayerNormalizationBatchEnsemble",
        "layers.SeparableConv1DBatchEnsemble",
        "layers.SeparableConv2DBatchEnsemble",
    ): "layers of Keras with the two products of the row of batch ensemble",
    ("layers.MixPoint",): "where `layers.ManifoldMixUp` mixes, as a layer",
    (
        "layers.ConcatenateTime",
        "layers.MeanAndScale",
        "losses.GaussianNegativeLogLikelihood",
        "regularizers.Sum",
    ): "made of layers and sums of Keras, with no state of their own",
    ("callbacks.HypersphericalEnergyLogger",): "it reads, and changes nothing",
    (
        "layers.BatchPart",
        "losses.TaskWeighting",
        "optimizers.TwoGradient",
        "optimizers.WrapperOptimizer",
        "regularizers.WeightPenalty",
    ): "bases of the parts in the rows",
}


def parts_of(case):
    """The public names of this package that are in a case."""
    model = registry.attached(case)
    found = [*model.parts, *wrappers(model.optimizer), *case.callbacks()]
    for layer in _keras.all_layers(model.model):
        found += [layer, *regularizers(layer)]
    names = [public_name(type(instance)) for instance in found]
    return list(dict.fromkeys(name for name in names if name))


def wrappers(optimizer):
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def regularizers(layer):
    one = getattr(layer, "kernel_regularizer", None)
    return getattr(one, "regularizers", [one])  # of a sum


def public_name(kind):
    """`optimizers.Masked` for it and for what the tests derive from it."""
    names = public_parts()
    return next((names[base] for base in kind.__mro__ if base in names), None)


def public_parts():
    """The classes that are exported where parts live, and their names."""
    return {
        value: f"{module}.{name}"
        for module in MODULES
        for name, value in vars(getattr(dlkit, module)).items()
        if inspect.isclass(value)
    }


def others():
    return [
        f"- {', '.join(f'`{name}`' for name in names)}: {why}."
        for names, why in OTHERS.items()
    ]


def row(case):
    cells = [modes.promise(case, mode) for mode in modes.ALL]
    parts = ", ".join(f"`{name}`" for name in parts_of(case))
    return f"| {title(case)}: {parts} | {' | '.join(cells)} |"


def title(case):
    return case.name.replace("_", " ")


def way_row(way):
    cells = [modes.promise_of_way(way, mode) for mode in modes.ALL]
    return f"| {way.title} | {' | '.join(cells)} |"


def head():
    columns = [f"{BACKENDS[mode.backend]}, {mode.title}" for mode in modes.ALL]
    rule = "|".join(["---"] * (1 + len(columns)))
    return [f"| | {' | '.join(columns)} |", f"|{rule}|"]


def page():
    rows = [row(case) for case in devices.CASES.values()]
    ways = [way_row(way) for way in modes.WAYS.values()]
    return TEXT.format(
        table="\n".join([*head(), *rows]),
        ways="\n".join([*head(), *ways]),
        others="\n".join(others()),
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
