"""The device modes, each in processes of its own: devices are set up first."""

import re

import keras
import numpy as np
import pytest

from tests.conformance import devices
from tests.conformance import modes
from tests.conformance import registry
from tests.conformance import workers
from tests.conformance.test_contracts import assert_same
from tests.conformance.test_contracts import over
from tests.conformance.test_contracts import run_script

BACKEND = keras.config.backend()
# Cheap ones, for the quick suite: two gradients, class numbers, masks and a
# callback.
QUICK = ("sam", "mix_up", "masked", "magnitude_pruning")
REST = tuple(name for name in devices.CASES if name not in QUICK)
SCRIPT = "tests/conformance/devices.py"
# A hang is a failure: far more than a slow machine takes.
TIMEOUT = 400


def check(output, mode, names):
    for name in names:
        promise = modes.promise(devices.CASES[name], mode)
        assert f"{name}: {promise}\n" in output


def cases(mode):
    """All cases of a mode share a process: its start is what costs."""
    slow = mode.processes > 1
    marks = [pytest.mark.slow] if slow else []
    yield pytest.param(mode, QUICK, id=f"{mode.name}-quick", marks=marks)
    yield pytest.param(
        mode, REST, id=f"{mode.name}-rest", marks=pytest.mark.slow
    )


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        case
        for mode in modes.MODES.values()
        if mode.backend == BACKEND
        for case in cases(mode)
    ],
)
def test_it_equals_one_device(mode, names):
    if mode.processes == 1:
        shares_rows = mode.name in ("mirrored", "data_parallel")
        more = ["predictions"] if names == QUICK and shares_rows else []
        if names == QUICK and mode.name == "mirrored":
            more.append("passes")
        output = run_script(SCRIPT, mode.name, *names, *more)
        check(output, mode, names)
        for name in more:
            assert f"{name}: {modes.EQUAL}\n" in output
        return
    ends = workers.run(SCRIPT, mode.name, *names, timeout=TIMEOUT)
    for code, output in ends:
        assert code == 0, output
        check(output, mode, names)


@over([*registry.FURTHER, *registry.NETWORKS], lambda case: case.slow)
def test_the_further_cases_change_the_training(case):
    """As `test_contracts` says of the others: else equality says nothing."""
    part, stock = (
        registry.attached(case, plain=True),
        registry.attached(registry.Case("none", tasks=case.tasks), plain=True),
    )
    registry.fit(part, case, epochs=case.epochs)
    registry.fit(stock, rows=registry.data(case), epochs=case.epochs)
    weights = [
        [
            keras.ops.convert_to_numpy(w)
            for w in model.weights
            if len(w.shape) > 1
        ]
        for model in (part, stock)
    ]
    assert any(not np.array_equal(a, b) for a, b in zip(*weights))
    if case.name in ("magnitude_pruning", "lottery_ticket"):  # half of 42
        assert sum((w == 0).sum() for w in weights[0]) == 21


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "way"),
    [
        pytest.param(mode, way, id=f"{mode.name}-{way.name}")
        for mode in modes.MODES.values()
        for way in modes.WAYS.values()
        if mode.backend == BACKEND and modes.fails_in_keras(way, mode)
    ],
)
def test_where_keras_itself_fails(mode, way):
    """Each in a process: a collective that fails leaves others waiting."""
    assert "loss" in run_script("tests/conformance/stock.py", mode.name)
    with pytest.raises(AssertionError, match="replica_1|Cond.call|placeholder"):
        run_script("tests/conformance/stock.py", mode.name, way.name)


if BACKEND == "jax":
    INTERRUPTED = "tests/conformance/interrupted.py"

    @pytest.fixture(scope="module")
    def unbroken(tmp_path_factory):
        folder = tmp_path_factory.mktemp("unbroken")
        ends = workers.run(INTERRUPTED, folder, timeout=TIMEOUT)
        assert [code for code, _ in ends] == [0, 0], ends
        return result(folder, 0)

    def result(folder, process):
        with np.load(folder / f"process_{process}.npz") as arrays:
            return list(arrays.values())

    @pytest.mark.slow
    @pytest.mark.parametrize("killed", [0, 1])
    def test_a_killed_worker_ends_the_other_and_both_resume(
        killed, unbroken, tmp_path
    ):
        ends = workers.run(
            INTERRUPTED, tmp_path, "--killed", killed, timeout=TIMEOUT
        )
        assert ends[killed][0] == -9, ends[killed][1]
        code, output = ends[1 - killed]
        # Not a hang, which is `None`, and not a success.
        assert code not in (None, 0), output
        saved = [path.name for path in tmp_path.glob("epoch_*.keras")]
        assert saved == ["epoch_1.keras"]
        ends = workers.run(INTERRUPTED, tmp_path, timeout=TIMEOUT)
        for process, (code, output) in enumerate(ends):
            assert code == 0 and "from epoch 1: done" in output, output
            assert_same(result(tmp_path, process), unbroken)

    @pytest.mark.slow
    def test_the_script_of_the_docs_trains_and_goes_on(tmp_path):
        text = (workers.ROOT / "docs" / "scaling.md").read_text()
        (code,) = re.findall(r"two processes. -->\n```py\n(.*?)```", text, re.S)
        script, folder = tmp_path / "train.py", tmp_path / "runs"
        script.write_text(code)
        folder.mkdir()
        for start, epochs in ((0, 2), (2, 3)):
            ends = workers.run(
                script, folder, "--epochs", epochs, timeout=TIMEOUT
            )
            for code, output in ends:
                assert code == 0, output
                assert re.search(rf"^from epoch {start}: loss \d", output, re.M)
        saved = sorted(path.name for path in folder.glob("epoch_*"))
        assert saved == [f"epoch_000{epoch}.keras" for epoch in (1, 2, 3)]
