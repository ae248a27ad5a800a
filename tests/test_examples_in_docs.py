"""Every Python example in a docstring, the README and the docs runs."""

import importlib
import inspect
import pathlib
import pkgutil
import re

import keras
import pytest

import keras_dlkit

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def docstrings():
    """The docstrings of all public names, by path."""
    modules = [keras_dlkit] + [
        importlib.import_module(f"keras_dlkit.{module.name}")
        for module in pkgutil.iter_modules(keras_dlkit.__path__)
        if module.ispkg and not module.name.startswith("_")
    ]
    for module in modules:
        for name, value in vars(module).items():
            if name.startswith("_") or inspect.ismodule(value):
                continue
            yield f"{module.__name__}.{name}", inspect.getdoc(value)


def runs_here(block):
    """A loop of one backend says so in its first line."""
    if "MultiOptimizer" in block:
        return hasattr(keras.optimizers, "MultiOptimizer")  # since 3.15
    backend = re.match("# On (.*)$", block, re.MULTILINE)
    return backend is None or backend[1] == keras.config.backend()


DOCSTRINGS = dict(docstrings())
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


@pytest.mark.parametrize("name", EXAMPLES)
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
