"""Every Python example in a docstring, the README and the docs runs."""

import inspect
import pathlib
import re

import keras
import pytest

from tests.running import mostly_slow_to_compile
from tests.test_types import public_objects

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def runs_here(block):
    """A loop of one backend says so in its first line."""
    if "MultiOptimizer" in block:
        return hasattr(keras.optimizers, "MultiOptimizer")  # since 3.15
    backend = re.match("# On (.*)$", block, re.MULTILINE)
    return backend is None or backend[1] == keras.config.backend()


DOCSTRINGS = {path: inspect.getdoc(v) for path, v in public_objects()}
EXAMPLES = {
    f"{name}-{index}": block
    for name, text in {
        **DOCSTRINGS,
        **{
            str(path.relative_to(ROOT)): path.read_text()
            for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        },
    }.items()
    for index, block in enumerate(BLOCK.findall(text))
    if runs_here(block)
}


# In `make test`, where they are compiled: a sample, and the loops of the backend.
SAMPLE = [
    name
    for index, (name, block) in enumerate(EXAMPLES.items())
    if index % 5 == 0 or block.startswith("# On ")
]


@pytest.mark.parametrize("name", mostly_slow_to_compile(EXAMPLES, SAMPLE))
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[name], name, "exec"), {"__name__": "example"})


def test_every_public_name_has_an_example():
    without = [
        name
        for name in DOCSTRINGS
        if f"{name}-0" not in EXAMPLES
        and not name.endswith(("Attached", "sample_beta"))
    ]
    assert not without


def test_every_part_says_state_runs_and_cost():
    """All but the functions of `ops`, and those that are no part."""
    parts = {
        name: text
        for name, text in DOCSTRINGS.items()
        if ".ops." not in name
        and name.rpartition(".")[2] not in ("Attached", "citation", "detach")
    }
    assert len(parts) > 50
    for name, text in parts.items():
        for line in ("State:", "Runs:", "Cost:"):
            assert f"\n{line}" in text, (name, line)
