"""`Resume` on several devices, and in several processes."""

import types

import keras
import numpy as np
import pytest

from keras_dlkit.callbacks import _save_files
from keras_dlkit.callbacks import resume
from tests.callbacks.test_resume import arrays
from tests.callbacks.test_resume import saves
from tests.callbacks.test_resume import train
from tests.conformance import modes
from tests.conformance import workers
from tests.conformance.test_contracts import assert_same
from tests.conformance.test_contracts import run_script

BACKEND = keras.config.backend()
SCRIPT = "tests/callbacks/resumed_on_devices.py"
TIMEOUT = 400
MODES = [
    name
    for name, mode in modes.MODES.items()
    if mode.backend == BACKEND and mode.processes == 1
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_on_several_devices_it_ends_as_the_unbroken_run(mode, tmp_path):
    assert "the same" in run_script(SCRIPT, mode, tmp_path)


if BACKEND == "jax":

    def both(folder, *arguments):
        return workers.run(
            SCRIPT, "two_processes", folder, *arguments, timeout=TIMEOUT
        )

    def result(folder, process):
        with np.load(folder / f"process_{process}.npz") as state:
            return list(state.values())

    @pytest.mark.slow
    def test_killed_between_two_writes_they_go_on_together(tmp_path):
        whole, folder = tmp_path / "whole", tmp_path / "broken"
        whole.mkdir(), folder.mkdir()
        for code, output in both(whole):
            assert code == 0 and "trained on 8" in output, output
        ends = both(folder, "--killed", 1)
        assert ends[1][0] == -9, ends[1][1]
        assert ends[0][0] not in (None, 0), ends[0][1]
        kept = [saves(folder / f"saves_{process}") for process in (0, 1)]
        numbers = [[int(path.name[-5]) for path in paths] for paths in kept]
        assert numbers == [[5, 6], [4, 5]]
        for process, (code, output) in enumerate(both(folder)):
            # Save 5 is after the first of the 4 batches of an epoch.
            assert code == 0 and "trained on 3" in output, output
            assert_same(result(folder, process), result(whole, process))


# Which save it is.


def processes(monkeypatch, *others):
    """This one is the first; the others give (epoch, batch) of their saves."""
    stub = types.SimpleNamespace(
        count=lambda: 1 + len(others), gather=lambda mine: [mine, *others]
    )
    monkeypatch.setattr(_save_files, "processes", stub)


def two_saves(folder):
    saves = _save_files.SaveFolder(folder)
    for epoch, batch in ((0, 2), (0, 4)):
        saves.write({"epoch": epoch, "batch": batch}, {})
    return _save_files.SaveFolder(folder)


def test_processes_go_on_from_the_last_save_that_all_have(
    tmp_path, monkeypatch
):
    folder = two_saves(tmp_path)
    processes(monkeypatch, [(0, 4), (0, 2)], [(0, 2), (-1, -1)])
    assert folder.read()[0]["batch"] == 2
    folder.write({"epoch": 1, "batch": 0}, {})  # in the place of the other
    assert [path.name[-5] for path in saves(tmp_path)] == ["1", "2"]
    assert folder.read()[0]["batch"] == 2
    processes(monkeypatch, [(1, 0), (0, 2)])
    assert folder.read()[0]["epoch"] == 1


def test_processes_without_a_save_in_common_are_refused(tmp_path, monkeypatch):
    folder = two_saves(tmp_path)
    processes(monkeypatch, [(1, 2), (1, 4)])
    with pytest.raises(ValueError, match=r"\[\(1, 2\), \(1, 4\)\].*begin anew"):
        folder.read()
    processes(monkeypatch, [(-1, -1)] * 2)
    with pytest.raises(ValueError, match="folder of each"):
        folder.read()
    empty = _save_files.SaveFolder(tmp_path / "none")
    assert empty.read() is None


def test_weights_cut_between_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        resume.processes, "holds", lambda v: "kernel" not in v.path
    )
    with pytest.raises(ValueError, match="kernel', which is cut between"):
        train(tmp_path, arrays())
