"""Every part at work, in one process that notes what it does beside.

Prints what it found, a line each. `python tests/conformance/audited.py FOLDER`
with empty folders `given`, `work` and `temporary` in it.
"""

import contextlib
import logging
import os
import pathlib
import socket
import sys
import tempfile

import keras

import keras_dlkit as dlkit
from tests.conformance import registry
from tests.conformance.audit import Audit
from tests.conformance.networks import NETWORKS


def train(case, folder, audit):
    with audit(case.name):
        model = registry.attached(case)
        registry.fit(model, case, case.epochs)
    # Keras goes by a temporary folder, and takes it away.
    with audit(case.name, tempfile.gettempdir()):
        model.save(folder / f"{case.name}.keras")
        keras.saving.load_model(folder / f"{case.name}.keras")


def callbacks(folder):
    model = registry.network()
    energy = dlkit.regularizers.HypersphericalEnergy(0.01)
    dlkit.regularizers.regularize(model, energy)
    model.compile("sgd", "categorical_crossentropy")
    parts = [
        dlkit.callbacks.LotteryTicket(2, 1, checkpoint_dir=folder / "ticket"),
        dlkit.callbacks.HypersphericalEnergyLogger(),
        dlkit.callbacks.Resume(folder / "resume", save_every_steps=1),
    ]
    registry.fit(model, callbacks=parts)


def sparsity(folder):
    net = registry.network()
    x, y = registry.data()
    loss = keras.losses.CategoricalCrossentropy()
    dlkit.sparsity.prune_at_init(
        net, x, y, score="snip", sparsity=0.5, loss=loss
    )
    dlkit.sparsity.report(net)
    small = dlkit.sparsity.shrink(net)
    dlkit.sparsity.save_compact(small, folder / "net.compact")
    dlkit.sparsity.load_compact(folder / "net.compact")
    dlkit.sparsity.strip(dlkit.sparsity.supermask(net, 0.5))
    dlkit.citation(net)


# One of each place that a part has.
FEW = ("sam", "random_choice", "magnitude_pruning", "sde_net")
CASES = [*registry.CASES, *registry.FURTHER, *NETWORKS]


def check_that_it_sees(audit, elsewhere):
    """Each kind of what has no place, done on purpose."""
    deeds = [
        lambda: (elsewhere / "a").write_text("a"),
        lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
        lambda: os.write(1, b"past Python"),
        lambda: print("in Python"),
        lambda: print("an error", file=sys.stderr),
        lambda: (elsewhere / "a").unlink(),
    ]
    for index, deed in enumerate(deeds):
        with audit(f"deed {index}"), contextlib.suppress(OSError):
            deed()
    for index in range(len(deeds)):
        assert any(f"deed {index}:" in line for line in audit.found), index
    audit.found.clear()


def main(folder, every):
    logging.getLogger("tensorflow").setLevel("ERROR")  # of tracing often
    given, work, temporary = (
        folder / name for name in ("given", "work", "temporary")
    )
    os.chdir(work)
    tempfile.tempdir = str(temporary)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    audit = Audit([given, *([cache] if cache else [])], [work, temporary])
    check_that_it_sees(audit, work)
    for case in CASES:
        if every or case.name in FEW:
            train(case, given, audit)
    for function in (callbacks, sparsity):
        with audit(function.__name__):
            function(given)
    print("\n".join(audit.found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), every="--every" in sys.argv)
