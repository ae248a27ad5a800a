"""Every Python example in a docstring and in the README runs."""

import importlib
import inspect
import pathlib
import pkgutil
import re

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


DOCSTRINGS = dict(docstrings())
EXAMPLES = {
    f"{name}-{index}": block
    for name, text in {
        **DOCSTRINGS,
        "README": (ROOT / "README.md").read_text(),
    }.items()
    for index, block in enumerate(BLOCK.findall(text))
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
    for name, text in DOCSTRINGS.items():
        kind, part = name.split(".")[-2:]
        if kind in ("optimizers", "layers") and part[0].isupper():
            for line in ("State:", "Runs:", "Cost:"):
                assert f"\n{line}" in text, (name, line)
