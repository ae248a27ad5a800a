"""Every script that times something runs, with sizes that measure nothing."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TINY = ["--pairs=1", "--steps=1", "--batch=4"]
SCRIPTS = {
    "batch_ensemble": [*TINY, "--width=8", "--only=^tile"],
    "gpu": ["--tiny", "--pairs=1", "--only=^(SAM|MixUp) "],
    "hyperspherical_energy": [*TINY, "--width=2", "--only=^energy / "],
    "import_time": ["--pairs=2"],
    "mixing": [*TINY, "--width=2", "--only=^MixUp, attached"],
    "pruning": [*TINY, "--width=16", "--only=^masked / plain, SGD"],
    "sam_step": [*TINY, "--width=2", "--only=^SAM / "],
    "sde_net": [*TINY, "--width=2", "--only=^SDENet"],
    "task_weighting": [*TINY, "--width=2", "--only=Uncertainty"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_timing_script_prints_a_table_of_ratios(name):
    result = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *SCRIPTS[name]],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\| \d+(\.\d+)? [|(]", result.stdout), result.stdout
