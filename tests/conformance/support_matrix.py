"""The page of what was tested where, from the tables that the tests go by.

python -m tests.conformance.support_matrix
"""

import pathlib

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
"""


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
    for base in kind.__mro__:
        package, _, rest = base.__module__.partition(".")
        module = rest.partition(".")[0]
        if package == "keras_dlkit" and module in MODULES:
            return f"{module}.{base.__name__}"
    return None


def row(case):
    cells = [modes.promise(case, mode) for mode in modes.ALL]
    parts = ", ".join(f"`{name}`" for name in parts_of(case))
    return f"| {title(case)}: {parts} | {' | '.join(cells)} |"


def title(case):
    return case.name.replace("_", " ")


def head():
    columns = [f"{BACKENDS[mode.backend]}, {mode.title}" for mode in modes.ALL]
    rule = "|".join(["---"] * (1 + len(columns)))
    return [f"| | {' | '.join(columns)} |", f"|{rule}|"]


def page():
    rows = [row(case) for case in devices.CASES.values()]
    return TEXT.format(table="\n".join([*head(), *rows]))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
