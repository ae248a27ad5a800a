"""A case on several devices equals the case on one, on the same global batch.

KERAS_BACKEND=jax python tests/conformance/devices.py data_parallel sam

JAX compiles one step for the global batch: batch normalisation, dropout and
random parts are in the net there, and equal too. Under `MirroredStrategy` they
are a replica's own, and left out of the comparison.
"""

import argparse
import re

import keras
import numpy as np

import keras_dlkit as dlkit
from keras_dlkit.layers import BatchPart
from tests.conformance import modes
from tests.conformance import registry

BATCH, BATCHES = 8, 4
CASES = {
    case.name: case
    for case in [*registry.CASES, *registry.FURTHER, *registry.NETWORKS]
}
# Not in a net with batch normalisation: they magnify rounding.
PLAIN = ("compressive_energy", "lottery_ticket", "magnitude_pruning")


def rows(case, order=None):
    """Whole batches; `order` puts the rows of each into another order."""
    order = np.arange(BATCH) if order is None else order
    batches = np.arange(BATCH * BATCHES).reshape(BATCHES, BATCH)[:, order]
    return keras.tree.map_structure(
        lambda t: np.concatenate([t, t])[batches.ravel()],
        registry.data(case, one_hot=not encodes(case)),
    )


def encodes(case):
    """Whether it takes class numbers, of which Keras makes no mean."""
    parts = [part for part in case.parts() if isinstance(part, BatchPart)]
    return any(part.encodes() for part in parts)


def by_replica(case, mode):
    """The first part of each replica, then the second part of each, ..."""
    shape = (mode.devices, case.micro_batches, -1)
    return np.arange(BATCH).reshape(shape).swapaxes(0, 1).ravel()


def of_process(mode, process):
    return np.arange(BATCH).reshape(mode.processes, -1)[process]


def train(case, scope, plain, order=None, check=None):
    with scope() as creation:
        with creation():
            model = registry.attached(case, plain=plain)
        x, y = rows(case, order)
        history = registry.fit(
            model,
            case,
            rows=(x, y),
            batch_size=len(x) // BATCHES,
            epochs=case.epochs,
        )
        if check is not None:
            check(model)
        return registry.state(model), history.history["loss"]


def compare(case, mode, process=0):
    promise = modes.promise(case, mode)
    plain = mode.backend == "tensorflow" or case.name in PLAIN
    several, several_loss = train(
        case,
        mode.scope,
        plain,
        order=of_process(mode, process),
        check=CHECKS[mode.backend],
    )
    assert np.isfinite(several_loss).all()
    if promise != modes.RUNS:
        order = by_replica(case, mode) if promise == modes.PER_REPLICA else None
        one, one_loss = train(case, modes.one_device, plain, order)
        for a, b in zip(several, one):
            np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(several_loss, one_loss, rtol=1e-5)
    print(f"{case.name}: {promise}", flush=True)


def predictions(scope):
    """Of each net that has several, with the random numbers of one seed."""
    x = np.random.default_rng(0).normal(size=(BATCH, 6)).astype("float32")
    with scope() as creation:
        with creation():
            keras.utils.set_random_seed(0)
            hidden = keras.layers.Dense(6, name="hidden")
            last = keras.layers.Dense(3, "softmax", name="last")
            net = keras.Sequential([keras.Input((6,)), hidden, last])
            ensemble = dlkit.models.BatchEnsemble(net, 2, seed=0)
            sde = registry.as_sde_net(net)
        found = sde.predict_uncertainty(x, 3, batch_size=BATCH, verbose=0)
        return {**found, "members": ensemble.member_predict(x)}


def compare_predictions(mode):
    several, one = predictions(mode.scope), predictions(modes.one_device)
    assert (one["std"] > 1e-4).all()
    for name, value in one.items():
        np.testing.assert_allclose(several[name], value, rtol=1e-4, atol=1e-6)
    print(f"predictions: {modes.EQUAL}", flush=True)


def compare_passes(mode):
    """SAM that does not move is the inner optimizer.

    With what is a replica's own, batch normalisation and dropout, in the net.
    """
    still = registry.Case(
        "still", optimizer=lambda inner: dlkit.optimizers.SAM(inner, rho=1e-12)
    )
    states = [
        train(case, mode.scope, plain=False)[0]
        for case in (still, registry.Case("none"))
    ]
    for a, b in zip(*states, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    print(f"passes: {modes.EQUAL}", flush=True)


# That there were several devices.


def check_replicas(model):
    """Two of them, which are the same after the training."""
    strategy = model.distribute_strategy
    assert strategy.num_replicas_in_sync == 2
    for v in [*model.trainable_variables, *model.optimizer.variables]:
        first, second = strategy.experimental_local_results(v.value)
        np.testing.assert_array_equal(first.numpy(), second.numpy())


def check_sharding(model):
    """On four devices; slots as masks are cut as their weights are."""
    distribution = keras.distribution.distribution()
    for v in [*model.variables, *model.optimizer.variables]:
        assert len(v.value.sharding.device_set) == 4, v.path
    if not isinstance(distribution, keras.distribution.ModelParallel):
        return
    cut = [
        v
        for v in [*model.trainable_variables, *model.optimizer.variables]
        if re.search("hidden.*kernel", v.path)
    ]
    for v in cut:
        assert tuple(v.value.sharding.spec) == (None, "model"), v.path
    # The kernel, and its slot of momentum.
    assert len(cut) >= 2, [v.path for v in model.variables]


CHECKS = {"tensorflow": check_replicas, "jax": check_sharding}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=modes.MODES)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--address", help="of process 0, as host:port")
    parser.add_argument("--process", type=int, default=0)
    return parser.parse_args()


def set_up(mode, address=None, process=0):
    if mode.backend == "tensorflow":
        modes.two_logical_devices()
    if mode.processes > 1:
        import jax

        # As `keras.distribution.initialize`, which leaves the survivors of a
        # killed process waiting for 100 seconds.
        jax.distributed.initialize(
            address, mode.processes, process, heartbeat_timeout_seconds=10
        )


if __name__ == "__main__":
    arguments = parse_arguments()
    mode = modes.MODES[arguments.mode]
    set_up(mode, arguments.address, arguments.process)
    for name in arguments.cases:
        if name == "predictions":
            compare_predictions(mode)
        elif name == "passes":
            compare_passes(mode)
        else:
            compare(CASES[name], mode, arguments.process)
